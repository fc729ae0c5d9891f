-- The behaviour patterns of the greatest as_of_date.
-- Tables: behaviour_patterns (ml.behaviour_patterns; for an earlier day, its rows up to that day).
SELECT patterns.*
FROM {behaviour_patterns} AS patterns
JOIN (SELECT max(as_of_date) AS as_of_date FROM {behaviour_patterns}) AS newest
ON patterns.as_of_date = newest.as_of_date
