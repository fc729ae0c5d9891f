"""What a person sees of one user: recent events, and the list that is served, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from rich.console import Console
from rich.table import Table

from lakerec.candidates import latest_sequences
from lakerec.collect import shelf_of_day
from lakerec.config import Config
from lakerec.errors import NotEnoughDataError
from lakerec.job import Job, start
from lakerec.lake import Window
from lakerec.privacy import known_as
from lakerec.ranking import EVERYONE
from lakerec.tables import sql_text

# A day behind every other: what is known now.
ALWAYS = date(9999, 1, 1)
SHOWN_EVENTS = 12
RANKED_BY = "ndcg@10"
EVALUATED = ("hr@10", "ndcg@10", "mrr@10", "recall@100", "coverage", "logloss")
METRICS = ("hr@10", "ndcg@10", "mrr@10", "auc", "logloss")


def looking(config: Config, spark: SparkSession, name: str) -> Job:
    """A job that only reads what is known now."""
    return start(config, spark, name, Window(ALWAYS - timedelta(days=1), ALWAYS))


def show_user(config: Config, spark: SparkSession, user: str | None) -> None:
    """Print both tables; without a user, one whose list was scored lately and who has many events."""
    job = looking(config, spark, "recommend")
    lists = job.lake.read("gold.recommendations")
    chosen = _known(job, lists, user) if user else _example(job, lists)
    console = Console(width=120)
    console.print(_events(job, chosen))
    console.print(_list(job, lists, chosen))


def show_query(config: Config, spark: SparkSession, query: str) -> None:
    """Print the items whose text, graph and popularity fit a query, as of the last day with events."""
    from lakerec.scorer.language_model import TextEncoder
    from lakerec.scorer.query import answer

    job = looking(config, spark, "recommend")
    last = job.lake.read("silver.events").agg(F.max("ingest_date")).first()
    if last is None or last[0] is None:
        raise NotEnoughDataError("silver.events is empty: run 'lakerec run' or the DAG reco_daily first")
    day = shelf_of_day(job.lake, config, last[0], [], [])
    (vector,) = TextEncoder(config.scorer.model).encode([query])
    table = Table(title=f"items for {query!r}, as of {last[0]}", title_justify="left")
    for name in ("rank", "item", "text", "likeness", "score"):
        table.add_column(name)
    for rank, hit in enumerate(answer(day, vector, config.policy.k), 1):
        table.add_row(str(rank), hit.item_id, hit.text, f"{hit.cosine:.3f}", f"{hit.score:.2f}")
    Console(width=120).print(table)


def show_metrics(config: Config, spark: SparkSession) -> None:
    """Print the metrics of the newest snapshot, with 95 % intervals over users."""
    job = looking(config, spark, "metrics")
    metrics = job.lake.read("gold.model_metrics")
    evaluated = metrics.select(F.col("data").alias("snapshot_id")).distinct()
    snapshots = job.lake.read("ml.snapshots").join(evaluated, on="snapshot_id", how="left_semi")
    newest = snapshots.orderBy(F.desc("as_of_date")).first()
    if newest is None:
        raise NotEnoughDataError("no model was evaluated yet: run scorer_nightly, or 'lakerec run'")
    rows = metrics.where((F.col("data") == newest["snapshot_id"]) & (F.col("slice") == "all")).collect()
    Console(width=120).print(_metrics(rows))


def figures(rows: Sequence[dict[str, Any]], shown: Sequence[str] = EVALUATED) -> str:
    """The figures as a text table, a line per model."""
    mine = [row for row in rows if row["slice"] == "all"]
    names = list(dict.fromkeys(row["version"] for row in mine))
    cells = {(row["version"], row["metric"]): f"{row['value']:.4f}" for row in mine}
    lines = [f"{'':44s}" + "".join(f"{metric:>11s}" for metric in shown)]
    union = next((row["value"] for row in mine if (row["version"], row["metric"]) == ("candidates", "recall")), None)
    names = [name for name in names if name != "candidates"]
    lines += [f"{name:44s}" + "".join(f"{cells.get((name, m), '-'):>11s}" for m in shown) for name in names]
    told = [] if union is None else [f"all candidates together hold {union:.3f} of the targets"]
    return "\n".join(lines + told)


def _metrics(rows: list[Row]) -> Table:
    found = {(row["version"], row["metric"]): row for row in rows}
    protocol = rows[0]["protocol"] if rows else "nothing evaluated"
    table = Table(title=f"{protocol}, {rows[0]['users'] if rows else 0} users", title_justify="left")
    table.add_column("model", no_wrap=True)
    for name in METRICS:
        table.add_column(name)
    best = {v: found[v, RANKED_BY]["value"] for v, metric in found if metric == RANKED_BY}
    for version in sorted(best, key=lambda v: -best[v]):
        table.add_row(version, *[_figure(found.get((version, metric))) for metric in METRICS])
    return table


def _figure(row: Row | None) -> str:
    if row is None:
        return "-"
    interval = f" [{row['low']:.3f}, {row['high']:.3f}]" if row["low"] != row["high"] else ""
    return f"{row['value']:.4f}{interval}"


def _example(job: Job, lists: DataFrame) -> str:
    newest = lists.where(F.col("user_id") != EVERYONE).groupBy("user_id").agg(F.max("as_of_date").alias("day"))
    known = latest_sequences(job.lake.read("ml.sequences"), ALWAYS)
    row = newest.join(known, on="user_id", how="inner").orderBy(F.desc("day"), F.desc("events"), "user_id").first()
    return str(row["user_id"]) if row else EVERYONE


def _known(job: Job, lists: DataFrame, user: str) -> str:
    """The id as the tables have it: given so, or the source's, which may have a pseudonym."""
    given = lists.where(F.col("user_id") == user).limit(1).count()
    return user if given else known_as(job.config, user)


def _events(job: Job, user: str) -> Table:
    known = latest_sequences(job.lake.read("ml.sequences"), ALWAYS).where(F.col("user_id") == user).first()
    table = Table(title=f"user {user}: the last events", title_justify="left")
    for name in ("time", "event", "item", "title"):
        table.add_column(name)
    if known is None:
        table.add_row("-", "no event is known of this user", "", "")
        return table
    titles = _titles(job, known["item_ids"])
    events = list(zip(known["event_times"], known["event_types"], known["item_ids"], strict=True))
    for time, kind, item in events[-SHOWN_EVENTS:]:
        table.add_row(f"{time.astimezone(job.config.zone):%Y-%m-%d %H:%M}", kind, item, titles.get(item, ""))
    return table


def _list(job: Job, lists: DataFrame, user: str) -> Table:
    latest = job.spark.sql(sql_text("views", "recommendations_latest"), recommendations=lists)
    mine = latest.where(F.col("user_id").isin(user, EVERYONE)).orderBy("rank").collect()
    rows = [row for row in mine if row["user_id"] == user] or [row for row in mine if row["user_id"] == EVERYONE]
    if not rows:
        raise NotEnoughDataError("gold.recommendations is empty: run 'lakerec run' or the DAG reco_daily first")
    first = rows[0]
    whose = "the fallback for everyone without a list" if first["user_id"] == EVERYONE else f"top {len(rows)}"
    table = Table(title=f"user {user}: {whose}, as of {first['as_of_date']}, by {first['model_version']}",
                  title_justify="left")  # fmt: skip
    for name in ("rank", "item", "title", "score", "source", "reason"):
        table.add_column(name)
    titles = _titles(job, [row["item_id"] for row in rows])
    for row in rows:
        item = row["item_id"]
        table.add_row(str(row["rank"]), item, titles.get(item, ""), f"{row['score']:.4f}", row["source"], row["reason"])
    return table


def _titles(job: Job, items: list[str]) -> dict[str, str]:
    """The titles that hold now, by item."""
    known = job.lake.read("silver.items").where(F.col("item_id").isin(list(set(items)))).where("valid_to IS NULL")
    return {row["item_id"]: row["title"] for row in known.select("item_id", "title").collect()}
