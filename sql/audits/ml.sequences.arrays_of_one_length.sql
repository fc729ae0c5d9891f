-- A sequence whose arrays differ in length, that is empty, or that holds more than all events of its user.
-- Severity: bad. Tables: sequences (ml.sequences).
SELECT as_of_date, user_id, size(item_ids) AS shown, events
FROM {sequences}
WHERE NOT coalesce(
  size(item_ids) BETWEEN 1 AND events AND size(item_ids) = size(event_types)
  AND size(item_ids) = size(event_times) AND size(item_ids) = size(`values`), false)
