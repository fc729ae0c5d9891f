-- key: effective_from, version, entry
CREATE TABLE ml.promotions (
  effective_from DATE COMMENT 'First day whose lists the model scores',
  version STRING COMMENT 'Model version',
  entry BIGINT COMMENT 'Place in this log; of two entries for a day the later one holds',
  path STRING COMMENT 'Folder of the artefact, relative to the lake',
  reason STRING COMMENT 'The gate\'s figures, or who rolled back and why'
)
COMMENT 'Append-only log: which model version serves from which day';
