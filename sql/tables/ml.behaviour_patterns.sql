-- key: as_of_date, pattern_id
CREATE TABLE ml.behaviour_patterns (
  as_of_date DATE COMMENT 'The patterns follow from what was known by the end of this day',
  pattern_id INT COMMENT 'Number within the day, from 0, the pattern of most users first',
  name STRING COMMENT 'The three strongest terms, for people',
  terms ARRAY<STRING> COMMENT 'Words of the chosen items\' titles that set the pattern apart, strongest first',
  items ARRAY<STRING> COMMENT 'Items chosen more often than by all users, greatest smoothed lift first',
  popular ARRAY<STRUCT<item_id: STRING, score: DOUBLE>> COMMENT 'The pattern\'s most chosen items of the last candidates.popular_days days and their share of its weighted events; older events count a millionth',
  users BIGINT COMMENT 'Users of the pattern',
  share DOUBLE COMMENT 'Their share of all users',
  silhouette DOUBLE COMMENT 'Of the whole clustering, by cosine, on the users it was fitted on; null with one pattern',
  k INT COMMENT 'Patterns of the day',
  centre ARRAY<FLOAT> COMMENT 'K-means centre of the members\' text vectors, of length 1',
  model_id STRING COMMENT 'Language model that encoded the texts, by name and hash of its weights',
  fingerprint STRING COMMENT 'Hash of what the day\'s patterns follow from: sequences, events, titles, settings and model, first 16 hex digits'
)
COMMENT 'Behaviour patterns: clusters of the users\' encoded sequence texts, named by what sets them apart'
PARTITIONED BY (as_of_date);
