-- A list of a model that ml.promotions does not name for its day, or for an earlier one.
-- Severity: bad. Tables: lists (gold.recommendations), promotions (ml.promotions).
SELECT DISTINCT lists.as_of_date, lists.model_version
FROM {lists} AS lists
LEFT ANTI JOIN {promotions} AS promotions
ON promotions.version = lists.model_version AND promotions.effective_from <= lists.as_of_date
WHERE lists.model_version IS NULL OR lists.model_version <> 'popularity'
