"""Top-K lists: candidates, the model that ml.promotions names for the day, the fallback; into gold.recommendations."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from lakerec import candidates, models, ranking, sources
from lakerec.collect import readings, shelf_of_day, strangers
from lakerec.errors import NotEnoughDataError
from lakerec.job import Job, main
from lakerec.lake import Window
from lakerec.scorer.bundle import Bundle
from lakerec.scoring import list_scorer
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
    log = models.promotions(job.lake)
    days = list(sources.days(job.window)) if job.every_day else [job.last_day]
    totals, model = {"written": 0, "lists": 0}, {"model": ",".join(sorted({_version(log, day) for day in days}))}
    for day in days:
        rows = _lists(job, day, log, *inputs).persist()
        try:
            totals = {name: totals[name] + n for name, n in _counts(rows, day).items()}
            with job.lake.lease():
                job.lake.complete(TABLE)
                job.lake.replace(TABLE, rows.coalesce(1), Window(day, day + timedelta(days=1)))
                if day == days[-1]:  # in the last commit's lease: nobody takes this run for one that died
                    job.lake.record([job.run.row("ok", totals | model)])
        finally:
            rows.unpersist()
            _shelf_file(job, day).unlink(missing_ok=True)
    return totals | model


def _version(log: list[Row], day: date) -> str:
    model = models.serving_on(log, day)
    return model.version if model else "popularity"


def _counts(rows: DataFrame, day: date) -> dict[str, int]:
    """Rows and lists; NotEnoughDataError where there is nothing to recommend."""
    if rows.isEmpty():
        raise NotEnoughDataError(f"no item is known by {day}: load events (and items) up to that day first")
    return {"written": rows.count(), "lists": rows.select("user_id").distinct().count() - 1}


def _lists(job: Job, day: date, log: list[Row], events: DataFrame, sequences: DataFrame, items: DataFrame) -> DataFrame:
    settings, weights, k = job.config.candidates, job.config.event_types, job.config.policy.k
    popular = candidates.popular(events, day, settings.popular_days, weights)
    rows = ranking.for_everyone(candidates.fallback(popular, candidates.catalogue(events, items, day), k))
    told = ranking.recommendations(rows, day, "popularity", job.run.run_id, settings.popular_days)
    model = models.serving_on(log, day)
    if model is None:
        return told
    known = sequences.where(F.col("as_of_date") <= F.lit(day))
    active = known.select("user_id", "as_of_date").unionByName(strangers(job.lake, day, known))
    if job.every_day:
        same = _version(log, day) == _version(log, day - timedelta(days=1))
        due = ranking.due_on(active, day, same)
    else:
        due = ranking.due_users(active, job.lake.read(TABLE), day, _version(log, day), job.window.where("as_of_date"))
    scored = _scored(job, model, day, readings(job.lake, job.config, day, due, events, known), due.count())
    mine = ranking.recommendations(ranking.top_k(scored, k), day, model.version, job.run.run_id, settings.popular_days)
    return told.unionByName(mine)


def _scored(job: Job, model: models.Promotion, day: date, users: DataFrame, count: int) -> DataFrame:
    """user_id, item_id, score, source of the users; the day's shelf goes to the workers as a file."""
    artefact = job.lake.local_folder(model.path)
    file = _shelf_file(job, day)
    opened = Bundle.open(artefact)
    shelf_of_day(job.lake, job.config, day, opened.items, opened.nodes).save(file)
    partitions = max(1, min(job.spark.sparkContext.defaultParallelism * WAVES, count // USERS_PER_PARTITION))
    per_user = max(job.config.candidates.per_user, job.config.policy.k)
    score = list_scorer(str(artefact), str(file), task_threads(job.spark), per_user)
    return users.repartition(partitions, "user_id").mapInPandas(score, SCORED)


def _shelf_file(job: Job, day: date) -> Path:
    return job.lake.local_folder(f"_scoring/{job.run.run_id}-{day}.npz")


if __name__ == "__main__":
    main(run)
