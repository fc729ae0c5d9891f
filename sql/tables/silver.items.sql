-- key: item_id, valid_from
CREATE TABLE silver.items (
  item_id STRING COMMENT 'Item',
  valid_from DATE COMMENT 'First day on which these attributes are known',
  valid_to DATE COMMENT 'First day on which they no longer hold; null while they do',
  title STRING COMMENT 'Short name, used in sequence texts',
  text STRING COMMENT 'Text for the language model',
  attributes MAP<STRING, STRING> COMMENT 'Every other mapped column',
  first_seen DATE COMMENT 'First day on which the item is known',
  content_hash STRING COMMENT 'SHA-256 of title, text and attributes',
  text_hash STRING COMMENT 'SHA-256 of text; key into ml.item_embeddings'
)
COMMENT 'The item catalogue with its history';
