"""Behaviour sequences: for each user and active day, the last L events known by the end of that day. Pure."""

from __future__ import annotations

from datetime import date

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from lakerec.config import Config
from lakerec.prompts import history_text

# What an event with neither item nor search is told of: its day and type still count.
UNNAMED = "something"


def sequences(events: DataFrame, items: DataFrame, config: Config, since: date) -> DataFrame:
    """Rows of ml.sequences with as_of_date >= `since`, from silver.events and silver.items.

    The last L events are those with ingest_date <= as_of_date in the order (ingest_date, event_time, event_id);
    they are shown in event_time order. An item is told by its title as of the day its event landed.
    """
    length = config.sequence.length
    mine = events.where(F.col("event_type").isin(sequence_types(config)))
    active = mine.where(F.col("ingest_date") >= F.lit(since)).select("user_id").distinct()
    told = titled(mine.join(active, on="user_id", how="left_semi"), items)
    daily = _by_arrival(told, length)
    in_order = Window.partitionBy("user_id").orderBy("ingest_date")
    # Each earlier day holds at least one event, so L days hold the last L events.
    known = F.flatten(F.collect_list("arrived").over(in_order.rowsBetween(1 - length, Window.currentRow)))
    total = F.sum("count").over(in_order.rowsBetween(Window.unboundedPreceding, Window.currentRow))
    latest = F.sort_array(_last(known, length))
    built = daily.select("user_id", "ingest_date", latest.alias("shown"), total.alias("events"))
    return built.where(F.col("ingest_date") >= F.lit(since)).select(
        F.col("ingest_date").alias("as_of_date"),
        "user_id",
        F.col("shown.item_id").alias("item_ids"),
        F.col("shown.event_type").alias("event_types"),
        F.col("shown.event_time").alias("event_times"),
        F.col("shown.value").alias("values"),
        history_text(F.col("shown"), config.sequence.verbs).alias("text"),
        "events",
    )


def sequence_types(config: Config) -> list[str]:
    """The event types that sequences tell: those configured, else every type with a weight."""
    return config.sequence.types or [kind for kind, weight in config.event_types.items() if weight]


def titled(events: DataFrame, items: DataFrame) -> DataFrame:
    """Events with `title`: the item's as of the day the event landed, else the search's text, else the item's id."""
    names = items.select(F.col("item_id").alias("of"), F.col("title").alias("name"), "valid_from", "valid_to")
    holds = (F.col("valid_from") <= F.col("ingest_date")) & (
        F.col("valid_to").isNull() | (F.col("valid_to") > F.col("ingest_date"))
    )
    joined = events.join(names, on=(F.col("item_id") == F.col("of")) & holds, how="left")
    return joined.select(*events.columns, F.coalesce("name", "query", "item_id", F.lit(UNNAMED)).alias("title"))


def _by_arrival(events: DataFrame, length: int) -> DataFrame:
    """One row per user and ingest day: its last `length` events in (event_time, event_id) order, and how many."""
    event = F.struct("event_time", "event_id", "item_id", "event_type", "value", "title")
    ordered = F.sort_array(F.collect_list(event))
    return events.groupBy("user_id", "ingest_date").agg(
        _last(ordered, length).alias("arrived"), F.count(F.lit(1)).alias("count")
    )


def _last(array: Column, length: int) -> Column:
    """The last `length` elements of an array."""
    return F.slice(array, F.greatest(F.size(array) - length + 1, F.lit(1)), length)
