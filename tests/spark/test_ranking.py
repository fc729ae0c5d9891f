"""Ranking: total order, the columns of gold.recommendations, baselines on the same slates."""

from datetime import date

import pytest
from tests.spark.rows import schema

from lakerec.candidates import FEATURES
from lakerec.ranking import baseline_scores, explode_slates, for_everyone, recommendations, top_k

DAY = date(2024, 3, 10)
SCORED = "user_id string, item_id string, score double, source string"
SLATES = (
    "user_id string, history string, "
    "candidates array<struct<item_id: string, text: string, source: string, features: array<float>>>"
)


def candidate(name, **features):
    """A candidate with some features."""
    return (name, f"text {name}", "popular", [float(features.get(feature, 0)) for feature in FEATURES])


def test_top_k_ranks_by_stored_score_then_item(spark):
    # 0.1 and 0.1 + 1e-12 are one float32: the tie goes by item.
    rows = [("u", "b", 0.1 + 1e-12, "popular"), ("u", "a", 0.1, "popular"), ("u", "c", 0.9, "covisit")]
    rows += [("u", "d", 0.01, "popular"), ("v", "d", 0.5, "personal")]
    found = top_k(spark.createDataFrame(rows, SCORED), 3).collect()
    assert sorted((r["user_id"], r["rank"], r["item_id"], r["source"]) for r in found) == [
        ("u", 1, "c", "covisit"),
        ("u", 2, "a", "popular"),
        ("u", 3, "b", "popular"),
        ("v", 1, "d", "personal"),
    ]


def test_explode_gives_a_row_per_candidate(spark):
    made = spark.createDataFrame([("u", "h", [candidate("a"), candidate("b")]), ("v", "h", [])], SLATES)
    exploded = explode_slates(made)
    assert exploded.columns == ["user_id", "item_id", "text", "source", "features"]
    assert sorted((r["user_id"], r["item_id"]) for r in exploded.collect()) == [("u", "a"), ("u", "b")]


@pytest.mark.parametrize(("source", "best"), [("popular", "a"), ("covisit", "b"), ("personal", "c")])
def test_a_baseline_ranks_the_slate_by_one_source(spark, source, best):
    slate = [candidate("a", popular_score=2), candidate("b", covisit_score=3, popular_score=1)]
    made = spark.createDataFrame([("u", "h", [*slate, candidate("c", personal_score=0.5)])], SLATES)
    assert [row["item_id"] for row in top_k(baseline_scores(made, source), 1).collect()] == [best]


def test_recommendations_have_the_columns_of_the_table(spark):
    ranked = top_k(spark.createDataFrame([("u", "a", 0.25, "covisit")], SCORED), 10)
    made = recommendations(ranked, DAY, "m1", "run1", 30)
    wanted = spark.createDataFrame([], schema("gold.recommendations"))
    assert [(f.name, f.dataType) for f in made.schema] == [(f.name, f.dataType) for f in wanted.schema]
    reason = "chosen by people after items you chose"
    assert [tuple(row) for row in made.collect()] == [(DAY, "u", 1, "a", 0.25, "covisit", 1.0, reason, "m1", "run1")]


def test_every_source_has_a_reason(spark):
    rows = [("u", name, 1.0, name) for name in ("personal", "covisit", "popular", "catalogue")]
    made = recommendations(top_k(spark.createDataFrame(rows, SCORED), 9), DAY, "m", "r", 7).collect()
    assert {row["source"]: row["reason"] for row in made} == {
        "personal": "often chosen by you",
        "covisit": "chosen by people after items you chose",
        "popular": "popular in the last 7 days",
        "catalogue": "from the catalogue",
    }


def test_the_list_for_everyone_has_the_star_as_user(spark):
    popular = spark.createDataFrame([(1, "a", 0.6), (2, "b", 0.0)], "rank int, item_id string, score double")
    made = recommendations(for_everyone(popular), DAY, "popularity", "run1", 30).collect()
    assert [(r["user_id"], r["rank"], r["item_id"], r["source"]) for r in made] == [
        ("*", 1, "a", "popular"),
        ("*", 2, "b", "catalogue"),
    ]
