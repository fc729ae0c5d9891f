"""Top-K lists: candidates, the model that ml.promotions names for the day, the fallback; into gold.recommendations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date, timedelta
from typing import Any

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from lakerec import batch, candidates, models, ranking, sources
from lakerec.collect import readings, shelf_of_day, strangers
from lakerec.job import Job, main
from lakerec.lake import Window
from lakerec.models import version_on
from lakerec.scorer.base_model import model_id
from lakerec.scorer.bundle import Bundle
from lakerec.scorer.serving_day import ScoringDay
from lakerec.scoring import bucket_scorer, list_scorer
from lakerec.session import task_threads

TABLE = "gold.recommendations"
SAMPLE = 256  # users by whom it is told how much an approximate search finds


def run(job: Job) -> dict[str, Any]:
    """Score each day from pinned inputs outside the lease, commit its lists under it; what was written."""
    inputs = tuple(job.lake.read(name) for name in ("silver.events", "ml.sequences", "silver.items"))
    log = models.promotions(job.lake)
    days = list(sources.days(job.window)) if job.every_day else [job.last_day]
    totals, done = {"written": 0, "lists": 0}, list[batch.Scored]()
    model = {"model": ",".join(sorted({version_on(log, day) for day in days}))}
    model |= {"every_day": "yes"} if job.every_day else {}
    for day in days:
        with _lists(job, day, log, *inputs) as (rows, scored):
            totals = {name: totals[name] + n for name, n in ranking.counts(rows, day).items()}
            done += scored
            job.run.unfinished = day != days[-1]
            with job.lake.lease():
                job.lake.complete(TABLE)
                job.lake.replace(TABLE, rows.coalesce(1), Window(day, day + timedelta(days=1)))
                if not job.run.unfinished:  # in the last commit's lease: nobody takes this run for one that died
                    job.lake.record([job.run.row("ok", totals | model | batch.counts(done))])
    return totals | model


@contextmanager
def _lists(
    job: Job, day: date, log: list[Row], events: DataFrame, sequences: DataFrame, items: DataFrame
) -> Iterator[tuple[DataFrame, list[batch.Scored]]]:
    """The day's rows, held while they are used, and the scoring by the model where there is one."""
    days, k, run_id = job.config.candidates.popular_days, job.config.policy.k, job.run.run_id
    popular = candidates.popular(events, day, days, job.config.event_types)
    rows = ranking.for_everyone(candidates.fallback(popular, candidates.catalogue(events, items, day), k))
    rows = ranking.recommendations(rows, day, "popularity", run_id, days)
    model, done = models.serving_on(log, day), list[batch.Scored]()
    with ExitStack() as held:
        if model is not None:
            due = _due(job, day, log, sequences)
            users = readings(job.lake, job.config, day, due, events, sequences)
            scored = held.enter_context(_scored(job, model, day, users, due.count()))
            mine = ranking.recommendations(ranking.top_k(scored.rows, k), day, model.version, run_id, days)
            rows, done = rows.unionByName(mine), [scored]
        held.callback(rows.persist().unpersist)
        yield rows, done


def _due(job: Job, day: date, log: list[Row], sequences: DataFrame) -> DataFrame:
    """user_id of who gets a list on the day."""
    known = sequences.where(F.col("as_of_date") <= F.lit(day))
    active = known.select("user_id", "as_of_date").unionByName(strangers(job.lake, day, known))
    if job.every_day:
        return ranking.due_on(active, day, version_on(log, day) == version_on(log, day - timedelta(days=1)))
    return ranking.due_users(active, job.lake.read(TABLE), day, version_on(log, day), job.window.where("as_of_date"))


@contextmanager
def _scored(job: Job, model: models.Promotion, day: date, users: DataFrame, total: int) -> Iterator[batch.Scored]:
    """The users' lists, bucket by bucket; the day's shelf goes to the workers as a file."""
    models.check_artefact(artefact := job.lake.local_folder(model.path))
    opened = Bundle.open(artefact)
    opened.check_text_model(model_id(job.config.scorer.model))
    shelf = shelf_of_day(job.lake, job.config, day, opened.items, opened.nodes, opened.recipe.pattern_days)
    buckets, run = batch.count_of(total, job.spark.sparkContext.defaultParallelism), job.run
    name = batch.fingerprint(day, model.version, run.config_hash, run.code, run.inputs, run.window, total, buckets)
    with batch.workspace(job.lake.local_folder("_scoring"), f"{day}-{name}", run.run_id) as place:
        shelf.save(file := place / "shelf.npz")
        if shelf.on_shelf.sum() > job.config.candidates.exact_items:
            ScoringDay.invert(artefact, file, users.orderBy(F.xxhash64("user_id")).limit(SAMPLE).toPandas(), job.say)
        lists = list_scorer(str(artefact), str(file), task_threads(job.spark), job.config.slate_size)
        with job.telling(f"progress {day}") as tell:
            done = batch.run(job.spark, users, total, buckets, bucket_scorer(lists, str(place)), place, tell)
        yield done


if __name__ == "__main__":
    main(run)
