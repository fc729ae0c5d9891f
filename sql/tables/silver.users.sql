-- key: user_id, valid_from
CREATE TABLE silver.users (
  user_id STRING COMMENT 'User, or the keyed hash of it where users are pseudonymised',
  valid_from DATE COMMENT 'First day on which these attributes are known',
  valid_to DATE COMMENT 'First day on which they no longer hold; null while they do',
  text STRING COMMENT 'Profile text for the language model',
  attributes MAP<STRING, STRING> COMMENT 'Every other mapped column',
  first_seen DATE COMMENT 'First day on which the user is known',
  content_hash STRING COMMENT 'SHA-256 of text and attributes'
)
COMMENT 'User profiles with their history';
