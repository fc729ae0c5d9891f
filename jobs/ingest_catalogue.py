"""Land the catalogue files of a window: bronze.items, bronze.users and bronze.kg."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lakerec import sources
from lakerec.config import Source
from lakerec.job import Job, main
from lakerec.lake import Window

TABLES = {"items": "bronze.items", "users": "bronze.users", "kg": "bronze.kg", "kg_links": "bronze.kg"}


def run(job: Job) -> dict[str, Any]:
    """Replace each catalogue's rows of the window; files without a day in their path are known from the beginning."""
    found = sources.catalogues(job.config)
    with job.lake.lease():
        job.lake.complete(*dict.fromkeys(TABLES.values()))
        # Every header before the first commit.
        landings = {name: sources.find(job.spark, job.config, s, name, job.window) for name, s in found.items()}
        for name, landing in landings.items():
            sources.refuse_gone(partial(_landed, job, name), landing.empty_days, found[name], name)
        for name, landing in landings.items():
            job.run.unfinished = name != list(landings)[-1]
            _land(job, name, found[name], landing)
        files = {f"files_{name}": len(landing.files) for name, landing in landings.items()}
        if files:
            job.lake.record([job.run.row("ok", files)])
    return files or {"files": 0}


def _landed(job: Job, name: str) -> DataFrame:
    """What bronze has of a source: the graph's triples and its links share a table."""
    return job.lake.newest(TABLES[name]).where(F.startswith("source_file", F.lit(f"{name}/")))


def _land(job: Job, name: str, source: Source, landing: sources.Landing) -> None:
    days = job.window if source.dated else Window(sources.BEGINNING, sources.BEGINNING + timedelta(days=1))
    mine = days.where("ingest_date")
    if list(TABLES.values()).count(TABLES[name]) > 1:
        # The graph's triples and its links share a table: each replaces its own files' rows. By days alone Delta
        # drops whole files, where this has it read them.
        mine += f" AND startswith(source_file, '{name}/')"

    def replace(rows: DataFrame) -> int:
        placed = rows.withColumn("ingest_date", F.coalesce("ingest_date", F.lit(sources.BEGINNING)))
        named = placed.withColumn("source_file", F.concat(F.lit(f"{name}/"), "source_file"))
        return job.lake.replace(TABLES[name], named, where=mine)

    sources.land(job.spark, job.config, source, name, landing, replace)


if __name__ == "__main__":
    main(run)
