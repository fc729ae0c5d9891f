"""Catalogues with their history: silver.items, silver.users and silver.kg from all that has landed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lakerec import events, items, mapping, quality
from lakerec.config import ITEM_ENTITY, Source
from lakerec.errors import DataQualityError
from lakerec.job import Job, main
from lakerec.privacy import user_key

TABLES = ("silver.items", "silver.users", "silver.kg")


def run(job: Job) -> dict[str, Any]:
    """Rebuild the tables whole: what they hold follows from the landed files, in whatever order they came."""
    with job.lake.lease():
        job.lake.complete(*TABLES)
        found = ((name, source) for name, source in job.config.sources if source and name != "events")
        landed = {name: _landed(job, name, source) for name, source in found}
        with mapping.told(job.config, landed):
            tables = {name: rows.persist() for name, rows in _tables(job, landed)}
            try:
                return _commit(job, tables)
            finally:
                for rows in tables.values():
                    rows.unpersist()


def _landed(job: Job, name: str, source: Source) -> DataFrame:
    """What has landed of a catalogue: the graph's triples and its links share a table."""
    if name in ("kg", "kg_links"):
        return job.lake.read("bronze.kg").where(f"startswith(source_file, '{name}/')")
    return job.lake.read("bronze.events" if source.from_ else f"bronze.{name}")


def _commit(job: Job, tables: dict[str, DataFrame]) -> dict[str, int]:
    counts = {name: rows.count() for name, rows in tables.items()}
    # Before anything of a kind has landed there is no table to judge.
    written = {name: count for name, count in counts.items() if count or job.lake.exists(name)}
    if written:
        _judge(job, {name: tables[name] for name in written}, written)
        for name in written:
            job.run.unfinished = name != list(written)[-1]
            job.lake.replace(name, tables[name].coalesce(2))
        job.lake.record([job.run.row("ok", {"written": sum(written.values()), **written})])
    return written or {"written": 0}


def _judge(job: Job, tables: dict[str, DataFrame], counts: dict[str, int]) -> None:
    """Raise DataQualityError, and say so in ops.runs, where a table is not as it has to be."""
    try:
        quality.gate(job.lake, tables, counts)
    except DataQualityError:
        job.lake.record([job.run.row("rejected", {"read": sum(counts.values())})])
        raise


def _tables(job: Job, landed: Mapping[str, DataFrame]) -> Iterator[tuple[str, DataFrame]]:
    """The configured catalogues with their new content."""
    sources = job.config.sources
    if sources.items:
        observed = items.observations(landed["items"], sources.items, "item_id")
        yield "silver.items", items.item_history(observed, _snapshots(landed["items"], sources.items))
    if sources.users:
        yield "silver.users", _users(job, sources.users, landed["users"])
    if sources.kg or sources.kg_links:
        yield "silver.kg", _graph(job, landed)


def _users(job: Job, source: Source, bronze: DataFrame) -> DataFrame:
    observed = items.observations(bronze, source, "user_id")
    if job.config.privacy.pseudonymise:
        observed = observed.withColumn("user_id", events.pseudonym(F.col("user_id"), user_key(job.config)))
    return items.user_history(observed, _snapshots(bronze, source))


def _snapshots(bronze: DataFrame, source: Source) -> DataFrame | None:
    """The days of full catalogues, where the files are that."""
    if source.mode != "snapshot" or source.from_:
        return None
    return bronze.select(F.col("ingest_date").alias("day")).distinct()


def _graph(job: Job, landed: Mapping[str, DataFrame]) -> DataFrame:
    kg, links = job.config.sources.kg, job.config.sources.kg_links
    parts = [items.graph(landed["kg"], kg)] if kg else []
    parts += [items.graph(landed["kg_links"], links, ITEM_ENTITY)] if links else []
    return reduce(DataFrame.unionByName, parts)


if __name__ == "__main__":
    main(run, ahead="great_expectations")
