"""Let the challenger serve from the window's last day on, if it passes the gate."""

from __future__ import annotations

from typing import Any

from pyspark.sql import functions as F

from lakerec import models
from lakerec.candidates import SOURCES
from lakerec.job import Job, main
from lakerec.scorer.registry import register, set_champion

METRIC = "ndcg@10"


def run(job: Job) -> dict[str, Any]:
    """Append to ml.promotions where the challenger's NDCG@10 on the test slates beats the champion's by min_gain."""
    snapshot = models.snapshot_of(job.lake, job.last_day)
    version = models.version_of(snapshot, job.last_day, job.config)
    champion = models.serving(job.lake, job.last_day)
    figures = _figures(job, snapshot)
    if champion and champion.version == version:
        return {"version": version, "promoted": "already"}
    # A first model must beat what a shop could show without any: each candidate source alone.
    rivals = [champion.version] if champion else list(SOURCES)
    best = max(rivals, key=lambda name: figures.get(name, 0.0))
    bar = figures.get(best, 0.0) + (job.config.scorer.training.min_gain if champion else 0.0)
    told = f"{METRIC} {figures[version]:.4f} against {bar:.4f} ({best})"
    passed = figures[version] >= bar
    with job.lake.lease():
        if passed:
            models.promote(job.lake, version, job.last_day, told)
        job.lake.record([job.run.row("ok" if passed else "rejected", {"version": version, "gate": told})])
    uri = models.tracking_uri(job.lake)
    register(uri, version, models.folder(job.lake, version), {METRIC: figures[version]})
    if passed:
        set_champion(uri, version)
    return {"version": version, "promoted": passed, "gate": told}


def _figures(job: Job, snapshot: str) -> dict[str, float]:
    rows = job.lake.read("gold.model_metrics").where(F.col("data") == snapshot).where(F.col("metric") == METRIC)
    return {row["version"]: row["value"] for row in rows.collect()}


if __name__ == "__main__":
    main(run, ahead="mlflow")
