"""Behaviour patterns: users' encoded sequence texts in clusters, named by what sets each apart. Pure.

What decides an order or a tie is a whole number or rounded: the order of the rows must not show.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
from pyspark import StorageLevel
from pyspark.ml.clustering import KMeans
from pyspark.ml.evaluation import ClusteringEvaluator
from pyspark.ml.functions import array_to_vector
from pyspark.ml.stat import Summarizer
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DoubleType, StringType, StructField, StructType

from lakerec.candidates import GRID, OLD, known_events, latest_sequences, positive
from lakerec.config import Config, Patterns
from lakerec.prompts import SEPARATOR
from lakerec.scoring import BatchFunction

# English text of behaviour has so many words for each token of a BERT-like model (online-retail: 48 words, 62 tokens).
WORDS_PER_TOKEN = 0.75
# A task's texts make one batch of Spark and a fixed number of tasks: what a text is encoded with follows from the data.
TEXTS_PER_TASK = 400
# The day of an event is no taste: with days in the text users are alike who came at the same time.
DAY_OF_EVENTS = rf"(^|{SEPARATOR})\d{{4}}-\d{{2}}-\d{{2}} "
WORD = r"\p{L}{3,}"
STOP = ("and", "for", "from", "the", "with")
# A pattern's shares are drawn towards everybody's as if so many average users were members.
PRIOR_USERS = 5
# An item that sets a pattern apart was chosen by 2 % of its members, and by 3 of them (by all, if they are fewer).
MIN_ITEM_USERS, MIN_ITEM_SHARE = 3, 0.02
TERMS, ITEMS, POPULAR = 10, 20, 100
NAME_TERMS, JOINT = 3, " · "
POPULAR_TYPE = "array<struct<item_id: string, score: double>>"


@dataclass(frozen=True)
class Known:
    """What is known by the end of a day.

    sequences: user_id, text, item_ids, event_types (a row a user); titles: item_id, title; events: silver.events
    that concern an item.
    """

    sequences: DataFrame
    titles: DataFrame
    events: DataFrame


@dataclass(frozen=True)
class Clusters:
    """Unit centres, and the silhouette of the users they were fitted on; None where there is one centre."""

    centres: list[list[float]]
    silhouette: float | None


def known(events: DataFrame, sequences: DataFrame, items: DataFrame, as_of: date) -> Known:
    """silver.events, ml.sequences and silver.items as of the end of a day; a retired item keeps its last title."""
    latest = latest_sequences(sequences, as_of).select("user_id", "text", "item_ids", "event_types")
    told = items.where(F.col("valid_from") <= F.lit(as_of))
    titles = told.groupBy("item_id").agg(F.max_by("title", "valid_from").alias("title"))
    return Known(latest, titles, known_events(events, as_of))


def settings_text(config: Config, model_id: str) -> str:
    """What of the configuration the patterns follow from."""
    own = config.patterns.model_dump_json(exclude={"enabled"})
    return f"{own} {sorted(config.event_types.items())} {config.candidates.popular_days} {model_id}"


def fingerprint(given: Known, settings: str) -> str:
    """16 hex digits of all that a day's patterns follow from; `settings` tells configuration and model."""
    told = [
        given.sequences.select(F.xxhash64("user_id", "text", "item_ids", "event_types").alias("hash")),
        given.titles.select(F.xxhash64("item_id", "title").alias("hash")),
        given.events.select(F.xxhash64("event_id", "user_id", "item_id", "event_type", "event_date").alias("hash")),
    ]
    parts = [frame.agg(F.lit(n).alias("part"), F.bit_xor("hash"), F.count("*")) for n, frame in enumerate(told)]
    rows = sorted(tuple(row) for row in reduce(DataFrame.unionByName, parts).collect())
    return hashlib.sha256(f"{settings} {rows}".encode()).hexdigest()[:16]


def texts(sequences: DataFrame, tokens: int) -> DataFrame:
    """user_id, text_hash, text: the last events of a sequence, about `tokens` tokens, without their days."""
    limit = max(1, int(tokens * WORDS_PER_TOKEN))
    words = F.split(F.regexp_replace(F.coalesce("text", F.lit("")), DAY_OF_EVENTS, "$1"), " ")
    last = F.array_join(F.slice(words, F.greatest(F.size(words) - limit + 1, F.lit(1)), limit), " ")
    # A cut inside an event leaves its end: the text begins with the next one, if there is one.
    whole = F.when(F.size(words) > limit, F.regexp_replace(last, f"^.*?{SEPARATOR}", "")).otherwise(last)
    return sequences.select("user_id", F.sha2(whole, 256).alias("text_hash"), whole.alias("text"))


def vectors(told: DataFrame, encode: BatchFunction, users: int) -> DataFrame:
    """user_id, text_hash, vector from texts; each distinct text is encoded once, by 1 + users / 400 tasks."""
    tasks = 1 + users // TEXTS_PER_TASK
    distinct = told.select("text_hash", "text").distinct()
    # How a text is padded shows in the last bits of its vector: its batch is made in a fixed order.
    ordered = distinct.repartition(tasks, "text_hash").sortWithinPartitions("text_hash")
    encoded = ordered.mapInPandas(encode, _encoded())
    return told.join(encoded, on="text_hash", how="inner").select("user_id", "text_hash", "vector")


def _encoded() -> StructType:
    # Doubles that cannot be null: else Spark casts and checks element by element, interpreted, a microsecond each.
    vector = StructField("vector", ArrayType(DoubleType(), containsNull=False))
    return StructType([StructField("text_hash", StringType()), vector])


def fitted(vectors: DataFrame, settings: Patterns) -> Clusters:
    """K-means by cosine on at most `max_users` users drawn by hash; k is that of the best silhouette.

    A k needs twice as many distinct texts; where no k has them there is one pattern.
    """
    drawn = vectors.orderBy(F.xxhash64(F.lit(settings.seed), "user_id"), "user_id").limit(settings.max_users)
    # k-means|| draws by partition, and sums in the order of the rows: one partition, sorted.
    ordered = drawn.repartition(1).sortWithinPartitions("user_id")
    features = array_to_vector(F.col("vector")).alias("features")
    sample = ordered.select("text_hash", features).persist(StorageLevel.MEMORY_AND_DISK)
    try:
        distinct = sample.select("text_hash").distinct().count()
        fits = [_fit(sample, k, settings.seed) for k in sorted(set(settings.ks)) if 2 * k <= distinct]
        told = [fit for fit in fits if fit.silhouette is not None]
        return max(told, key=lambda fit: (fit.silhouette, -len(fit.centres))) if told else _single(sample)
    finally:
        sample.unpersist()


def _fit(sample: DataFrame, k: int, seed: int) -> Clusters:
    """One k; without a silhouette where all users fall into one cluster."""
    # KMeans checks every number, interpreted, at each pass over a frame that is cached; any other it caches checked.
    model = KMeans(k=k, seed=seed, distanceMeasure="cosine", featuresCol="features").fit(sample.select("features"))
    judge = ClusteringEvaluator(distanceMeasure="cosine", featuresCol="features")
    apart = sum(size > 0 for size in model.summary.clusterSizes) > 1
    value = round(float(judge.evaluate(model.transform(sample))), 6) if apart else None
    return Clusters([[float(x) for x in centre] for centre in model.clusterCenters()], value)


def _single(sample: DataFrame) -> Clusters:
    """Everybody in one pattern around the mean."""
    row = sample.select(Summarizer.mean(F.col("features")).alias("mean")).first()
    mean = [float(x) for x in row["mean"]] if row else []
    length = sum(x * x for x in mean) ** 0.5 or 1.0
    return Clusters([[x / length for x in mean]], None)


def nearest(vectors: DataFrame, clusters: Clusters) -> DataFrame:
    """user_id, cluster (place of the nearest centre), similarity (cosine to it) of every user."""
    centres = np.asarray(clusters.centres)

    def place(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for frame in frames:
            # einsum and not a matrix product: that rounds by the size of the batch.
            cosines = np.einsum("nd,kd->nk", np.stack([*frame["vector"]]), centres)
            found = {"cluster": cosines.argmax(axis=1), "similarity": cosines.max(axis=1)}
            yield pd.DataFrame({"user_id": frame["user_id"], **found})

    rows = vectors.select("user_id", "vector")
    return rows.mapInPandas(place, "user_id string, cluster int, similarity float")


def centres(placed: DataFrame, clusters: Clusters) -> DataFrame:
    """cluster, pattern_id, centre, users, share: 0 is the pattern of most users, then by the centre; none is empty."""
    users = {row["cluster"]: row["count"] for row in placed.groupBy("cluster").count().collect()}
    order = sorted(users, key=lambda cluster: (-users[cluster], clusters.centres[cluster]))
    total = sum(users.values())
    rows = [(c, n, clusters.centres[c], users[c], users[c] / total) for n, c in enumerate(order)]
    frame = pd.DataFrame(rows, columns=["cluster", "pattern_id", "centre", "users", "share"])
    schema = "cluster int, pattern_id int, centre array<float>, users bigint, share double"
    return placed.sparkSession.createDataFrame(frame, schema)


def assigned(placed: DataFrame, centres: DataFrame) -> DataFrame:
    """user_id, pattern_id, similarity of every user."""
    numbers = F.broadcast(centres.select("cluster", "pattern_id"))
    return placed.join(numbers, on="cluster", how="inner").select("user_id", "pattern_id", "similarity")


def user_patterns(assigned: DataFrame, as_of: date) -> DataFrame:
    """Rows of ml.user_patterns."""
    return assigned.select(F.lit(as_of).alias("as_of_date"), "user_id", "pattern_id", "similarity")


def behaviour_patterns(
    assigned: DataFrame, centres: DataFrame, given: Known, config: Config, as_of: date, told: Mapping[str, Any]
) -> DataFrame:
    """Rows of ml.behaviour_patterns; `told`: its columns silhouette, model_id and fingerprint."""
    chosen = choices(given.sequences, assigned, config.event_types)
    words, things = terms(chosen, given.titles), items(chosen)
    best = popular(given.events, assigned, as_of, config.candidates.popular_days, config.event_types)
    rows = centres
    for lists in (words, things, best):
        rows = rows.join(lists, on="pattern_id", how="left")
    empty = F.array()
    return rows.select(
        F.lit(as_of).alias("as_of_date"),
        "pattern_id",
        _name().alias("name"),
        F.coalesce("terms", empty.cast("array<string>")).alias("terms"),
        F.coalesce("items", empty.cast("array<string>")).alias("items"),
        F.coalesce("popular", empty.cast(POPULAR_TYPE)).alias("popular"),
        "users",
        "share",
        F.lit(told["silhouette"]).cast("double").alias("silhouette"),
        F.count("*").over(Window.partitionBy(F.lit(0))).cast("int").alias("k"),
        "centre",
        F.lit(told["model_id"]).alias("model_id"),
        F.lit(told["fingerprint"]).alias("fingerprint"),
    )


def _name() -> Column:
    """The first terms, else the first items, else the number."""
    lists = (F.array_join(F.slice(name, 1, NAME_TERMS), JOINT) for name in ("terms", "items"))
    return F.coalesce(*(F.nullif(text, F.lit("")) for text in lists), F.concat(F.lit("pattern "), "pattern_id"))


def choices(sequences: DataFrame, assigned: DataFrame, weights: Mapping[str, float]) -> DataFrame:
    """user_id, pattern_id, item_id: a row an event of a sequence that concerns an item and weighs more than 0."""
    event = F.explode(F.arrays_zip("item_ids", "event_types")).alias("event")
    shown = sequences.join(assigned, on="user_id", how="inner").select("user_id", "pattern_id", event)
    usable = (F.col("event.item_ids") != "") & F.col("event.event_types").isin(positive(weights))
    return shown.where(usable).select("user_id", "pattern_id", F.col("event.item_ids").alias("item_id"))


def terms(choices: DataFrame, titles: DataFrame) -> DataFrame:
    """pattern_id, terms: the words of titles with the greatest share * log(lift), strongest first."""
    named = choices.join(titles, on="item_id", how="left").withColumn("title", F.coalesce("title", "item_id"))
    words = F.array_distinct(F.regexp_extract_all(F.lower("title"), F.lit(WORD), F.lit(0)))
    said = named.select("user_id", "pattern_id", F.explode(words).alias("thing")).where(~F.col("thing").isin(*STOP))
    strength = F.round(F.col("share") * F.log("lift"), 9)
    return _first(lifts(said), [strength, F.col("share")], TERMS, "terms")


def items(choices: DataFrame) -> DataFrame:
    """pattern_id, items: those with the greatest lift among what enough members chose."""
    found = lifts(choices.select("user_id", "pattern_id", F.col("item_id").alias("thing")))
    enough = F.greatest(F.lit(MIN_ITEM_USERS), F.ceil(F.col("members") * MIN_ITEM_SHARE))
    supported = found.where(F.col("users") >= F.least("members", enough))
    return _first(supported, [F.round("lift", 6), F.col("share")], ITEMS, "items")


def lifts(said: DataFrame) -> DataFrame:
    """pattern_id, thing, users, members, share, lift from user_id, pattern_id, thing (a row an occurrence).

    Each user weighs 1, spread over what they chose. share: the thing's in the pattern, drawn towards everybody's
    by 5 users; lift: share / everybody's.
    """
    of_user = Window.partitionBy("user_id")
    counted = said.groupBy("user_id", "pattern_id", "thing").agg(F.count("*").alias("n"))
    units = counted.withColumn("unit", F.round(F.col("n") / F.sum("n").over(of_user) * GRID).cast("bigint"))
    cells = units.groupBy("pattern_id", "thing").agg(F.sum("unit").alias("mass"), F.count("*").alias("users"))
    patterns = units.groupBy("pattern_id").agg(
        F.sum("unit").alias("whole"), F.countDistinct("user_id").alias("members")
    )
    total = units.agg(F.sum("unit").alias("all"))
    base = F.sum("mass").over(Window.partitionBy("thing")) / F.col("all")
    joined = cells.join(F.broadcast(patterns), on="pattern_id", how="inner").crossJoin(F.broadcast(total))
    prior = PRIOR_USERS * GRID
    share = (F.col("mass") + prior * F.col("base")) / (F.col("whole") + prior)
    shared = joined.withColumn("base", base).withColumn("share", share)
    lift = (F.col("share") / F.col("base")).alias("lift")
    return shared.select("pattern_id", "thing", "users", "members", "share", lift)


def _first(found: DataFrame, best: Sequence[Column], limit: int, name: str) -> DataFrame:
    """pattern_id and the first `limit` things of lift >= 1 as array `name`: by `best` descending, then by the thing."""
    found = found.where(F.round("lift", 6) >= 1)
    entry = F.struct(*((-column).alias(f"by{n}") for n, column in enumerate(best)), "thing")
    ordered = found.groupBy("pattern_id").agg(F.sort_array(F.collect_list(entry)).alias("entries"))
    return ordered.select("pattern_id", F.slice(F.col("entries.thing"), 1, limit).alias(name))


def popular(events: DataFrame, assigned: DataFrame, as_of: date, days: int, weights: Mapping[str, float]) -> DataFrame:
    """pattern_id, popular array<struct<item_id, score>>: as candidates.popular, among the pattern's users."""
    table = F.create_map(*(F.lit(part) for name, weight in weights.items() for part in (name, float(weight))))
    recent = F.date_diff(F.lit(as_of), "event_date") < days
    units = F.round(table[F.col("event_type")] * F.when(recent, 1.0).otherwise(OLD) * GRID).cast("bigint")
    mine = events.join(assigned.select("user_id", "pattern_id"), on="user_id", how="inner")
    counted = mine.groupBy("pattern_id", "item_id").agg(F.sum(units).alias("mass")).where("mass > 0")
    share = F.col("mass") / F.sum("mass").over(Window.partitionBy("pattern_id"))
    entry = F.struct((-F.col("share")).alias("minus"), "item_id")
    shared = counted.withColumn("share", share).groupBy("pattern_id")
    ordered = shared.agg(F.slice(F.sort_array(F.collect_list(entry)), 1, POPULAR).alias("entries"))
    told = F.transform("entries", lambda e: F.struct(e["item_id"].alias("item_id"), (-e["minus"]).alias("score")))
    return ordered.select("pattern_id", told.alias("popular"))


def pattern_popular(user_patterns: DataFrame, behaviour_patterns: DataFrame, as_of: date) -> DataFrame:
    """user_id, item_id, score: what is popular in each user's pattern, by the newest patterns known on `as_of`."""
    before = behaviour_patterns.where(F.col("as_of_date") <= F.lit(as_of))
    newest = before.agg(F.max("as_of_date").alias("as_of_date"))
    shelf = before.join(newest, on="as_of_date", how="left_semi").select(
        "as_of_date", "pattern_id", F.explode("popular").alias("entry")
    )
    mine = user_patterns.select("as_of_date", "user_id", "pattern_id")
    return mine.join(shelf, on=["as_of_date", "pattern_id"], how="inner").select(
        "user_id", F.col("entry.item_id").alias("item_id"), F.col("entry.score").alias("score")
    )
