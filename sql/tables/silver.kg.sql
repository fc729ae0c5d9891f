-- key: head, relation, tail
CREATE TABLE silver.kg (
  head STRING COMMENT 'Entity, or an item in rows of the relation item_entity',
  relation STRING COMMENT 'Relation; item_entity ties an item (head) to its entity (tail)',
  tail STRING COMMENT 'Entity',
  first_seen DATE COMMENT 'First day on which the triple is known'
)
COMMENT 'Knowledge graph triples, and the entity of each item';
