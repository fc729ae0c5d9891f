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
        sources.refuse_gone(lambda: job.lake.newest(TABLE), landing.empty_days, source, "events")
        version = sources.land(job.spark, job.config, source, "events", landing, lambda rows: _replace(job, rows))
        added = job.lake.rows_added(TABLE, version)
        return _record(job, landing, {day: added.get(day, 0) for day in sources.days(job.window)})


def _replace(job: Job, rows: DataFrame) -> int:
    source = job.config.sources.events
    if source.dated:
        return job.lake.replace(TABLE, rows, job.window)
    dated = events.dated_by_event(rows, source).where(job.window.where("ingest_date"))
    with mapping.told(job.config, {"events": rows}):
        if source.missing != "remove":
            sources.refuse_gone(lambda: job.lake.newest(TABLE), _gone(job, dated), source, "events")
        return job.lake.replace(TABLE, dated, job.window)


def _gone(job: Job, dated: DataFrame) -> list[date]:
    """The window's days that have landed and that files without a day have no rows of any more.

    Only where days have landed are the files read for it, for their days alone.
    """
    landed = _days(job.lake.newest(TABLE).where(job.window.where("ingest_date")))
    return sorted(landed - _days(dated)) if landed else []


def _days(rows: DataFrame) -> set[date]:
    return {row["ingest_date"] for row in rows.select("ingest_date").distinct().collect()}


def _record(job: Job, landing: sources.Landing, days: dict[date, int]) -> dict[str, Any]:
    details = {"files": str(len(landing.files)), "new_columns": ",".join(landing.new_columns)}
    job.run.notes |= details
    job.lake.record(job.run.rows("ok", {day: {"read": n, "written": n} for day, n in days.items()}))
    told = {"columns_not_mapped": ",".join(landing.new_columns)} if landing.new_columns else {}
    empty = sum(not n for n in days.values())
    return {"read": sum(days.values()), "files": len(landing.files), "empty_days": empty, **told}


if __name__ == "__main__":
    main(run)
