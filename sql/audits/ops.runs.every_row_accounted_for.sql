-- An ingest day whose rows read are not the rows written, duplicate and quarantined together, by a job's last run of it.
-- Severity: bad. Tables: runs (ops.runs).
WITH last AS (
  SELECT *, row_number() OVER (PARTITION BY job, ingest_date ORDER BY started_at DESC, run_id) AS place
  FROM {runs}
  WHERE ingest_date IS NOT NULL
)
SELECT ingest_date, run_id, job, rows_read, rows_written, rows_duplicate, rows_quarantined
FROM last
WHERE place = 1
  AND NOT coalesce(rows_read = rows_written + coalesce(rows_duplicate, 0) + coalesce(rows_quarantined, 0), false)
