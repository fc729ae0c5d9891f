"""Top-K lists: candidates, the model that ml.promotions names for the day, the fallback; into gold.recommendations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from functools import reduce
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lakerec import candidates, models, policy, ranking
from lakerec.errors import NotEnoughDataError
from lakerec.job import Job, main
from lakerec.lake import Window
from lakerec.scoring import slate_scorer
from lakerec.session import task_threads

TABLE = "gold.recommendations"
SCORED = "user_id string, item_id string, score float, source string"
# Partitions per core: small enough to see progress, large enough to fill token budgets.
WAVES = 4


@dataclass(frozen=True)
class Day:
    """One day to be scored: its model, and whose sequences ask for a new list (None: everybody's)."""

    day: date
    model: models.Promotion | None
    active: Window | None


def run(job: Job) -> dict[str, Any]:
    """Score pinned inputs outside the lease, then commit each day's lists under it."""
    plan = list(_plan(job))
    inputs = tuple(job.lake.read(name) for name in ("silver.events", "ml.sequences", "silver.items"))
    lists = [_lists(job, day, *inputs) for day in plan]
    whole = reduce(DataFrame.unionByName, lists).persist()
    try:
        counts = _counts(job, whole, plan)
        with job.lake.lease():
            job.lake.complete(TABLE)
            for day in plan:
                rows = whole.where(F.col("as_of_date") == F.lit(day.day))
                job.lake.replace(TABLE, rows.coalesce(1), Window(day.day, day.day + timedelta(days=1)))
            job.lake.record([job.run.row("ok", counts)])
    finally:
        whole.unpersist()
    return counts


def _plan(job: Job) -> Iterator[Day]:
    """With --every-day each day of the window by what changed on it, else its last day by what changed in it."""
    first = job.window.start if job.every_day else job.last_day
    before = first - timedelta(days=1) if job.every_day else job.window.start - timedelta(days=1)
    for offset in range((job.last_day - first).days + 1):
        day = first + timedelta(days=offset)
        since = day if job.every_day else job.window.start
        earlier = models.serving(job.lake, before if offset == 0 else day - timedelta(days=1))
        model = models.serving(job.lake, day)
        fresh = model != earlier or (not job.every_day and not _served_before(job))
        yield Day(day, model, None if fresh else Window(since, day + timedelta(days=1)))


def _served_before(job: Job) -> bool:
    """Whether users had lists before the window."""
    lists = job.lake.read(TABLE).where(F.col("as_of_date") < F.lit(job.window.start))
    return lists.where(F.col("user_id") != ranking.EVERYONE).limit(1).count() > 0


def _lists(job: Job, day: Day, events: DataFrame, sequences: DataFrame, items: DataFrame) -> DataFrame:
    settings, weights, k = job.config.candidates, job.config.event_types, job.config.policy.k
    popular = candidates.popular(events, day.day, settings.popular_days, weights)
    stock = candidates.catalogue(events, items, day.day)
    rows = ranking.for_everyone(candidates.fallback(popular, stock, k))
    told = ranking.recommendations(rows, day.day, "popularity", job.run.run_id, settings.popular_days)
    if day.model is None:
        return told
    known = sequences.where(F.col("as_of_date") <= F.lit(day.day))
    if day.active is not None:
        changed = known.where(day.active.where("as_of_date")).select("user_id").distinct()
        known = known.join(changed, on="user_id", how="left_semi")
    taken = policy.excluded(events, day.day, job.config.policy.filter_types)
    slates = candidates.slates(events, known, items, day.day, settings, weights, taken)
    scored = _scored(job, day.model, slates)
    ranked = ranking.top_k(scored, k)
    mine = ranking.recommendations(ranked, day.day, day.model.version, job.run.run_id, settings.popular_days)
    return told.unionByName(mine)


def _scored(job: Job, model: models.Promotion, slates: DataFrame) -> DataFrame:
    cores = job.spark.sparkContext.defaultParallelism
    path = str(job.lake.local_folder(model.path))
    spread = slates.select("user_id", "history", "candidates").repartition(cores * WAVES, "user_id")
    return spread.mapInPandas(slate_scorer(path, task_threads(job.spark)), SCORED)


def _counts(job: Job, lists: DataFrame, plan: list[Day]) -> dict[str, Any]:
    found = lists.groupBy("as_of_date").agg(
        F.count(F.lit(1)).alias("rows"), F.countDistinct("user_id").alias("users")
    ).collect()  # fmt: skip
    empty = {day.day for day in plan} - {row["as_of_date"] for row in found}
    if empty:
        raise NotEnoughDataError(f"no item is known by {min(empty)}: load events (and items) up to that day first")
    versions = {day.model.version if day.model else "popularity" for day in plan}
    users = sum(row["users"] for row in found) - len(found)
    return {"written": sum(row["rows"] for row in found), "lists": users, "model": ",".join(sorted(versions))}


if __name__ == "__main__":
    main(run)
