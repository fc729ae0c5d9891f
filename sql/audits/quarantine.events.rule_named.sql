-- A row in quarantine that names no rule it broke, or has no severity.
-- Severity: bad. Tables: rows (quarantine.events).
SELECT ingest_date, source_file, row_number
FROM {rows}
WHERE NOT coalesce(size(failed_rules) > 0 AND severity IN ('expected', 'bad'), false)
