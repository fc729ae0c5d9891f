-- key: run_id, table_name, rule, ingest_date
CREATE TABLE ops.dq_results (
  run_id STRING COMMENT 'One run of one job',
  table_name STRING COMMENT 'Table the batch was meant for',
  rule STRING COMMENT 'Row rule, batch expectation or audit of a whole table',
  ingest_date DATE COMMENT 'Ingest day; null where the rule speaks of the whole batch',
  kind STRING COMMENT 'row, batch or audit',
  severity STRING COMMENT 'expected, bad or batch',
  success BOOLEAN COMMENT 'Whether the rule held (a row rule: broke no row)',
  observed DOUBLE COMMENT 'Rows (of a unique key: keys) that broke the rule, or the value an expectation observed',
  rows BIGINT COMMENT 'Rows looked at'
)
COMMENT 'Every rule\'s and expectation\'s outcome';
