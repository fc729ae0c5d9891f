-- key: as_of_date, user_id, rank
CREATE TABLE gold.recommendations (
  as_of_date DATE COMMENT 'The list is made from what was known by the end of this day',
  user_id STRING COMMENT 'User; * is the fallback for everyone without a list',
  rank INT COMMENT 'Place in the list, from 1',
  item_id STRING COMMENT 'Item',
  score FLOAT COMMENT 'The model\'s probability; for the fallback the share of recent events',
  source STRING COMMENT 'Candidate source that ranked the item best',
  propensity FLOAT COMMENT 'Probability with which the item was shown at this place; 1 without exploration',
  reason STRING COMMENT 'Why the item is in the list, for people',
  model_version STRING COMMENT 'Model that scored the list; popularity for the fallback',
  run_id STRING COMMENT 'Run that wrote the row'
)
COMMENT 'Top-K lists'
PARTITIONED BY (as_of_date);
