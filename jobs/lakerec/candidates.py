"""What is known as of a day: events, the catalogue, each user's sequence and history; and the popular list.

Every sum of weights is a sum of whole numbers on a grid of 1e-9: floating-point addition depends on the
order of the rows, and one bit is enough to turn a tie around between two runs of the same day.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

GRID = 1e9
# Weight of an event before the popularity window: counts where the window is silent, breaks ties elsewhere.
OLD = 1e-6


def known_events(events: DataFrame, as_of: date) -> DataFrame:
    """The events of silver.events that arrived by the end of `as_of` and concern an item."""
    return events.where((F.col("ingest_date") <= F.lit(as_of)) & (F.col("item_id") != ""))


def searchers(events: DataFrame, as_of: date) -> DataFrame:
    """user_id of those whose search had arrived by the end of `as_of`."""
    known = events.where((F.col("ingest_date") <= F.lit(as_of)) & (F.col("query") != ""))
    return known.select("user_id").distinct()


def known_items(items: DataFrame, as_of: date) -> DataFrame:
    """The rows of silver.items that hold on `as_of`: valid_from <= as_of < valid_to."""
    open_ended = F.col("valid_to").isNull() | (F.col("valid_to") > F.lit(as_of))
    return items.where((F.col("valid_from") <= F.lit(as_of)) & open_ended)


def latest_sequences(sequences: DataFrame, as_of: date) -> DataFrame:
    """Each user's row of ml.sequences of the greatest as_of_date <= as_of."""
    newest = Window.partitionBy("user_id").orderBy(F.col("as_of_date").desc())
    known = sequences.where(F.col("as_of_date") <= F.lit(as_of))
    return known.withColumn("_age", F.row_number().over(newest)).where("_age = 1").drop("_age")


def catalogue(events: DataFrame, items: DataFrame, as_of: date) -> DataFrame:
    """item_id, text of what may be recommended on `as_of`; the events' items where none was ever known."""
    text = F.coalesce(F.nullif("text", F.lit("")), "title", "item_id")
    listed = known_items(items, as_of).select("item_id", text.alias("text"))
    any_item = items.where(F.col("valid_from") <= F.lit(as_of)).select(F.lit(1).alias("_one")).limit(1)
    unlisted = known_events(events, as_of).select("item_id").join(any_item, on=F.lit(True), how="left_anti")
    return listed.unionByName(unlisted.distinct().select("item_id", F.col("item_id").alias("text")))


def popular(events: DataFrame, as_of: date, days: int, weights: Mapping[str, float]) -> DataFrame:
    """item_id, score: share of the weighted events of the last `days` days; returns count against an item.

    Older events count a millionth: where the window is empty the score is the share of all time.
    """
    recent = F.date_diff(F.lit(as_of), "event_date") < days
    weight = F.col("weight") * F.when(recent, 1.0).otherwise(OLD)
    chosen = _weighted(known_events(events, as_of), weights)
    counted = chosen.groupBy("item_id").agg(_total(weight).alias("mass")).where("mass > 0")
    total = counted.agg(F.sum("mass").alias("total"))
    share = (F.col("mass") / F.col("total")).alias("score")
    return counted.crossJoin(F.broadcast(total)).select("item_id", share)


def shelf(popular: DataFrame, catalogue: DataFrame) -> DataFrame:
    """position (from 1), item_id, score: the catalogue by popularity; what nobody chose is last with 0."""
    order = F.struct((-F.coalesce("score", F.lit(0.0))).alias("minus"), F.col("item_id"))
    every = catalogue.select("item_id").join(popular, on="item_id", how="left")
    # One sorted array and not a window without partition: ids and shares of a million items are some 50 MB.
    placed = every.agg(F.sort_array(F.collect_list(order)).alias("all"))
    entries = placed.select(F.posexplode("all").alias("place", "entry"))
    return entries.select(
        (F.col("place") + 1).alias("position"),
        F.col("entry.item_id").alias("item_id"),
        (-F.col("entry.minus")).alias("score"),
    )


def fallback(popular: DataFrame, items: DataFrame, k: int) -> DataFrame:
    """rank, item_id, score: the `k` most popular of `items` (item_id), for everyone without a list."""
    top = shelf(popular, items).where(F.col("position") <= k)
    return top.select(F.col("position").alias("rank"), "item_id", "score")


def histories(events: DataFrame, as_of: date, weights: Mapping[str, float], kept: Sequence[str] = ()) -> DataFrame:
    """user_id, items, types, days (arrays, oldest first): each user's events as known on `as_of`.

    Events of weight 0 are left out unless their type is in `kept`; a day is in days since 1970-01-01, local.
    """
    told = event_columns(known_events(events, as_of), weights, kept)
    entry = F.struct("day", "event_id", "item_id", "event_type")
    rows = told.groupBy("user_id").agg(F.sort_array(F.collect_list(entry)).alias("e"))
    return rows.select(
        "user_id",
        F.col("e.item_id").alias("items"),
        F.col("e.event_type").alias("types"),
        F.col("e.day").alias("days"),
    )


def event_columns(events: DataFrame, weights: Mapping[str, float], kept: Sequence[str] = ()) -> DataFrame:
    """user_id, item_id, event_type, event_id, day (double, days since 1970-01-01, local), ingest (int).

    Events without an item are left out, and those of weight 0 unless their type is in `kept`.
    """
    types = sorted({name for name, weight in weights.items() if weight != 0} | set(kept))
    told = events.where((F.col("item_id") != "") & F.col("event_type").isin(types))
    second = F.hour("event_time") * 3600 + F.minute("event_time") * 60 + F.second("event_time")
    return told.select(
        "user_id",
        "item_id",
        "event_type",
        "event_id",
        (F.unix_date("event_date") + second / 86400.0).alias("day"),
        F.unix_date("ingest_date").alias("ingest"),
    )


def positive(weights: Mapping[str, float]) -> list[str]:
    """The event types that speak for an item: those of a weight above 0."""
    return [name for name, weight in weights.items() if weight > 0]


def _weighted(events: DataFrame, weights: Mapping[str, float]) -> DataFrame:
    """The events whose type has a weight, with it as column `weight`."""
    table = F.create_map(*(F.lit(part) for name, weight in weights.items() for part in (name, float(weight))))
    return events.withColumn("weight", table[F.col("event_type")]).where("weight is not null")


def _units(column: Column) -> Column:
    """A weight in whole units of the grid."""
    return F.round(column * GRID).cast("bigint")


def _total(column: Column) -> Column:
    """The sum of a weight in units of the grid: the same in whatever order the rows come."""
    return F.sum(_units(column))
