-- One row for each run: what it ran, when, on which window, how it ended, its counts over all days, its code, settings
-- and model, and the table versions that it read and wrote.
-- Tables: runs (ops.runs).
SELECT
  run_id,
  job,
  window_start,
  window_end,
  -- a run that refused one of its days is told as rejected, one that failed behind its commit and was completed as ok
  max(status) AS status,
  sum(rows_read) AS rows_read,
  sum(rows_written) AS rows_written,
  sum(rows_quarantined) AS rows_quarantined,
  max(config_hash) AS config_hash,
  max(code_version) AS code_version,
  -- the one whose lists, vectors or patterns it made, or that it trained, judged or promoted
  max(coalesce(details['model'], details['version'])) AS model,
  any_value(inputs) AS inputs,
  any_value(outputs) AS outputs,
  min(started_at) AS started_at,
  max(seconds) AS seconds
FROM {runs}
GROUP BY run_id, job, window_start, window_end
