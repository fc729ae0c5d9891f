-- key: model_id, text_hash
CREATE TABLE ml.item_embeddings (
  model_id STRING COMMENT 'Language model, by name and hash of its weights',
  text_hash STRING COMMENT 'SHA-256 of the encoded text',
  vector ARRAY<FLOAT> COMMENT 'Unit-length text vector'
)
COMMENT 'Text vectors: each text is encoded once per model'
PARTITIONED BY (model_id);
