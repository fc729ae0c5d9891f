"""Catalogues with their history: items, users and the knowledge graph. Pure: DataFrame -> DataFrame."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from lakerec.config import Source

EVERYONE = "*"  # the user whose list is for whoever has none
ID_BYTES = 1000  # PostgreSQL indexes some 2,700
LONGEST = {"title": 1000, "query": 1000, "text": 20_000}  # characters


def source_columns(source: Source) -> list[Column]:
    """The payload's entries that a mapping reads, each as the column its expressions name."""
    return [F.col("payload")[F.lit(name)].alias(name) for name in source.source_columns()]


def observations(rows: DataFrame, source: Source, key: str) -> DataFrame:
    """What each day's files say of each key: the last row of the day that names it and has a text.

    A key is what PostgreSQL can hold and index; title and text are cut where no model reads on.
    Columns: the key, day, title (users: their text's), text, attributes (every other mapped column).
    """
    entries = source_columns(source)
    origin = [F.col(name).alias(f"_{name}") for name in ("ingest_date", "source_file", "row_number")]
    mapped = {name: F.expr(expression).cast("string") for name, expression in source.columns.items()}
    others = [name for name in mapped if name not in (key, "title", "text")]
    flat = rows.select(*origin, *entries).select(
        "_ingest_date", "_source_file", "_row_number", *[column.alias(name) for name, column in mapped.items()]
    )
    title, text = (cut(_or_null(flat, name), name) for name in ("title", "text"))
    said = F.struct(title, text, _attributes(others).alias("attributes"))
    last = F.max_by(said, F.struct("_source_file", "_row_number")).alias("said")
    named = flat.where(_usable(F.coalesce(F.col(key), F.lit("")))).where(F.coalesce(F.col("text"), F.lit("")) != "")
    daily = named.groupBy(F.col(key), F.col("_ingest_date").alias("day")).agg(last)
    return daily.select(key, "day", "said.title", "said.text", "said.attributes")


def _usable(key: Column) -> Column:
    """Whether an id is none of those that the rules no_user and unusable_id of silver.events refuse."""
    return ~key.isin("", EVERYONE) & (F.instr(key, "\0") == 0) & (F.octet_length(key) <= ID_BYTES)


def cut(text: Column, name: str) -> Column:
    """A text column under its name, as long as anything reads of it."""
    return F.substring(text, 1, LONGEST[name]).alias(name)


def _or_null(rows: DataFrame, name: str) -> Column:
    return F.col(name) if name in rows.columns else F.lit(None).cast("string").alias(name)


def _attributes(names: list[str]) -> Column:
    """The given columns as a map, without those that are null."""
    if not names:
        return F.map_from_arrays(F.array().cast("array<string>"), F.array().cast("array<string>"))
    pairs = F.array(*[F.struct(F.lit(n).alias("key"), F.col(n).alias("value")) for n in names])
    return F.map_from_entries(F.filter(pairs, lambda pair: pair["value"].isNotNull()))


def history(observed: DataFrame, key: str, snapshots: DataFrame | None = None) -> DataFrame:
    """Observations as versions with valid_from and valid_to (excluded; null while the version holds).

    `snapshots` (one column, day) are the days of full catalogues: a key absent from one is retired on that day.
    Without it (deltas) a version holds until another one comes.
    """
    hashed = observed.withColumn("content_hash", _content_hash())
    in_order = Window.partitionBy(key).orderBy("day")
    if snapshots is None:
        timed = hashed.withColumn("until", F.lead("day").over(in_order))
    else:
        # One row per snapshot: a window without partition is cheap here.
        following = F.lead("day").over(Window.partitionBy(F.lit(0)).orderBy("day"))
        timed = hashed.join(F.broadcast(snapshots.select("day", following.alias("until"))), on="day", how="left")
    same = F.lag("content_hash").over(in_order) == F.col("content_hash")
    adjacent = F.lag("until").over(in_order) == F.col("day")
    starts = F.when(F.coalesce(same & adjacent, F.lit(False)), 0).otherwise(1)
    so_far = in_order.rowsBetween(Window.unboundedPreceding, Window.currentRow)
    numbered = timed.withColumn("starts", starts).withColumn("version", F.sum("starts").over(so_far))
    versions = numbered.groupBy(key, "version").agg(
        F.min("day").alias("valid_from"),
        F.max_by("until", "day").alias("valid_to"),
        *[F.first(name).alias(name) for name in ("title", "text", "attributes", "content_hash")],
    )
    return versions.withColumn("first_seen", F.min("valid_from").over(Window.partitionBy(key))).drop("version")


def _content_hash() -> Column:
    """SHA-256 of title, text and the attributes in the order of their names."""
    entries = F.sort_array(F.map_entries("attributes"))
    return F.sha2(F.to_json(F.struct("title", "text", entries.alias("attributes"))), 256)


def item_history(observed: DataFrame, snapshots: DataFrame | None) -> DataFrame:
    """Item observations as rows of silver.items."""
    versions = history(observed, "item_id", snapshots)
    title = F.coalesce("title", "text")
    return versions.select(
        "item_id", "valid_from", "valid_to", title.alias("title"), "text", "attributes", "first_seen", "content_hash",
        F.sha2("text", 256).alias("text_hash"),
    )  # fmt: skip


def user_history(observed: DataFrame, snapshots: DataFrame | None) -> DataFrame:
    """User observations as rows of silver.users."""
    versions = history(observed, "user_id", snapshots)
    return versions.select("user_id", "valid_from", "valid_to", "text", "attributes", "first_seen", "content_hash")


def graph(triples: DataFrame, source: Source, relation: str | None = None) -> DataFrame:
    """Landed triples (or links from items to entities, under the given relation) as rows of silver.kg."""
    entries = source_columns(source)
    wide = triples.select(F.col("ingest_date").alias("_day"), *entries)
    names = ("item_id", "entity") if relation else ("head", "tail")
    head, tail = (F.expr(source.columns[name]).cast("string") for name in names)
    between = F.lit(relation) if relation else F.expr(source.columns["relation"]).cast("string")
    flat = wide.select(head.alias("head"), between.alias("relation"), tail.alias("tail"), "_day")
    whole = flat.where(F.col("head").isNotNull() & F.col("relation").isNotNull() & F.col("tail").isNotNull())
    return whole.groupBy("head", "relation", "tail").agg(F.min("_day").alias("first_seen"))
