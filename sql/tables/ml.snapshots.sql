-- key: snapshot_id
CREATE TABLE ml.snapshots (
  snapshot_id STRING COMMENT 'SHA-256 of the manifest, first 16 hex digits',
  as_of_date DATE COMMENT 'Last day of what the snapshot may know',
  manifest STRING COMMENT 'JSON: versions and windows of the inputs, cuts, row counts and the hash of the settings',
  rows BIGINT COMMENT 'Examples in the snapshot'
)
COMMENT 'Manifests of the training snapshots';
