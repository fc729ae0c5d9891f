"""Which items are scored for a user: personal frequency, co-visitation and popularity as of the end of a day.

Every sum of weights is a sum of whole numbers on a grid of 1e-9: floating-point addition depends on the
order of the rows, and one bit is enough to turn a tie around between two runs of the same day.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from functools import reduce
from itertools import chain

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from lakerec.config import Candidates

SOURCES = ("personal", "covisit", "popular")
FILL = "catalogue"
VOICES = ("excluded", *SOURCES, FILL)
FEATURES = [f"{source}_{kind}" for source in SOURCES for kind in ("score", "reciprocal_rank")]

# Brings a typical score of each source to about 1 before log1p (an item's share of all events is about 1e-4).
SCALE = {"personal": 1.0, "covisit": 1e3, "popular": 1e4}
GRID = 1e9
HALF_LIFE_DAYS = 90.0
# Weight of an event before the popularity window: counts where the window is silent, breaks ties elsewhere.
OLD = 1e-6


def known_events(events: DataFrame, as_of: date) -> DataFrame:
    """The events of silver.events that arrived by the end of `as_of` and concern an item."""
    return events.where((F.col("ingest_date") <= F.lit(as_of)) & (F.col("item_id") != ""))


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


def covisitation(events: DataFrame, as_of: date, span: int, neighbours: int, weights: Mapping[str, float]) -> DataFrame:
    """item_id, neighbour, score: P(neighbour | item) among what was chosen up to `span` events behind it.

    An event at distance d counts its weight / d; types without a positive weight and the item itself are out.
    Cost: events x span pairs, whatever the length of a history.
    """
    chosen = _weighted(known_events(events, as_of), weights).where("weight > 0")
    ahead = Window.partitionBy("user_id").orderBy("event_time", "event_id").rowsBetween(1, span)
    following = F.collect_list(F.struct("item_id", "weight")).over(ahead)
    pairs = chosen.select("item_id", following.alias("following")).select(
        "item_id", F.posexplode("following").alias("distance", "other")
    )
    gain = _units(F.col("other.weight") / (F.col("distance") + 1)).alias("gain")
    steps = pairs.select("item_id", F.col("other.item_id").alias("neighbour"), gain).where("neighbour != item_id")
    # Most pairs are rare: adding up before the shuffle saves nothing, and one by item serves both steps.
    counted = steps.repartition("item_id").groupBy("item_id", "neighbour").agg(F.sum("gain").alias("mass"))
    return _strongest(counted, neighbours)


def _strongest(counted: DataFrame, neighbours: int) -> DataFrame:
    """The `neighbours` heaviest of each item, with their share of the item's whole mass."""
    of_item = Window.partitionBy("item_id")
    rank = F.row_number().over(of_item.orderBy(F.col("mass").desc(), "neighbour"))
    share = F.col("mass") / F.sum("mass").over(of_item)
    ranked = counted.select("item_id", "neighbour", share.alias("score"), rank.alias("rank"))
    return ranked.where(F.col("rank") <= neighbours).select("item_id", "neighbour", "score")


def personal(events: DataFrame, as_of: date, weights: Mapping[str, float]) -> DataFrame:
    """user_id, item_id, score: the user's own weighted events of the item, halved every 90 days; above 0."""
    age = F.greatest(F.date_diff(F.lit(as_of), "event_date"), F.lit(0))
    weight = F.col("weight") * F.pow(F.lit(0.5), age / HALF_LIFE_DAYS)
    own = _weighted(known_events(events, as_of), weights).groupBy("user_id", "item_id")
    return own.agg((_total(weight) / GRID).alias("score")).where("score > 0")


def follow_ups(sequences: DataFrame, neighbours: DataFrame, span: int, weights: Mapping[str, float]) -> DataFrame:
    """user_id, item_id, score (a row a path): what follows the last `span` events, the d-th last by 1 / d."""
    positive = [name for name, weight in weights.items() if weight > 0]
    event = F.arrays_zip("item_ids", "event_types")
    usable = F.filter(event, lambda e: (e["item_ids"] != "") & e["event_types"].isin(positive))
    last = F.slice(F.reverse(usable), 1, span)
    seeds = sequences.select("user_id", F.posexplode(last).alias("place", "seed")).select(
        "user_id", "place", F.col("seed.item_ids").alias("item_id")
    )
    score = F.col("score") / (F.col("place") + 1)
    return seeds.join(neighbours, on="item_id", how="inner").select(
        "user_id", F.col("neighbour").alias("item_id"), score.alias("score")
    )


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


def slates(
    events: DataFrame,
    sequences: DataFrame,
    items: DataFrame,
    as_of: date,
    settings: Candidates,
    weights: Mapping[str, float],
    excluded: DataFrame | None = None,
) -> DataFrame:
    """user_id, history, candidates array<struct<item_id, text, source, features>> per user of `sequences`.

    At most `per_user` items of the catalogue as of `as_of`, without the `excluded` pairs (user_id, item_id):
    the sources take turns by their ranks, and the catalogue by popularity fills up. Features as in FEATURES.
    The array's order is a hash of user and item: an item's place tells nothing of its rank.
    """
    users = latest_sequences(sequences, as_of)
    stock = catalogue(events, items, as_of)
    placed = shelf(popular(events, as_of, settings.popular_days, weights), stock)
    rows = [_from_shelf(users, placed, excluded, settings.per_user)]
    if excluded is not None:
        rows.append(_nominate(excluded, excluded=F.lit(1)))
    if "personal" in settings.sources:
        own = personal(events, as_of, weights).join(users.select("user_id"), on="user_id", how="left_semi")
        rows.append(_nominate(own, personal=_units(F.col("score"))))
    if "covisit" in settings.sources:
        close = covisitation(events, as_of, settings.covisit_span, settings.covisit_neighbours, weights)
        paths = follow_ups(users, close, settings.covisit_span, weights)
        rows.append(_nominate(paths, covisit=_units(F.col("score"))))
    return _assemble(_take_turns(_gather(rows, placed), settings), stock, users)


def _nominate(rows: DataFrame, **said: Column) -> DataFrame:
    """user_id, item_id and what is said of the pair: a bigint column per voice, the greater the better."""
    columns = (said.get(voice, F.lit(None)).cast("bigint").alias(voice) for voice in VOICES)
    return rows.select("user_id", "item_id", *columns)


def _from_shelf(users: DataFrame, placed: DataFrame, excluded: DataFrame | None, per_user: int) -> DataFrame:
    """The first places of the shelf for each user: `per_user` and as many as the user has exclusions."""
    depth: Column = F.lit(per_user)
    if excluded is not None:
        lost = excluded.groupBy("user_id").agg(F.count("*").cast("int").alias("lost"))
        users = users.join(lost, on="user_id", how="left")
        depth = depth + F.coalesce("lost", F.lit(0))
    places = users.select("user_id", F.explode(F.sequence(F.lit(1), depth)).alias("position"))
    offered = places.join(F.broadcast(placed), on="position", how="inner")
    place = -F.col("position")
    return _nominate(offered, popular=F.when(F.col("score") > 0, place), catalogue=place)


def _gather(rows: list[DataFrame], placed: DataFrame) -> DataFrame:
    """One row per user and item of the shelf that is not excluded: what each voice says (null: nothing)."""
    # The repartition is the only shuffle of these rows: what follows happens inside a user.
    pairs = reduce(DataFrame.unionByName, rows).repartition("user_id").groupBy("user_id", "item_id")
    gathered = pairs.agg(*(F.sum(voice).alias(voice) for voice in VOICES)).where("excluded is null")
    return gathered.join(F.broadcast(placed), on="item_id", how="inner")


def _take_turns(gathered: DataFrame, settings: Candidates) -> DataFrame:
    """The `per_user` items of each user that a source ranks best; sources take turns, the fill comes last."""
    heads = _heads([*settings.sources, FILL], gathered, settings.per_user)
    ranks = (F.min(F.when(F.col("source") == s, F.col("rank"))).alias(f"{s}_rank") for s in SOURCES)
    said = (F.first(name).alias(name) for name in ("personal", "covisit", "score", "position"))
    turn = F.min(F.struct(F.col("source") == FILL, "rank", "place", "source")).alias("turn")
    offered = heads.groupBy("user_id", "item_id").agg(turn, *ranks, *said)
    order = F.row_number().over(Window.partitionBy("user_id").orderBy("turn"))
    return offered.withColumn("order", order).where(F.col("order") <= settings.per_user)


def _heads(sources: list[str], gathered: DataFrame, per_user: int) -> DataFrame:
    """The first `per_user` items of each user and source, with the source, its place and the item's rank."""
    # One sort of rows by source, not one sort of all rows for each source: 5 s of processor instead of 20.
    by_source = F.stack(
        F.lit(len(sources)), *(part for i, s in enumerate(sources) for part in (F.lit(i), F.lit(s), F.col(s)))
    ).alias("place", "source", "said")
    best = Window.partitionBy("user_id", "source").orderBy(F.col("said").desc(), "item_id")
    rows = gathered.select("*", by_source).where("said is not null")
    return rows.withColumn("rank", F.row_number().over(best)).where(F.col("rank") <= per_user)


def _assemble(chosen: DataFrame, stock: DataFrame, users: DataFrame) -> DataFrame:
    """The slate of each user from the chosen items, their texts and the user's history."""
    place = F.xxhash64("user_id", "item_id").alias("place")
    entry = F.struct(place, "item_id", "text", F.col("turn.source").alias("source"), _features())
    told = chosen.join(stock, on="item_id", how="inner")
    collected = told.groupBy("user_id").agg(F.sort_array(F.collect_list(entry)).alias("entries"))
    candidates = F.transform("entries", lambda e: e.dropFields("place")).alias("candidates")
    history = users.select("user_id", F.col("text").alias("history"))
    return collected.join(history, on="user_id", how="inner").select("user_id", "history", candidates)


def _features() -> Column:
    """array<float> in the order of FEATURES: log1p of the scaled score, 1 / rank within the first `per_user`.

    0 where a source is silent.
    """
    on_shelf = F.col("score") > 0
    said = {
        "personal": (F.col("personal") / GRID, F.col("personal_rank")),
        "covisit": (F.col("covisit") / GRID, F.col("covisit_rank")),
        "popular": (F.col("score"), F.when(on_shelf, F.col("position"))),
    }
    pairs = ((F.log1p(said[s][0] * SCALE[s]), 1 / said[s][1]) for s in SOURCES)
    return F.array(*(F.coalesce(f, F.lit(0.0)).cast("float") for f in chain(*pairs))).alias("features")


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
