-- key: as_of_date, user_id
CREATE TABLE ml.sequences (
  as_of_date DATE COMMENT 'A day on which an event of the user arrived',
  user_id STRING COMMENT 'User',
  item_ids ARRAY<STRING> COMMENT 'Items of the last L events known by the end of as_of_date, in event_time order',
  event_types ARRAY<STRING> COMMENT 'Their types',
  event_times ARRAY<TIMESTAMP> COMMENT 'Their times, UTC',
  `values` ARRAY<DOUBLE> COMMENT 'Their values',
  text STRING COMMENT 'The same events told as text for the language model',
  events BIGINT COMMENT 'All events of the user known by the end of as_of_date'
)
COMMENT 'Behaviour sequences: for each user and active day, what was known by the end of that day'
PARTITIONED BY (as_of_date);
