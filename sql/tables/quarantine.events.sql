-- key: ingest_date, source_file, row_number
CREATE TABLE quarantine.events (
  ingest_date DATE COMMENT 'The day the row landed',
  source_file STRING COMMENT 'The file the row stands in',
  row_number BIGINT COMMENT 'The row\'s place in its file, from 1',
  payload MAP<STRING, STRING> COMMENT 'The source row as landed',
  failed_rules ARRAY<STRING> COMMENT 'Names of the rules the row broke, in the order of the expectations file',
  severity STRING COMMENT 'expected: outside the gate; bad: counted by the gate'
)
COMMENT 'Rows that broke a row rule, with the names of the rules'
PARTITIONED BY (ingest_date);
