-- Each user's rows of the greatest as_of_date: the list that is served. User * is the fallback.
-- Tables: recommendations (gold.recommendations; for an earlier day, its rows up to that day).
SELECT lists.*
FROM {recommendations} AS lists
JOIN (SELECT user_id, max(as_of_date) AS as_of_date FROM {recommendations} GROUP BY user_id) AS newest
ON lists.user_id = newest.user_id AND lists.as_of_date = newest.as_of_date
