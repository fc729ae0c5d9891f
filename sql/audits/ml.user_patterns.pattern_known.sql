-- A user's place in a pattern that the day does not have.
-- Severity: bad. Tables: places (ml.user_patterns), patterns (ml.behaviour_patterns).
SELECT places.as_of_date, places.user_id, places.pattern_id
FROM {places} AS places
LEFT ANTI JOIN {patterns} AS patterns
ON patterns.as_of_date = places.as_of_date AND patterns.pattern_id = places.pattern_id
