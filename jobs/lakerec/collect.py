"""From the lake's tables to a World: the columns that are read, and their collection on the driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lakerec.candidates import event_columns, histories, known_items, positive, searchers
from lakerec.config import Config
from lakerec.generators.popularity import PATTERN_DAYS, DailyCounts
from lakerec.lake import Lake
from lakerec.policy import excluded
from lakerec.scorer.base_model import model_id
from lakerec.slices import SEARCHED
from lakerec.world import World, day_number, end_of, world

if TYPE_CHECKING:
    from lakerec.scorer.serving_day import ShelfOfDay

INPUTS = (
    "silver.events",
    "ml.sequences",
    "silver.items",
    "silver.kg",
    "ml.item_embeddings",
    "ml.user_patterns",
    "silver.users",
)
READ = ("user_id", "history", "items", "types", "days", "taken", "pattern", "profile")


def item_columns(items: DataFrame) -> DataFrame:
    """item_id, valid_from, valid_to, first_seen (ints), text_hash, price, attributes of every version of an item."""
    price = F.try_element_at("attributes", F.lit("price")).try_cast("double").alias("price")
    days = (F.unix_date(name).alias(name) for name in ("valid_from", "valid_to", "first_seen"))
    told = F.coalesce(F.nullif("text", F.lit("")), "title", "item_id").alias("told")
    return items.orderBy("item_id", "valid_from").select("item_id", *days, "text_hash", told, price, "attributes")


def collect(
    lake: Lake,
    config: Config,
    as_of: date,
    base: Sequence[str] = (),
    base_nodes: Sequence[str] = (),
    versions: Mapping[str, int] | None = None,
    base_kinds: Sequence[str] = (),
) -> World:
    """Everything known by the end of `as_of`, of the tables' pinned `versions`; items coded behind those of `base`.

    Nodes and event types likewise.
    """
    pinned = versions or {}
    events, items, triples, embeddings, patterns, users = (
        lake.read(name, pinned.get(name)) for name in INPUTS if name != "ml.sequences"
    )
    known = F.col("ingest_date") <= F.lit(as_of)
    told = item_columns(items.where(F.col("valid_from") <= F.lit(as_of))).toPandas()
    return world(
        _in_order(event_columns(events.where(known), config.event_types, config.policy.filter_types)).toPandas(),
        told,
        _vectors(embeddings, config.scorer.model, items, profile_columns(users)),
        _triples(triples, as_of).toPandas(),
        config.event_types,
        base,
        base_nodes,
        _patterns(patterns, as_of).toPandas(),
        profile_columns(users.where(F.col("valid_from") <= F.lit(as_of))).toPandas(),
        base_kinds,
    )


def profile_columns(users: DataFrame) -> DataFrame:
    """user_id, valid_from, valid_to (ints), text_hash, text of the profiles that have a text."""
    told = users.where(F.coalesce("text", F.lit("")) != "").orderBy("user_id", "valid_from")
    days = (F.unix_date(name).alias(name) for name in ("valid_from", "valid_to"))
    return told.select("user_id", *days, F.sha2("text", 256).alias("text_hash"), "text")


def shelf_of_day(
    lake: Lake,
    config: Config,
    day: date,
    base: Sequence[str],
    base_nodes: Sequence[str],
    pattern_days: float = PATTERN_DAYS,
) -> ShelfOfDay:
    """What the workers need to know of a day's catalogue, items coded behind those of a model.

    `pattern_days`: how far back the model counts what a behaviour pattern chooses.
    """
    from lakerec.scorer.serving_day import ShelfOfDay, pattern_shares

    events, items, triples, embeddings = (
        lake.read(name) for name in ("silver.events", "silver.items", "silver.kg", "ml.item_embeddings")
    )
    counts = _daily_counts(events, day, config)
    told = item_columns(items.where(F.col("valid_from") <= F.lit(day))).toPandas()
    vectors = _vectors(embeddings, config.scorer.model, items)
    found = world(counts, told, vectors, _triples(triples, day).toPandas(), config.event_types, base, base_nodes)
    codes = found.item_codes
    some = counts["chosen"] > 0
    daily = DailyCounts.of_counts(found.events["item"][some], counts["day"][some], counts["chosen"][some], len(codes))
    return ShelfOfDay(
        items=[str(item) for item in found.items],
        texts=[str(text) for text in found.texts(day)],
        shelf=found.shelf(day),
        stock=found.stock(day, daily),
        on_shelf=found.on_shelf(day),
        patterns=pattern_shares(_pattern_counts(lake, config, day, pattern_days), codes, len(codes)),
        weights=dict(config.event_types),
        kinds=found.kinds,
        at=end_of(day),
    )


def _daily_counts(events: DataFrame, day: date, config: Config) -> pd.DataFrame:
    """item_id, day, chosen (events of a positive weight), and the columns of an event: a row an item and day."""
    types = sorted(positive(config.event_types))
    known = events.where(F.col("ingest_date") <= F.lit(day))
    told = event_columns(known, config.event_types, config.policy.filter_types)
    chosen = F.count_if(F.col("event_type").isin(types)).alias("chosen")
    rows = told.groupBy("item_id", F.floor("day").cast("double").alias("day")).agg(chosen)
    found: pd.DataFrame = rows.orderBy("item_id", "day").toPandas()
    return found.assign(user_id="*", event_type=types[0] if types else "", ingest=found["day"].astype(int))


def _pattern_counts(lake: Lake, config: Config, day: date, days: float) -> dict[int, dict[str, int]]:
    """Choices of each item among the users of each pattern in the last `days` days, as PatternPopular counts them."""
    if not lake.exists("ml.user_patterns"):
        return {}
    events = lake.read("silver.events").where(F.col("ingest_date") <= F.lit(day))
    recent = F.col("event_type").isin(positive(config.event_types)) & (F.col("day") >= end_of(day) - days)
    chosen = event_columns(events, config.event_types).where(recent)
    counted = chosen.join(patterns_on(lake, day), on="user_id", how="inner").groupBy("pattern", "item_id").count()
    found: dict[int, dict[str, int]] = {}
    for row in counted.collect():
        found.setdefault(row["pattern"], {})[row["item_id"]] = row["count"]
    return found


def readings(
    lake: Lake, config: Config, day: date, due: DataFrame, events: DataFrame, sequences: DataFrame
) -> DataFrame:
    """The columns READ of each user who is due: text, events, what is not to be shown, pattern, profile."""
    filtered = config.policy.filter_types
    mine = events.join(due, on="user_id", how="left_semi")
    known = sequences.where(F.col("as_of_date") <= F.lit(day))
    # max_by is summed up where a file is read: a window would shuffle the texts of every day of everybody.
    told = known.groupBy("user_id").agg(F.max_by("text", "as_of_date").alias("history"))
    taken = excluded(mine, day, filtered).groupBy("user_id").agg(F.collect_set("item_id").alias("taken"))
    rows = due.join(histories(mine, day, config.event_types, filtered), on="user_id", how="left")
    for other in (told, taken, patterns_on(lake, day), profiles_on(lake, day, config)):
        rows = rows.join(other, on="user_id", how="left")
    return rows.select(*READ)


def patterns_on(lake: Lake, day: date) -> DataFrame:
    """user_id, pattern: everyone's place in the newest patterns known on `day`."""
    known = lake.read("ml.user_patterns").where(F.col("as_of_date") <= F.lit(day))
    newest = known.agg(F.max("as_of_date").alias("newest"))
    rows = known.join(F.broadcast(newest), on=F.col("as_of_date") == F.col("newest"), how="inner")
    return rows.select("user_id", F.col("pattern_id").alias("pattern"))


def profiles_on(lake: Lake, day: date, config: Config) -> DataFrame:
    """user_id, profile: the text vector of each profile that holds on `day`."""
    number = day_number(day)
    held = (F.col("valid_from") <= number) & (F.col("valid_to").isNull() | (F.col("valid_to") > number))
    told = profile_columns(lake.read("silver.users")).where(held)
    mine = lake.read("ml.item_embeddings").where(F.col("model_id") == model_id(config.scorer.model))
    found = told.join(mine, on="text_hash", how="inner")
    return found.select("user_id", F.col("vector").alias("profile"))


def groups_of_users(
    lake: Lake, attributes: Sequence[str], day: date, versions: Mapping[str, int]
) -> dict[str, dict[str, str]]:
    """Users by the value of each attribute on a day, and those who had searched by it, of the pinned `versions`."""
    name, value = SEARCHED
    searched = searchers(lake.read("silver.events", versions.get("silver.events")), day)
    told = {name: searched.select("user_id", F.lit(value).alias("value"))}
    if attributes:
        users = known_items(lake.read("silver.users", versions.get("silver.users")), day)
        values = {name: F.col("attributes")[F.lit(name)].alias("value") for name in attributes}
        told |= {name: users.select("user_id", value) for name, value in values.items()}
    return {name: {row["user_id"]: row["value"] for row in rows.collect()} for name, rows in told.items()}


def strangers(lake: Lake, day: date, known: DataFrame) -> DataFrame:
    """user_id, as_of_date (the day they were first seen) of who has a profile on `day` and no event known yet."""
    rows = known_items(lake.read("silver.users"), day).where(F.coalesce("text", F.lit("")) != "")
    found = rows.join(known, on="user_id", how="left_anti")
    return found.select("user_id", F.col("first_seen").alias("as_of_date"))


def _in_order(events: DataFrame) -> DataFrame:
    """In a total order: what is fitted must not depend on how Spark cut the rows."""
    told = events.orderBy("day", "user_id", "event_id")
    return told.select("user_id", "item_id", "event_type", "day", "ingest")


def _vectors(embeddings: DataFrame, model: str, *told: DataFrame) -> dict[str, NDArray[np.float32]]:
    """The vectors of all texts of some frames, by text_hash."""
    wanted = reduce(DataFrame.unionByName, [rows.select("text_hash") for rows in told])
    mine = embeddings.where(F.col("model_id") == model_id(model))
    found = mine.join(wanted, on="text_hash", how="left_semi").orderBy("text_hash")
    rows: pd.DataFrame = found.select("text_hash", "vector").toPandas()
    pairs = zip(rows["text_hash"], rows["vector"], strict=True)
    return {name: np.asarray(vector, dtype=np.float32) for name, vector in pairs} or _no_text(mine)


def _no_text(vectors: DataFrame) -> dict[str, NDArray[np.float32]]:
    """Where no text has a vector, the zeros of one: an item's and a profile's are of one length."""
    one = vectors.select(F.size("vector").alias("size")).first()
    return {"": np.zeros(one["size"], dtype=np.float32)} if one else {}


def _triples(graph: DataFrame, as_of: date) -> DataFrame:
    known = graph.where(F.col("first_seen") <= F.lit(as_of)).orderBy("head", "relation", "tail")
    return known.select("head", "relation", "tail", F.unix_date("first_seen").alias("since"))


def _patterns(patterns: DataFrame, as_of: date) -> DataFrame:
    known = patterns.where(F.col("as_of_date") <= F.lit(as_of)).orderBy("as_of_date", "user_id")
    return known.select("user_id", F.unix_date("as_of_date").alias("day"), "pattern_id")
