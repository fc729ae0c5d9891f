"""Behaviour patterns as of the window's last day, and as of the cuts that a training on that day looks back to."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import date, timedelta
from typing import Any

from pyspark import StorageLevel
from pyspark.sql import DataFrame

from lakerec import examples, patterns
from lakerec.job import Job, main
from lakerec.lake import Window
from lakerec.scorer.base_model import model_id
from lakerec.scoring import text_embedder
from lakerec.session import task_threads

TABLE = "ml.behaviour_patterns"
USERS = "ml.user_patterns"
INPUTS = ("silver.events", "ml.sequences", "silver.items")


def run(job: Job) -> dict[str, Any]:
    """Build from pinned inputs outside the lease, commit each day under it; a cut made of the same stays as it is."""
    if not job.config.patterns.enabled:
        job.say("patterns.enabled is false: nothing is written")
        return {"days": 0, "written": 0}
    inputs = tuple(job.lake.read(name) for name in INPUTS)
    marks = job.lake.read(TABLE).select("as_of_date", "fingerprint").distinct()
    made = {row["as_of_date"]: row["fingerprint"] for row in marks.collect()}
    counts = {"days": 0, "written": 0, "patterns": 0, "model": model_id(job.config.scorer.model)}
    cuts = examples.cuts(job.last_day, job.config.scorer.training) if job.config.patterns.cuts else []
    for day in [*(cut for cut, _ in cuts), job.last_day]:
        counts = _day(job, day, inputs, made.get(day), counts)
    return counts


def _day(
    job: Job, day: date, inputs: tuple[DataFrame, ...], made: str | None, counts: dict[str, Any]
) -> dict[str, Any]:
    """Build and commit one day; a cut with too few users has no rows. What the run wrote so far."""
    with ExitStack() as held:
        events, sequences, items = inputs
        given = patterns.known(events, sequences, items, day)
        users = _keep(given.sequences, held).count()
        last = day == job.last_day
        mark = patterns.fingerprint(given, patterns.settings_text(job.config, counts["model"]))
        if made == mark and not last:
            return counts
        if users >= (1 if last else 2 * min(job.config.patterns.ks)):
            told = {"model_id": counts["model"], "fingerprint": mark}
            return _commit(job, day, _built(job, day, given, users, told, held), counts)
        job.say(f"{users} users by {day}: too few for patterns")
        return _commit(job, day, None, counts) if made or last else counts


def _built(
    job: Job, day: date, given: patterns.Known, users: int, told: dict[str, Any], held: ExitStack
) -> tuple[DataFrame, DataFrame]:
    """Rows of both tables, computed."""
    settings = job.config.patterns
    encode = text_embedder(job.config.scorer.model, task_threads(job.spark))
    vectors = _keep(patterns.vectors(patterns.texts(given.sequences, settings.text_tokens), encode, users), held)
    clusters = patterns.fitted(vectors, settings)
    placed = _keep(patterns.nearest(vectors, clusters), held)
    centres = patterns.centres(placed, clusters)
    mine = patterns.assigned(placed, centres)
    told = told | {"silhouette": clusters.silhouette}
    rows = _keep(patterns.behaviour_patterns(mine, centres, given, job.config, day, told), held)
    job.say(f"{users} users in {rows.count()} patterns as of {day}, silhouette {clusters.silhouette}")
    return patterns.user_patterns(mine, day), rows


def _keep(frame: DataFrame, held: ExitStack) -> DataFrame:
    """The frame, persisted until its day is done."""
    held.callback(frame.unpersist)
    return frame.persist(StorageLevel.MEMORY_AND_DISK)


def _commit(job: Job, day: date, rows: tuple[DataFrame, DataFrame] | None, counts: dict[str, Any]) -> dict[str, Any]:
    """Replace the day in both tables (without rows: empty it): the patterns last, whose fingerprint says it is done."""
    mine, theirs = rows or (job.lake.read(USERS).limit(0), job.lake.read(TABLE).limit(0))
    days, written = counts["days"] + (rows is not None), counts["written"] + mine.count()
    counts = counts | {"days": days, "written": written, "patterns": theirs.count()}
    window = Window(day, day + timedelta(days=1))
    job.run.unfinished = day != job.last_day
    with job.lake.lease():
        job.lake.complete(TABLE)
        job.lake.replace(USERS, mine.coalesce(1), window)
        job.lake.replace(TABLE, theirs.coalesce(1), window)
        if not job.run.unfinished:  # in the last commit's lease: nobody takes this run for one that died
            job.lake.record([job.run.row("ok", counts)])
    return counts


if __name__ == "__main__":
    main(run)
