-- takes: candidates
-- Slates are made when a model is trained, from the ranker's candidates; the snapshot says who chose what.
SELECT * EXCEPT (candidates) FROM {old}
