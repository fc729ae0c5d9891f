-- key: version, protocol, data, slice, metric, seed
CREATE TABLE gold.model_metrics (
  version STRING COMMENT 'Model version, the name of a candidate source, or blend: that of the sources',
  protocol STRING COMMENT 'How it was evaluated: split, cut and candidates',
  data STRING COMMENT 'Snapshot',
  slice STRING COMMENT 'Users or targets the figure speaks of: all (users with a history), new users, new items (never chosen before), explore items (not chosen before by the user), users who searched, ...; against RIVAL: mean paired difference',
  metric STRING COMMENT 'Metric with its depth, e.g. NDCG@10',
  seed INT COMMENT 'Seed of the training',
  value DOUBLE COMMENT 'Mean over users',
  low DOUBLE COMMENT 'Lower end of the 95 % bootstrap interval',
  high DOUBLE COMMENT 'Upper end of the 95 % bootstrap interval',
  users BIGINT COMMENT 'Users in the mean'
)
COMMENT 'Evaluations of models and baselines';
