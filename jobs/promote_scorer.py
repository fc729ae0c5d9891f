"""Let the challenger serve from the window's last day on, if it passes the gate."""

from __future__ import annotations

from typing import Any

from pyspark.sql import functions as F

from lakerec import models
from lakerec.candidates import SOURCES
from lakerec.errors import NotEnoughDataError
from lakerec.job import Job, main
from lakerec.scorer.registry import register, set_champion

METRIC = "ndcg@10"


def run(job: Job) -> dict[str, Any]:
    """Append to ml.promotions where the challenger's NDCG@10 on the test slates passes the bar; then the registry."""
    snapshot = models.snapshot_of(job.lake, job.last_day)
    version = models.version_of(snapshot, job.last_day, job.config)
    champion = models.serving(job.lake, job.last_day)
    figures = _figures(job, snapshot)
    already = champion is not None and champion.version == version
    passed, told = (True, "serves already") if already else _judged(job, figures, version, champion)
    with job.lake.lease():
        if passed and not already:
            models.promote(job.lake, version, job.last_day, told)
        job.lake.record([job.run.row("ok" if passed else "rejected", {"version": version, "gate": told})])
    # Behind the commit, and again where a run died in between. The alias mirrors the newest entry of the log.
    uri = models.tracking_uri(job.lake)
    register(uri, version, models.folder(job.lake, version), {METRIC: figures[version]} if version in figures else {})
    if models.newest(job.lake) == version:
        set_champion(uri, version)
    return {"version": version, "promoted": passed, "gate": told}


def _judged(job: Job, figures: dict[str, float], version: str, champion: models.Promotion | None) -> tuple[bool, str]:
    """Whether the challenger passes, and the comparison for people.

    A first model must reach what a shop could show without any: each candidate source alone. A later one must beat
    the champion by more than min_gain on the same slates; NotEnoughDataError where that was not evaluated on them.
    """
    rivals = [champion.version] if champion else list(SOURCES)
    if missing := [name for name in (version, *rivals) if name not in figures]:
        raise NotEnoughDataError(f"{', '.join(missing)} was not evaluated on this snapshot: run evaluate_scorer again")
    best = max(rivals, key=lambda name: figures[name])
    gain = figures[version] - figures[best]
    passed = gain > job.config.scorer.training.min_gain if champion else gain >= 0
    return passed, f"{METRIC} {figures[version]:.4f} against {figures[best]:.4f} ({best})"


def _figures(job: Job, snapshot: str) -> dict[str, float]:
    rows = job.lake.read("gold.model_metrics").where(F.col("data") == snapshot).where(F.col("metric") == METRIC)
    return {row["version"]: row["value"] for row in rows.collect()}


if __name__ == "__main__":
    main(run, ahead="mlflow")
