"""From scored candidates to top-K lists, and the rankings of the baselines on the same slates."""

from __future__ import annotations

from datetime import date

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from lakerec.candidates import FEATURES, FILL

EVERYONE = "*"


def explode_slates(slates: DataFrame) -> DataFrame:
    """One row per user and candidate: user_id and the fields of the candidate."""
    exploded = slates.select("user_id", F.explode("candidates").alias("candidate"))
    return exploded.select("user_id", "candidate.*")


def baseline_scores(slates: DataFrame, source: str) -> DataFrame:
    """user_id, item_id, score: the candidates of slates or examples as one source alone would score them."""
    feature = F.col("features")[FEATURES.index(f"{source}_score")]
    return explode_slates(slates).select("user_id", "item_id", feature.alias("score"))


def top_k(scored: DataFrame, k: int) -> DataFrame:
    """The `k` best of each user with `rank` from 1: by score (as stored, float32), ties by item_id."""
    stored = scored.withColumn("score", F.col("score").cast("float"))
    best = Window.partitionBy("user_id").orderBy(F.col("score").desc(), "item_id")
    return stored.withColumn("rank", F.row_number().over(best)).where(F.col("rank") <= k)


def for_everyone(fallback: DataFrame) -> DataFrame:
    """The popular list (rank, item_id, score) as the list of user `*`."""
    user = F.lit(EVERYONE).alias("user_id")
    source = F.when(F.col("score") > 0, "popular").otherwise(FILL).alias("source")
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


def reason(source: str, popular_days: int) -> Column:
    """Why an item is in the list, for people, from the column `source`."""
    phrases = {
        "personal": "often chosen by you",
        "covisit": "chosen by people after items you chose",
        "popular": f"popular in the last {popular_days} days",
        FILL: "from the catalogue",
    }
    table = F.create_map(*(F.lit(part) for pair in phrases.items() for part in pair))
    return table[F.col(source)]
