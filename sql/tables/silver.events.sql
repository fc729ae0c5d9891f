-- key: event_date, event_id
CREATE TABLE silver.events (
  event_date DATE COMMENT 'Day of event_time in the configuration\'s time zone',
  event_id STRING COMMENT 'Identity of the event within its day',
  user_id STRING COMMENT 'User, or the keyed hash of it where users are pseudonymised',
  item_id STRING COMMENT 'Item; empty for an event without one (a search)',
  event_type STRING COMMENT 'One of the configuration\'s event_types',
  event_time TIMESTAMP COMMENT 'When it happened, UTC',
  value DOUBLE COMMENT 'Money or rating, in the source\'s unit',
  position INT COMMENT 'Place in the list it was shown in, from 1',
  query STRING COMMENT 'Text of a search',
  session_id STRING COMMENT 'Visit: user, day and number of the visit within the day, hashed',
  list_id STRING COMMENT 'The served list an impression belongs to, where known',
  ingest_date DATE COMMENT 'The day the winning row landed'
)
COMMENT 'Events, deduplicated, each in its own day'
PARTITIONED BY (event_date);
