-- key: snapshot_id, example_id
CREATE TABLE ml.examples (
  snapshot_id STRING COMMENT 'SHA-256 of the snapshot\'s manifest, first 16 hex digits',
  example_id STRING COMMENT 'User and cut day',
  user_id STRING COMMENT 'User',
  cut_date DATE COMMENT 'Last day of what was known; targets lie strictly behind it',
  split STRING COMMENT 'train, valid or test',
  history STRING COMMENT 'Sequence text as of the cut; null for a user who was not known then',
  targets ARRAY<STRING> COMMENT 'Items the user chose within the horizon behind the cut, sorted',
  passed_over ARRAY<STRING> COMMENT 'Items the user was shown within that horizon and answered with no event that speaks for them, sorted; null in snapshots of older releases'
)
COMMENT 'Training snapshots: what each user chose behind each cut, and what they passed over'
PARTITIONED BY (snapshot_id);
