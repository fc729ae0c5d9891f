-- An ingest day whose rows read are not the rows written, duplicate and quarantined together.
-- Severity: bad. Tables: runs (ops.runs).
SELECT ingest_date, run_id, job, rows_read, rows_written, rows_duplicate, rows_quarantined
FROM {runs}
WHERE ingest_date IS NOT NULL
  AND NOT coalesce(rows_read = rows_written + coalesce(rows_duplicate, 0) + coalesce(rows_quarantined, 0), false)
