-- A list of no day, or of a day that no run has spoken of yet.
-- Severity: bad. Tables: lists (gold.recommendations), runs (ops.runs).
SELECT as_of_date, user_id, run_id
FROM {lists}
WHERE as_of_date IS NULL OR as_of_date >= (SELECT max(window_end) FROM {runs})
