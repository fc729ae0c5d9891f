-- An event lies on a day after the one it landed on, or has no user, time or type.
-- Severity: bad. Tables: events (silver.events).
SELECT event_date, event_id, ingest_date
FROM {events}
WHERE event_date IS NULL OR ingest_date IS NULL OR event_date > ingest_date
  OR user_id IS NULL OR event_time IS NULL OR event_type IS NULL
