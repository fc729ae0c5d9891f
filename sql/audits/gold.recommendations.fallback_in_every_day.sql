-- A day of lists without the list for everyone. Days past retention hold only what is newest of a user.
-- Severity: bad. Tables: lists (gold.recommendations).
SELECT as_of_date, count(DISTINCT user_id) AS lists
FROM {lists}
WHERE as_of_date >= {kept_from}
GROUP BY as_of_date
HAVING count_if(user_id = '*') = 0
