"""Catalogues with their history: silver.items, silver.users and silver.kg from all that has landed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lakerec import events, items, quality
from lakerec.config import ITEM_ENTITY, Source
from lakerec.errors import DataQualityError
from lakerec.job import Job, main
from lakerec.privacy import user_key

TABLES = ("silver.items", "silver.users", "silver.kg")


def run(job: Job) -> dict[str, Any]:
    """Rebuild the tables whole: what they hold follows from the landed files, in whatever order they came."""
    with job.lake.lease():
        job.lake.complete(*TABLES)
        tables = {name: rows.persist() for name, rows in _tables(job)}
        try:
            counts = {name: rows.count() for name, rows in tables.items()}
            # Before anything of a kind has landed there is no table to judge.
            written = {name: count for name, count in counts.items() if count or job.lake.exists(name)}
            if written:
                _judge(job, {name: tables[name] for name in written}, written)
                for name in written:
                    job.run.unfinished = name != list(written)[-1]
                    job.lake.replace(name, tables[name].coalesce(2))
                job.lake.record([job.run.row("ok", {"written": sum(written.values()), **written})])
        finally:
            for rows in tables.values():
                rows.unpersist()
    return written or {"written": 0}


def _judge(job: Job, tables: dict[str, DataFrame], counts: dict[str, int]) -> None:
    """Raise DataQualityError, and say so in ops.runs, where a table is not as it has to be."""
    try:
        quality.gate(job.lake, tables, counts)
    except DataQualityError:
        job.lake.record([job.run.row("rejected", {"read": sum(counts.values())})])
        raise


def _tables(job: Job) -> Iterator[tuple[str, DataFrame]]:
    """The configured catalogues with their new content."""
    sources = job.config.sources
    if sources.items:
        yield "silver.items", _items(job, sources.items)
    if sources.users:
        yield "silver.users", _users(job, sources.users)
    if sources.kg or sources.kg_links:
        yield "silver.kg", _graph(job)


def _items(job: Job, source: Source) -> DataFrame:
    bronze = job.lake.read("bronze.events" if source.from_ else "bronze.items")
    return items.item_history(items.observations(bronze, source, "item_id"), _snapshots(bronze, source))


def _users(job: Job, source: Source) -> DataFrame:
    bronze = job.lake.read("bronze.users")
    observed = items.observations(bronze, source, "user_id")
    if job.config.privacy.pseudonymise:
        observed = observed.withColumn("user_id", events.pseudonym(F.col("user_id"), user_key(job.config)))
    return items.user_history(observed, _snapshots(bronze, source))


def _snapshots(bronze: DataFrame, source: Source) -> DataFrame | None:
    """The days of full catalogues, where the files are that."""
    if source.mode != "snapshot" or source.from_:
        return None
    return bronze.select(F.col("ingest_date").alias("day")).distinct()


def _graph(job: Job) -> DataFrame:
    bronze, sources = job.lake.read("bronze.kg"), job.config.sources
    parts = []
    if sources.kg:
        parts.append(items.graph(bronze.where("startswith(source_file, 'kg/')"), sources.kg))
    if sources.kg_links:
        links = bronze.where("startswith(source_file, 'kg_links/')")
        parts.append(items.graph(links, sources.kg_links, ITEM_ENTITY))
    return parts[0] if len(parts) == 1 else parts[0].unionByName(parts[1])


if __name__ == "__main__":
    main(run, ahead="great_expectations")
