"""Fine-tune the language model on the snapshot of the window's last day."""

from __future__ import annotations

from typing import Any

import pandas as pd

from lakerec import models
from lakerec.candidates import FEATURES
from lakerec.job import Job, main
from lakerec.scorer.registry import log_training
from lakerec.scoring import slates_from_frame


def run(job: Job) -> dict[str, Any]:
    """Write the artefact of the snapshot's version; a version that is there already is kept as it is."""
    snapshot = models.snapshot_of(job.lake, job.last_day)
    version = models.version_of(snapshot, job.last_day, job.config)
    out = models.folder(job.lake, version)
    if (out / "manifest.json").exists():
        return {"version": version, "already": "trained"}
    from lakerec.scorer.artefact import load_manifest
    from lakerec.scorer.training import train

    frame = slates(job, snapshot, ("train", "valid"))
    parts = [slates_from_frame(frame[frame["split"] == split]) for split in ("train", "valid")]
    report = train(parts[0], parts[1], job.config.scorer, FEATURES, out, job.say)
    log_training(models.tracking_uri(job.lake), "lakerec", report, load_manifest(out))
    figures = {"prior_loss": round(report.prior_loss, 5), "best_loss": round(report.best_loss, 5)}
    counts = {"read": report.slates, "version": version, "epoch": report.best_epoch, **figures}
    with job.lake.lease():
        job.lake.record([job.run.row("ok", counts)])
    return {"version": version, "slates": report.slates, "seconds": round(report.seconds), **figures}


def slates(job: Job, snapshot: str, splits: tuple[str, ...]) -> pd.DataFrame:
    """The slates of a snapshot's splits, in the order of their ids."""
    rows = job.lake.read("ml.examples").where(f"snapshot_id = '{snapshot}'")
    kept = rows.where(rows["split"].isin(*splits)).orderBy("split", "example_id")
    return kept.select("example_id", "split", "cut_date", "history", "targets", "candidates").toPandas()


if __name__ == "__main__":
    main(run, ahead="lakerec.scorer.training")
