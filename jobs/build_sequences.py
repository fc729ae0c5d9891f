"""Behaviour sequences of every user and active day from the window's first day to the last day present."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

from pyspark.sql import functions as F

from lakerec.job import Job, main
from lakerec.lake import Window
from lakerec.sequences import sequences

TABLE = "ml.sequences"


def run(job: Job) -> dict[str, Any]:
    """Rewrite as_of_date >= start, or since a day that has left silver: sequences follow from every day before."""
    with job.lake.lease():
        job.lake.complete(TABLE)
        since = _since(job)
        rows = sequences(job.lake.read("silver.events"), job.lake.read("silver.items"), job.config, since)
        version = job.lake.replace(TABLE, rows.hint("rebalance", "as_of_date"), where=f"as_of_date >= '{since}'")
        written = sum(job.lake.rows_added(TABLE, version).values())
        job.lake.record([job.run.row("ok", {"written": written})])
    return {"written": written}


def _since(job: Job) -> date:
    """The window's first day, or the earliest of the `late_days` before it that has sequences and no event any more.

    conform_events of a window takes those out that were delivered again in a bad state.
    """
    start, late = job.window.start, job.config.late_days
    if not late:
        return start
    near = Window(start - timedelta(days=late), start)
    built = job.lake.newest(TABLE).where(near.where("as_of_date")).select(F.col("as_of_date").alias("day")).distinct()
    there = job.lake.read("silver.events").where(near.where("ingest_date")).select(F.col("ingest_date").alias("day"))
    gone = built.join(there.distinct(), on="day", how="left_anti").agg(F.min("day").alias("first")).first()
    since: date = gone["first"] if gone and gone["first"] else start
    if since < start:
        job.say(f"from {since} on, whose events have left silver.events")
    return since


if __name__ == "__main__":
    main(run)
