"""Top-K lists: candidates, the model that ml.promotions names for the day, the fallback; into gold.recommendations."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lakerec import candidates, models, policy, ranking, sources
from lakerec.errors import NotEnoughDataError
from lakerec.job import Job, main
from lakerec.lake import Window
from lakerec.scoring import slate_scorer
from lakerec.session import task_threads

TABLE = "gold.recommendations"
SCORED = "user_id string, item_id string, score float, source string"
# Partitions per core: small enough to see progress, large enough to fill token budgets.
WAVES = 4
# A worker takes some ten seconds to load the model: fewer users than this are done sooner by one.
USERS_PER_PARTITION = 100


def run(job: Job) -> dict[str, Any]:
    """Score each day from pinned inputs outside the lease, commit its lists under it; what was written."""
    inputs = tuple(job.lake.read(name) for name in ("silver.events", "ml.sequences", "silver.items"))
    found = [_write(job, day, *inputs) for day in _plan(job)]
    totals = {name: sum(counts[name] for counts in found) for name in ("written", "lists")}
    totals["model"] = ",".join(sorted({counts["model"] for counts in found}))
    with job.lake.lease():
        job.lake.record([job.run.row("ok", totals)])
    return totals


def _plan(job: Job) -> list[models.Day]:
    """With --every-day each day of the window by what changed on it, else its last day by what changed in it."""
    log = models.promotions(job.lake)
    days = list(sources.days(job.window)) if job.every_day else [job.last_day]
    served = job.every_day or _served_before(job)
    return [models.planned(log, day if job.every_day else job.window.start, day, served) for day in days]


def _served_before(job: Job) -> bool:
    """Whether users had lists before the window."""
    lists = job.lake.read(TABLE).where(F.col("as_of_date") < F.lit(job.window.start))
    return lists.where(F.col("user_id") != ranking.EVERYONE).limit(1).count() > 0


def _lists(job: Job, day: models.Day, events: DataFrame, sequences: DataFrame, items: DataFrame) -> DataFrame:
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
    scored = _scored(job, day.model, slates, known.select("user_id").distinct().count())
    ranked = ranking.top_k(scored, k)
    mine = ranking.recommendations(ranked, day.day, day.model.version, job.run.run_id, settings.popular_days)
    return told.unionByName(mine)


def _scored(job: Job, model: models.Promotion, slates: DataFrame, users: int) -> DataFrame:
    most = job.spark.sparkContext.defaultParallelism * WAVES
    partitions = max(1, min(most, users // USERS_PER_PARTITION))
    path = str(job.lake.local_folder(model.path))
    spread = slates.select("user_id", "history", "candidates").repartition(partitions, "user_id")
    return spread.mapInPandas(slate_scorer(path, task_threads(job.spark)), SCORED)


def _write(job: Job, day: models.Day, *inputs: DataFrame) -> dict[str, Any]:
    """Score one day and replace it; NotEnoughDataError where there is nothing to recommend."""
    rows = _lists(job, day, *inputs).persist()
    try:
        total, users = rows.count(), rows.select("user_id").distinct().count()
        if not total:
            raise NotEnoughDataError(f"no item is known by {day.day}: load events (and items) up to that day first")
        with job.lake.lease():
            job.lake.complete(TABLE)
            job.lake.replace(TABLE, rows.coalesce(1), Window(day.day, day.day + timedelta(days=1)))
    finally:
        rows.unpersist()
    return {"written": total, "lists": users - 1, "model": day.model.version if day.model else "popularity"}


if __name__ == "__main__":
    main(run)
