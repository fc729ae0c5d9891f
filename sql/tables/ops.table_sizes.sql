-- key: as_of_date, table_name
CREATE TABLE ops.table_sizes (
  as_of_date DATE COMMENT 'Last day of the window of the upkeep that measured',
  table_name STRING COMMENT 'Table; or a folder of the lake beside the tables, such as _models',
  version BIGINT COMMENT 'Newest version',
  files BIGINT COMMENT 'Data files of the newest version; of a folder all files',
  small_files BIGINT COMMENT 'Of these, files below 16 MiB that share their partition with another one: what the next upkeep would merge',
  bytes BIGINT COMMENT 'Their size; of a folder that of all files',
  rows BIGINT COMMENT 'Rows of the newest version',
  partitions BIGINT COMMENT 'Partitions: of a table by day, its days',
  first_day DATE COMMENT 'First day of a table that is partitioned by day',
  last_day DATE COMMENT 'Its last day',
  old_bytes BIGINT COMMENT 'Size of the files that only earlier versions need',
  commits BIGINT COMMENT 'Commits that its log still has',
  log_files BIGINT COMMENT 'Files of its log',
  log_bytes BIGINT COMMENT 'Size of its log'
)
COMMENT 'How large each table was at each upkeep';
