-- A version that ends before it begins, or that the next one of its item begins before.
-- Severity: bad. Tables: items (silver.items).
SELECT item_id, valid_from, valid_to, following
FROM (
  SELECT item_id, valid_from, valid_to, lead(valid_from) OVER (PARTITION BY item_id ORDER BY valid_from) AS following
  FROM {items}
)
WHERE valid_to <= valid_from OR (following IS NOT NULL AND coalesce(valid_to > following, true))
