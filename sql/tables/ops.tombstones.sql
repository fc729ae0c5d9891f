-- key: user_key
CREATE TABLE ops.tombstones (
  user_key STRING COMMENT 'User to be forgotten, as in silver.events',
  reason STRING COMMENT 'Why'
)
COMMENT 'People to be forgotten; conform leaves their rows out';
