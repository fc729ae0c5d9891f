-- What each job cost in the last {days} days up to the newest run: runs, and seconds in all, at the median, at the most.
-- Tables: runs (the view runs). Values: days.
SELECT
  job,
  count(*) AS runs,
  round(sum(seconds), 1) AS seconds,
  round(median(seconds), 1) AS median,
  round(max(seconds), 1) AS longest
FROM {runs}
WHERE started_at > (SELECT max(started_at) FROM {runs}) - make_interval(0, 0, 0, {days})
GROUP BY job
