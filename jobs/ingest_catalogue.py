"""Land the catalogue files of a window: bronze.items, bronze.users and bronze.kg."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pyspark.sql import functions as F

from lakerec import sources
from lakerec.config import Source
from lakerec.job import Job, main
from lakerec.lake import Window

TABLES = {"items": "bronze.items", "users": "bronze.users", "kg": "bronze.kg", "kg_links": "bronze.kg"}


def run(job: Job) -> dict[str, Any]:
    """Replace each catalogue's rows of the window; files without a day in their path are known from the beginning."""
    configured = {name: getattr(job.config.sources, name) for name in TABLES}
    with job.lake.lease():
        found = {name: s for name, s in configured.items() if s is not None and s.path}
        files = {name: _land(job, name, source) for name, source in found.items()}
        if files:
            job.lake.record([job.run.row("ok", {f"files_{name}": n for name, n in files.items()})])
    return {f"files_{name}": n for name, n in files.items()} or {"files": 0}


def _land(job: Job, name: str, source: Source) -> int:
    days = job.window if source.dated else Window(sources.BEGINNING, sources.BEGINNING + timedelta(days=1))
    with sources.reading(name):
        landing = sources.find(job.spark, job.config, source, name, job.window)
        rows = sources.read(job.spark, job.config, source, landing)
        placed = rows.withColumn("ingest_date", F.coalesce("ingest_date", F.lit(sources.BEGINNING)))
        # The graph's triples and its links share a table: each replaces its own files' rows.
        named = placed.withColumn("source_file", F.concat(F.lit(f"{name}/"), "source_file"))
        mine = f"{days.where('ingest_date')} AND startswith(source_file, '{name}/')"
        job.lake.replace(TABLES[name], named, where=mine)
    return len(landing.files)


if __name__ == "__main__":
    main(run)
