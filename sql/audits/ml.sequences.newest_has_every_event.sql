-- A user whose newest sequence does not count all of their events that sequences tell: build_sequences has not run since.
-- Severity: expected. Tables: sequences (ml.sequences), events (silver.events).
SELECT told.user_id, told.as_of_date, told.events, found.events AS in_silver
FROM (SELECT user_id, max(as_of_date) AS as_of_date, max_by(events, as_of_date) AS events FROM {sequences} GROUP BY user_id) AS told
JOIN (
  SELECT user_id, max(ingest_date) AS landed, count(*) AS events
  FROM {events}
  WHERE find_in_set(event_type, {sequence_types}) > 0
  GROUP BY user_id
) AS found
ON told.user_id = found.user_id
WHERE told.as_of_date >= found.landed AND told.events <> found.events
