"""Train generators, retriever, final ranker and the language model's correction on the last day's snapshot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from pyspark.sql import functions as F

from lakerec import models
from lakerec.collect import collect
from lakerec.errors import ModelError
from lakerec.job import Job, main
from lakerec.scorer.base_model import model_id
from lakerec.scorer.registry import log_training, mirrored
from lakerec.session import driver_cores


def run(job: Job) -> dict[str, Any]:
    """Write the artefact of the snapshot's version; a version that is there already is kept as it is."""
    models.check_one_process(job.config)
    snapshot = models.snapshot_of(job.lake, job.last_day)
    version = models.version_of(snapshot, job.last_day, job.config)
    manifest = models.folder(job.lake, version) / "manifest.json"
    counts = {"version": version, "already": "trained"}
    if not manifest.exists():
        with models.training(job.lake, version):
            if not manifest.exists():
                counts = _trained(job, snapshot, manifest.parent)
    return _recorded(job, counts)


def _trained(job: Job, snapshot: str, out: Path) -> dict[str, Any]:
    """Train on a snapshot into a version's folder; what is to be told of it."""
    from lakerec.scorer.artefact import load_manifest
    from lakerec.scorer.nightly import train

    champion = _champion(job)
    items, nodes, kinds = (champion.items, champion.nodes, champion.recipe.kinds) if champion else ([], [], [])
    world = collect(job.lake, job.config, job.last_day, items, nodes, inputs(job, snapshot), kinds)
    job.say(
        f"{len(world.events)} events of {len(world.users)} users, {len(world.items)} items, {len(world.nodes)} nodes"
    )
    cores = driver_cores(job.config)
    report = train(world, examples(job, snapshot), job.last_day, job.config, out, cores, job.say, champion)
    with mirrored(job.say):
        log_training(models.tracking_uri(job.lake), "lakerec", report, load_manifest(out))
    figures = {"prior_loss": round(report.prior_loss, 5), "best_loss": round(report.best_loss, 5)}
    told = {"language_model": "on" if report.language_model else "off", **figures}
    return {"read": len(world.events), "version": out.name, **told}


def _recorded(job: Job, counts: dict[str, Any]) -> dict[str, Any]:
    """The counts, written to ops.runs: also by the run behind one that died with its artefact whole."""
    with job.lake.lease():
        job.lake.record([job.run.row("ok", counts)])
    return counts


def _champion(job: Job) -> Any:
    """The model that serves today, to go on from; None where there is none that can be read."""
    from lakerec.scorer.bundle import Bundle

    serving = models.serving(job.lake, job.last_day)
    if serving is None:
        return None
    try:
        models.check_artefact(folder := models.folder(job.lake, serving.version))
        opened = Bundle.open(folder)
        opened.check_text_model(model_id(job.config.scorer.model))
        return opened
    except ModelError as error:
        job.say(f"{serving.version} cannot be gone on from, the training starts afresh ({str(error)[:120]})")
        return None


def inputs(job: Job, snapshot: str) -> dict[str, int]:
    """The versions of the tables that a snapshot was made of."""
    row = job.lake.read("ml.snapshots").where(F.col("snapshot_id") == snapshot).first()
    found: dict[str, int] = json.loads(row["manifest"])["inputs"] if row else {}
    return {name: version for name, version in found.items() if version >= 0}


def examples(job: Job, snapshot: str) -> pd.DataFrame:
    """A snapshot's rows, in the order of their ids; nothing was passed over where an older release has made it."""
    rows = job.lake.read("ml.examples").where(F.col("snapshot_id") == snapshot).orderBy("split", "example_id")
    passed_over = F.coalesce("passed_over", F.array()).alias("passed_over")
    return rows.select("cut_date", "split", "user_id", "history", "targets", passed_over).toPandas()


if __name__ == "__main__":
    main(run, ahead="lakerec.scorer.nightly")
