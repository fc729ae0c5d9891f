"""Ranking: who is due a list, total order, the columns of gold.recommendations."""

from datetime import date

from tests.spark.rows import schema, small_frame

from lakerec.features import FILL
from lakerec.generators import MEMBERS
from lakerec.ranking import REASONS, due_users, for_everyone, recommendations, top_k
from lakerec.scorer.recommender import RETRIEVER

DAY = date(2024, 3, 10)
SCORED = "user_id string, item_id string, score double, source string"


def test_top_k_ranks_by_stored_score_then_item(spark):
    # 0.1 and 0.1 + 1e-12 are one float32: the tie goes by item.
    rows = [("u", "b", 0.1 + 1e-12, "popular"), ("u", "a", 0.1, "popular"), ("u", "c", 0.9, "covisit")]
    rows += [("u", "d", 0.01, "popular"), ("v", "d", 0.5, "personal")]
    found = top_k(small_frame(spark, rows, SCORED), 3).collect()
    assert sorted((r["user_id"], r["rank"], r["item_id"], r["source"]) for r in found) == [
        ("u", 1, "c", "covisit"),
        ("u", 2, "a", "popular"),
        ("u", 3, "b", "popular"),
        ("v", 1, "d", "personal"),
    ]


# user, as_of_date of the newest sequence; day and model of earlier lists; whether the user is due on DAY by m2.
DUE = {
    "no list yet": (DAY, [], True),
    "a list as new as the sequence": (DAY - DAY.resolution, [(1, "m2")], False),
    "active since the list": (DAY, [(1, "m2")], True),
    "active on days nobody scored": (DAY - 3 * DAY.resolution, [(9, "m2")], True),
    "a list of another model": (DAY - 9 * DAY.resolution, [(1, "m1")], True),
    "only the newest list counts": (DAY - 9 * DAY.resolution, [(5, "m1"), (1, "m2")], False),
    "the day's own list does not count": (DAY, [(0, "m2")], True),
    "a later list does not count": (DAY, [(-3, "m2")], True),
}


def test_due_is_whose_newest_list_is_missing_of_another_model_or_older_than_the_sequence(spark):
    known = small_frame(spark, [(user, day) for user, (day, *_) in DUE.items()], "user_id string, as_of_date date")
    before = [(user, DAY - days * DAY.resolution, model) for user, (_, ls, _) in DUE.items() for days, model in ls]
    made = [(*row, rank) for row in before for rank in (1, 2)]
    lists = small_frame(spark, made, "user_id string, as_of_date date, model_version string, rank int")
    found = {row["user_id"] for row in due_users(known, lists, DAY, "m2").collect()}
    assert found == {user for user, (*_, due) in DUE.items() if due}


def test_recommendations_have_the_columns_of_the_table(spark):
    ranked = top_k(small_frame(spark, [("u", "a", 0.25, "markov")], SCORED), 10)
    made = recommendations(ranked, DAY, "m1", "run1", 30)
    wanted = small_frame(spark, [], schema("gold.recommendations"))
    assert [(f.name, f.dataType) for f in made.schema] == [(f.name, f.dataType) for f in wanted.schema]
    reason = "chosen by people after items you chose"
    assert [tuple(row) for row in made.collect()] == [(DAY, "u", 1, "a", 0.25, "markov", 1.0, reason, "m1", "run1")]


def test_every_source_has_a_reason_of_its_own(spark):
    names = [*MEMBERS, RETRIEVER, FILL]
    rows = [("u", name, 1.0, name) for name in names]
    made = recommendations(top_k(small_frame(spark, rows, SCORED), len(names)), DAY, "m", "r", 7).collect()
    found = {row["source"]: row["reason"] for row in made}
    assert set(found) == set(names) and len(set(found.values())) == len(names) and all(found.values())
    assert (found["personal"], found["trending"]) == ("often chosen by you", "popular in the last 7 days")
    assert set(REASONS) <= set(names)  # nothing is told of a source that there is not


def test_the_list_for_everyone_has_the_star_as_user(spark):
    popular = small_frame(spark, [(1, "a", 0.6), (2, "b", 0.0)], "rank int, item_id string, score double")
    made = recommendations(for_everyone(popular), DAY, "popularity", "run1", 30).collect()
    assert [(r["user_id"], r["rank"], r["item_id"], r["source"], r["reason"]) for r in made] == [
        ("*", 1, "a", "trending", "popular in the last 30 days"),
        ("*", 2, "b", "catalogue", "from the catalogue"),
    ]
