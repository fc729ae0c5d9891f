"""Behaviour sequences of every user and active day from the window's first day to the last day present."""

from __future__ import annotations

from typing import Any

from lakerec.job import Job, main
from lakerec.sequences import sequences

TABLE = "ml.sequences"


def run(job: Job) -> dict[str, Any]:
    """Rewrite as_of_date >= start: a day's sequences follow from every day before it."""
    since = job.window.start
    with job.lake.lease():
        job.lake.complete(TABLE)
        rows = sequences(job.lake.read("silver.events"), job.lake.read("silver.items"), job.config, since)
        version = job.lake.replace(TABLE, rows.hint("rebalance", "as_of_date"), where=f"as_of_date >= '{since}'")
        written = sum(job.lake.rows_added(TABLE, version).values())
        job.lake.record([job.run.row("ok", {"written": written})])
    return {"written": written}


if __name__ == "__main__":
    main(run)
