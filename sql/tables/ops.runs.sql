-- key: run_id, ingest_date, status
CREATE TABLE ops.runs (
  run_id STRING COMMENT 'One run of one job',
  job STRING COMMENT 'The job\'s name',
  ingest_date DATE COMMENT 'The ingest day of the counts; null for a job without counts per day',
  window_start DATE COMMENT 'First day of the run\'s window',
  window_end DATE COMMENT 'Day behind the last of the window',
  status STRING COMMENT 'ok; rejected by a gate; failed or skipped, with error and message in details',
  rows_read BIGINT COMMENT 'Rows read',
  rows_written BIGINT COMMENT 'Rows written',
  rows_duplicate BIGINT COMMENT 'Rows that lost to another row of the same identity',
  rows_quarantined BIGINT COMMENT 'Rows in quarantine',
  rows_bad BIGINT COMMENT 'Rows in quarantine that count for the gate',
  details MAP<STRING, STRING> COMMENT 'Whatever else the job counts',
  inputs MAP<STRING, BIGINT> COMMENT 'Table versions the run read',
  outputs MAP<STRING, BIGINT> COMMENT 'Table versions the run wrote',
  config_hash STRING COMMENT 'Hash of the settings',
  code_version STRING COMMENT 'Release of lakerec, and its commit where that is known',
  started_at TIMESTAMP COMMENT 'Wall clock, UTC',
  seconds DOUBLE COMMENT 'Wall time'
)
COMMENT 'What each job read, wrote and quarantined';
