-- An event_id stands on two event dates: an identity is (event_date, event_id), so this is told and not refused.
-- Severity: expected. Tables: events (silver.events).
SELECT event_id, min(event_date) AS first_day, max(event_date) AS last_day, count(DISTINCT event_date) AS days
FROM {events}
GROUP BY event_id
HAVING count(DISTINCT event_date) > 1
