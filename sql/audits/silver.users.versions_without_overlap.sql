-- A version that ends before it begins, or that the next one of its user begins before.
-- Severity: bad. Tables: users (silver.users).
SELECT user_id, valid_from, valid_to, following
FROM (
  SELECT user_id, valid_from, valid_to, lead(valid_from) OVER (PARTITION BY user_id ORDER BY valid_from) AS following
  FROM {users}
)
WHERE valid_to <= valid_from OR (following IS NOT NULL AND coalesce(valid_to > following, true))
