"""From scored candidates to top-K lists, and who is due one."""

from __future__ import annotations

from datetime import date

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from lakerec.errors import NotEnoughDataError
from lakerec.features import FILL
from lakerec.items import EVERYONE


def due_users(active: DataFrame, lists: DataFrame, as_of: date, model_version: str, window: str = "false") -> DataFrame:
    """user_id of those whose newest list before `as_of` is missing, of another model, or older than their activity.

    `active` says who was active (or, without events, first seen) on which day up to `as_of`; `lists` are the rows of
    gold.recommendations. Who was active in the `window` (an SQL predicate) is due, too: its days may have been
    delivered anew. What `as_of` itself holds does not count, so that a day scored twice is the same.
    """
    before = lists.where((F.col("as_of_date") < F.lit(as_of)) & (F.col("rank") == 1))
    newest = before.groupBy("user_id").agg(
        F.max_by("model_version", "as_of_date").alias("by"), F.max("as_of_date").alias("made")
    )
    lately = active.groupBy("user_id").agg(F.max("as_of_date").alias("active"))
    fresh = (F.col("by") == model_version) & (F.col("made") >= F.col("active"))
    stale = lately.join(newest, on="user_id", how="left").where(~F.coalesce(fresh, F.lit(False))).select("user_id")
    return stale.union(active.where(window).select("user_id")).distinct()


def due_on(active: DataFrame, day: date, same_model: bool) -> DataFrame:
    """user_id of who was active on the day, or everybody where the model differs from the day before's.

    That follows from sequences and promotions alone, in whatever order days are scored.
    """
    return (active.where(F.col("as_of_date") == F.lit(day)) if same_model else active).select("user_id").distinct()


def top_k(scored: DataFrame, k: int) -> DataFrame:
    """The `k` best of each user with `rank` from 1: by score (as stored, float32), ties by item_id."""
    stored = scored.withColumn("score", F.col("score").cast("float"))
    best = Window.partitionBy("user_id").orderBy(F.col("score").desc(), "item_id")
    return stored.withColumn("rank", F.row_number().over(best)).where(F.col("rank") <= k)


def for_everyone(fallback: DataFrame) -> DataFrame:
    """The popular list (rank, item_id, score) as the list of user `*`."""
    user = F.lit(EVERYONE).alias("user_id")
    source = F.when(F.col("score") > 0, "trending").otherwise(FILL).alias("source")
    return fallback.select(user, "rank", "item_id", "score", source)


def recommendations(ranked: DataFrame, as_of: date, model_version: str, run_id: str, popular_days: int) -> DataFrame:
    """Rows of gold.recommendations from user_id, rank, item_id, score, source."""
    return ranked.select(
        F.lit(as_of).alias("as_of_date"),
        "user_id",
        F.col("rank").cast("int").alias("rank"),
        "item_id",
        F.col("score").cast("float").alias("score"),
        "source",
        # No exploration: the list is shown as it is ranked.
        F.lit(1.0).cast("float").alias("propensity"),
        reason("source", popular_days).alias("reason"),
        F.lit(model_version).alias("model_version"),
        F.lit(run_id).alias("run_id"),
    )


def counts(rows: DataFrame, day: date) -> dict[str, int]:
    """Rows and people's lists of a day; NotEnoughDataError where there is nothing to recommend."""
    ((written, users),) = rows.agg(F.count("*"), F.count_distinct("user_id")).collect()
    if not written:
        raise NotEnoughDataError(f"no item is known by {day}: load events (and items) up to that day first")
    return {"written": written, "lists": users - 1}


# What each source (lakerec.generators, and the retriever) says to people.
REASONS = {
    "personal": "often chosen by you",
    "personal_decayed": "often chosen by you lately",
    "popular": "popular with everyone",
    "rising": "chosen more and more",
    "new": "new in the catalogue",
    "pattern": "popular among people who choose as you do",
    "ease": "goes with what you chose",
    "ease_visits": "goes with what you chose lately",
    "item_knn": "chosen by the same people as what you chose",
    "item_knn_visits": "chosen together with what you chose",
    "markov_1": "often chosen right after your last choice",
    "markov_3": "often chosen after your last choices",
    "markov": "chosen by people after items you chose",
    "user_knn": "chosen by people like you",
    "als": "fits your taste",
    "text": "resembles what you chose",
    "text_last": "resembles your last choices",
    "profile": "fits your profile",
    "graph": "related to what you chose",
    "retriever": "likely next for you",
    FILL: "from the catalogue",
}


def reason(source: str, popular_days: int) -> Column:
    """Why an item is in the list, for people, from the column `source`."""
    phrases = REASONS | {"trending": f"popular in the last {popular_days} days"}
    table = F.create_map(*(F.lit(part) for pair in phrases.items() for part in pair))
    return table[F.col(source)]
