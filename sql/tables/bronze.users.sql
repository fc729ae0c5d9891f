-- key: ingest_date, source_file, row_number
CREATE TABLE bronze.users (
  ingest_date DATE COMMENT 'The day in the file\'s path; 1970-01-01 for a file without one (known from the beginning)',
  source_file STRING COMMENT 'The file the row stands in, relative to the source path\'s fixed part',
  row_number BIGINT COMMENT 'The row\'s place in its file, from 1',
  payload MAP<STRING, STRING> COMMENT 'Every column of the source row as landed; _corrupt_record holds a row that could not be split'
)
COMMENT 'Landed rows of the user profiles'
PARTITIONED BY (ingest_date);
