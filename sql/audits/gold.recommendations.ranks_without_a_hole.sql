-- A list whose ranks are not 1 to n, or that names an item twice.
-- Severity: bad. Tables: lists (gold.recommendations).
SELECT as_of_date, user_id, count(*) AS places, min(rank) AS first_rank, max(rank) AS last_rank
FROM {lists}
GROUP BY as_of_date, user_id
HAVING min(rank) <> 1 OR max(rank) <> count(*) OR count(DISTINCT rank) <> count(*) OR count(DISTINCT item_id) <> count(*)
