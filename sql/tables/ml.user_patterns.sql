-- key: as_of_date, user_id
CREATE TABLE ml.user_patterns (
  as_of_date DATE COMMENT 'Day of the patterns in ml.behaviour_patterns',
  user_id STRING COMMENT 'User with a sequence known by the end of as_of_date',
  pattern_id INT COMMENT 'The pattern whose centre is nearest',
  similarity FLOAT COMMENT 'Cosine of the user\'s text vector and the centre'
)
COMMENT 'The behaviour pattern of each user'
PARTITIONED BY (as_of_date);
