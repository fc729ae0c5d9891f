"""Land the files of a window in bronze.events: exactly the present content of each day's files."""

from __future__ import annotations

from datetime import date
from typing import Any

from pyspark.sql import DataFrame

from lakerec import events, mapping, sources
from lakerec.job import Job, main

TABLE = "bronze.events"


def run(job: Job) -> dict[str, Any]:
    """Replace the window's ingest days; rows landed per day go to ops.runs."""
    source = job.config.sources.events
    with job.lake.lease():
        job.lake.complete(TABLE)
        landing = sources.find(job.spark, job.config, source, "events", job.window)
        sources.refuse_gone(lambda: job.lake.newest(TABLE), landing, source, "events")
        version = sources.land(job.spark, job.config, source, "events", landing, lambda rows: _replace(job, rows))
        return _record(job, landing, job.lake.rows_added(TABLE, version))


def _replace(job: Job, rows: DataFrame) -> int:
    source = job.config.sources.events
    if source.dated:
        return job.lake.replace(TABLE, rows, job.window)
    dated = events.dated_by_event(rows, source).where(job.window.where("ingest_date"))
    with mapping.told(job.config, {"events": rows}):
        return job.lake.replace(TABLE, dated, job.window)


def _record(job: Job, landing: sources.Landing, days: dict[date, int]) -> dict[str, Any]:
    details = {"files": str(len(landing.files)), "new_columns": ",".join(landing.new_columns)}
    days |= {day: 0 for day in landing.empty_days if day not in days}
    job.run.notes |= details
    job.lake.record(job.run.rows("ok", {day: {"read": n, "written": n} for day, n in days.items()}))
    told = {"columns_not_mapped": ",".join(landing.new_columns)} if landing.new_columns else {}
    return {"read": sum(days.values()), "files": len(landing.files), "empty_days": len(landing.empty_days), **told}


if __name__ == "__main__":
    main(run)
