-- The newest sizes of each table and folder, and how much it has grown since the upkeep before.
-- Tables: sizes (ops.table_sizes).
SELECT
  table_name,
  as_of_date,
  files,
  small_files,
  round(bytes / 1e6, 1) AS MB,
  rows,
  date_diff(last_day, first_day) + 1 AS days,
  commits,
  log_files,
  round(old_bytes / 1e6, 1) AS old_MB,
  before_day,
  rows - rows_before AS grown_rows,
  round((bytes - bytes_before) / 1e6, 1) AS grown_MB
FROM (
  SELECT
    *,
    lag(as_of_date) OVER measured AS before_day,
    lag(rows) OVER measured AS rows_before,
    lag(bytes) OVER measured AS bytes_before,
    row_number() OVER (PARTITION BY table_name ORDER BY as_of_date DESC) AS age
  FROM {sizes}
  WINDOW measured AS (PARTITION BY table_name ORDER BY as_of_date)
)
WHERE age = 1
