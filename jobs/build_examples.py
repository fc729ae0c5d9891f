"""A training snapshot as of the window's last day: what users chose behind several cuts, split by global time."""

from __future__ import annotations

import json
from functools import reduce
from typing import Any

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lakerec import examples
from lakerec.collect import INPUTS
from lakerec.errors import NotEnoughDataError
from lakerec.job import Job, main


def run(job: Job) -> dict[str, Any]:
    """Write ml.examples and its manifest; inputs are pinned, only the commit holds the lease."""
    splits = examples.cuts(job.last_day, job.config.scorer.training)
    rows = _rows(job, splits).persist(StorageLevel.MEMORY_AND_DISK)
    try:
        found = {
            row["split"]: row["count"] for row in rows.groupBy("split").agg(F.count("history").alias("count")).collect()
        }
        _check(job, found, splits)
        versions = {name: job.run.inputs.get(name, -1) for name in INPUTS}
        manifest = examples.manifest(job.last_day, versions, splits, found, job.config.hash())
        return _commit(job, rows, manifest, sum(found.values())) | found
    finally:
        rows.unpersist()


def _rows(job: Job, splits: list[Any]) -> DataFrame:
    # Every input of a training is pinned here, also those that only the training reads.
    events, sequences, *_ = (job.lake.read(name) for name in INPUTS)
    training = job.config.scorer.training
    made = [
        examples.examples(events, sequences, cut, split, job.last_day, job.config, training.targets)
        for cut, split in splits
    ]
    by_split = {
        name: reduce(DataFrame.unionByName, [m for m, (_, s) in zip(made, splits, strict=True) if s == name])
        for name in ("train", "valid", "test")
    }
    limits = {"train": training.max_examples, "valid": training.max_examples, "test": training.max_examples}
    parts = [examples.sample(by_split[name], limit, training.seed) for name, limit in limits.items()]
    return reduce(DataFrame.unionByName, parts)


def _check(job: Job, found: dict[str, int], splits: list[Any]) -> None:
    missing = [name for name in ("train", "valid", "test") if not found.get(name)]
    if missing:
        first, horizon = splits[0][0], job.config.scorer.training.horizon_days
        raise NotEnoughDataError(
            f"no {', '.join(missing)} examples as of {job.last_day}: the cuts lie at "
            f"{', '.join(str(cut) for cut, _ in splits)}, {horizon} days apart, and users with events up to {first} "
            f"and choices behind it are needed. Load more days, or lower scorer.training.horizon_days or cuts"
        )


def _commit(job: Job, rows: DataFrame, manifest: dict[str, Any], count: int) -> dict[str, Any]:
    snapshot = examples.snapshot_id(manifest)
    with job.lake.lease():
        named = rows.withColumn("snapshot_id", F.lit(snapshot))
        job.lake.replace("ml.examples", named.coalesce(4), where=f"snapshot_id = '{snapshot}'")
        line = {"snapshot_id": snapshot, "as_of_date": job.last_day, "rows": count}
        line["manifest"] = json.dumps(manifest, sort_keys=True)
        job.lake.replace_rows("ml.snapshots", [line], f"as_of_date = '{job.last_day}'")
        job.lake.record([job.run.row("ok", {"written": count, "snapshot_id": snapshot})])
    return {"snapshot": snapshot}


if __name__ == "__main__":
    main(run)
