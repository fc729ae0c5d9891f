"""Behaviour patterns: planted tastes are found and named, whatever the order of the rows and whatever comes later."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import DataFrame
from tests.spark.rows import event, item, sequences, small_frame

from lakerec import patterns
from lakerec.config import Config
from lakerec.tables import sql_text, table

DAY = date(2024, 3, 10)
TITLES = {"l1": "RED LAMP", "l2": "Lamp, brass", "l3": "lamp of paper", "c1": "CAKE tin", "c2": "cake stand"}
LAMPS, CAKES = ("l1", "l2", "l3"), ("c1", "c2")


def config(*ks: int, users: int = 100) -> Config:
    """A deployment with these numbers of patterns to choose from."""
    source = {name: name for name in ("event_id", "user_id", "item_id", "event_type", "event_time")}
    return Config.model_validate(
        {
            "lake": "lake",
            "sources": {"events": {"path": "{date}.csv", "columns": source}},
            "event_types": {"buy": 5, "view": 1, "return": -5},
            "candidates": {"popular_days": 7},
            "patterns": {"ks": ks or (2, 3), "max_users": users},
        }
    )


def encoder() -> Callable[[Iterator[pd.DataFrame]], Iterator[pd.DataFrame]]:
    """Text vectors by hand: lamps and cakes lie apart, and each text a little beside its kind."""

    def vector(text: str) -> np.ndarray:
        found = [1.0 + text.count("l"), 1.0 + text.count("c"), 0.3 + zlib.crc32(text.encode()) % 97 / 200]
        return (np.array(found) ** 2 / np.linalg.norm(np.array(found) ** 2)).astype(np.float32)

    def encode(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for frame in frames:
            assert not frame["text"].duplicated().any()
            yield pd.DataFrame({"text_hash": frame["text_hash"], "vector": [vector(text) for text in frame["text"]]})

    return encode


def shoppers(lamps: int = 6, cakes: int = 4) -> list[dict]:
    """Events of people who buy lamps and, on the day before, of people who buy cakes; all have seen the red lamp."""
    rows = []
    for n in range(lamps):
        rows += [event(f"l{n}", LAMPS[(n + m) % 3], DAY, m) for m in range(2 + n)]
    for n in range(cakes):
        rows += [event(f"c{n}", CAKES[(n + m) % 2], DAY - timedelta(days=1), m) for m in range(3 + n)]
        rows.append(event(f"c{n}", "l1", DAY - timedelta(days=2), 0, "view"))
    return rows


def known(frame, events: list[dict], as_of: date = DAY) -> patterns.Known:
    """What is known of these events by the end of a day."""
    told = [item(name, date(2024, 1, 1)) | {"title": title} for name, title in TITLES.items()]
    rows = (("silver.events", events), ("ml.sequences", sequences(events)), ("silver.items", told))
    return patterns.known(*(frame(name, some) for name, some in rows), as_of)


def build(frame, events: list[dict], settings: Config) -> dict[str, list[Any]]:
    """Rows of both tables from these events, in the order of their keys."""
    given = known(frame, events)
    vectors = patterns.vectors(patterns.texts(given.sequences, 64), encoder(), len(events)).persist()
    clusters = patterns.fitted(vectors, settings.patterns)
    placed = patterns.nearest(vectors, clusters).persist()
    centres = patterns.centres(placed, clusters)
    mine = patterns.assigned(placed, centres)
    marks = {"silhouette": clusters.silhouette, "model_id": "m", "fingerprint": "f"}
    found = patterns.behaviour_patterns(mine, centres, given, settings, DAY, marks)
    users = patterns.user_patterns(mine, DAY)
    assert found.columns == table("ml.behaviour_patterns").column_names
    assert users.columns == table("ml.user_patterns").column_names
    rows = {"patterns": found.orderBy("pattern_id").collect(), "users": users.orderBy("user_id").collect()}
    placed.unpersist(), vectors.unpersist()
    return rows


@pytest.fixture(scope="module")
def found(frame) -> dict[str, list[Any]]:
    """The patterns of the planted shoppers, fitted on a part of them."""
    return build(frame, shoppers(), config(users=9))


def test_planted_tastes_are_the_patterns_the_larger_first(found):
    assert [(row["pattern_id"], row["users"], row["share"], row["k"]) for row in found["patterns"]] == [
        (0, 6, 0.6, 2),
        (1, 4, 0.4, 2),
    ]
    assert {row["user_id"]: row["pattern_id"] for row in found["users"]} == {
        **{f"l{n}": 0 for n in range(6)},
        **{f"c{n}": 1 for n in range(4)},
    }
    assert all(0.5 < row["silhouette"] <= 1 for row in found["patterns"])
    assert all(0.9 < row["similarity"] <= 1 for row in found["users"])
    assert all(abs(sum(x * x for x in row["centre"]) - 1) < 1e-5 for row in found["patterns"])


def test_a_pattern_is_named_by_the_words_and_items_that_set_it_apart(found):
    lamps, cakes = found["patterns"]
    assert lamps["name"].split(patterns.JOINT) == lamps["terms"][:3] and "lamp" in lamps["terms"]
    assert cakes["terms"][0] == "cake" and set(cakes["terms"]) == {"cake", "tin", "stand"}
    assert set(cakes["items"]) == {"c1", "c2"} and set(lamps["items"]) == {"l1", "l2", "l3"}


def test_popular_is_the_share_of_the_patterns_own_recent_events(found):
    cakes = found["patterns"][1]["popular"]
    # c0 .. c3 buy 3 + n cakes (weight 5) in turns, and each looked at one lamp (weight 1).
    assert [entry["item_id"] for entry in cakes] == ["c1", "c2", "l1"]
    assert [entry["score"] for entry in cakes] == pytest.approx([50 / 94, 40 / 94, 4 / 94])


def test_popular_is_recent_and_where_nothing_is_recent_that_of_all_time(spark, frame):
    events = [event("u", "a", DAY - timedelta(days=9)), event("u", "b", DAY, 1, "view"), event("v", "c", DAY)]
    users = small_frame(spark, [("u", 0)], "user_id string, pattern_id int")
    weights = {"buy": 5.0, "view": 1.0}
    for later, expected in ((0, [("b", 1), ("a", 0)]), (30, [("a", 5 / 6), ("b", 1 / 6)])):
        made = patterns.popular(frame("silver.events", events), users, DAY + timedelta(days=later), 7, weights)
        (row,) = made.collect()
        assert [tuple(entry) for entry in row["popular"]] == [
            (name, pytest.approx(x, abs=1e-5)) for name, x in expected
        ]


def test_neither_the_order_of_the_rows_shows_nor_what_arrives_later(frame, found):
    after = DAY + timedelta(days=1)
    late = [event("l0", "c1", DAY, 50, arrived=after), event("n", "c2", after, 3), event("c1", "l3", after, 3)]
    assert build(frame, [*late, *shoppers()[::-1]], config(users=9)) == found


def test_the_fingerprint_tells_what_arrived_and_how_it_is_made(frame):
    plan, other = (patterns.settings_text(config(*ks), "m") for ks in ((2, 3), (2,)))
    here = known(frame, shoppers())
    late = known(frame, [event("l0", "c1", DAY, 50, arrived=DAY + timedelta(days=1)), *shoppers()[::-1]])
    more = known(frame, [*shoppers(), event("l0", "l2", DAY, 50)])
    assert patterns.fingerprint(here, plan) == patterns.fingerprint(late, plan)
    assert len({patterns.fingerprint(*of) for of in ((here, plan), (here, other), (more, plan))}) == 3


def test_without_different_texts_there_is_one_pattern(frame):
    made = build(frame, [event(f"u{n}", "c1", DAY) for n in range(5)], config())
    (row,) = made["patterns"]
    assert (row["k"], row["users"], row["share"], row["silhouette"]) == (1, 5, 1, None)
    assert (row["name"], row["items"]) == ("cake · tin", ["c1"])
    assert all(user["similarity"] == pytest.approx(1) for user in made["users"])


def test_items_without_a_title_name_a_pattern_by_their_ids(frame):
    (row,) = build(frame, [event("u", "42", DAY)], config())["patterns"]
    assert (row["name"], row["terms"], row["items"]) == ("42", [], ["42"])


def test_who_only_returned_things_is_in_a_pattern_without_a_name(frame):
    (row,) = build(frame, [event("u", "c1", DAY, kind="return")], config())["patterns"]
    assert (row["name"], row["items"], row["popular"]) == ("pattern 0", [], [])


def told(frame, text: str | None, tokens: int) -> str:
    """What of a sequence's text is encoded."""
    rows = frame("ml.sequences", [{"as_of_date": DAY, "user_id": "u", "text": text}])
    (row,) = patterns.texts(rows, tokens).collect()
    return row["text"]


def test_the_recent_end_of_a_text_is_encoded_without_its_days(frame):
    text = "2024-03-09 bought old lamp; 2024-03-10 bought red lamp; viewed cake tin"
    assert told(frame, text, 64) == "bought old lamp; bought red lamp; viewed cake tin"
    assert told(frame, text, 10) == "bought red lamp; viewed cake tin"  # 7 words: the cut event is left out
    assert told(frame, "2024-03-09 bought a very long title indeed", 4) == "long title indeed"
    assert told(frame, None, 64) == ""


def test_lift_is_the_share_in_the_pattern_over_everybodys_with_five_average_users(spark):
    said = [("a", 0, "x"), ("a", 0, "x"), ("a", 0, "y"), ("a", 0, "y"), ("b", 1, "y")]
    rows = patterns.lifts(small_frame(spark, said, "user_id string, pattern_id int, thing string")).collect()
    found = {(row["pattern_id"], row["thing"]): (row["share"], row["lift"]) for row in rows}
    # Everybody's share of x is (1/2 + 0) / 2, that of y 3/4.
    assert found[0, "x"] == pytest.approx(((0.5 + 5 * 0.25) / 6, (0.5 + 5 * 0.25) / 6 / 0.25))
    assert found[1, "y"] == pytest.approx(((1 + 5 * 0.75) / 6, (1 + 5 * 0.75) / 6 / 0.75))


def days_of_patterns(frame) -> tuple[DataFrame, DataFrame]:
    """Two days: u changes from pattern 0 to 1, v comes on the second."""
    after = DAY + timedelta(days=1)
    shelves = [(DAY, 0, "a", 0.5), (DAY, 1, "b", 0.5), (after, 0, "c", 0.25), (after, 1, "d", 0.75)]
    theirs = [
        {"as_of_date": day, "pattern_id": n, "popular": [{"item_id": name, "score": score}]}
        for day, n, name, score in shelves
    ]
    mine = [
        {"as_of_date": day, "user_id": user, "pattern_id": n}
        for day, user, n in [(DAY, "u", 0), (after, "u", 1), (after, "v", 0)]
    ]
    return frame("ml.user_patterns", mine), frame("ml.behaviour_patterns", theirs)


def test_pattern_popular_is_that_of_the_newest_day_known(frame):
    first, second = [("u", "a", 0.5)], [("u", "d", 0.75), ("v", "c", 0.25)]
    for days, expected in ((-1, []), (0, first), (1, second), (9, second)):
        rows = patterns.pattern_popular(*days_of_patterns(frame), DAY + timedelta(days=days))
        assert sorted(tuple(row) for row in rows.collect()) == expected


def test_the_view_shows_the_newest_day(spark, frame):
    _, theirs = days_of_patterns(frame)
    rows = spark.sql(sql_text("views", "behaviour_patterns_latest"), behaviour_patterns=theirs).collect()
    assert sorted((row["as_of_date"], row["pattern_id"]) for row in rows) == [
        (DAY + timedelta(days=1), n) for n in (0, 1)
    ]


def test_a_retired_item_keeps_its_last_title(frame):
    rows = [item("a", DAY, DAY + timedelta(days=1)) | {"title": "old"}]
    rows += [item("a", DAY + timedelta(days=1), DAY + timedelta(days=2)) | {"title": "new"}]
    events, told = frame("silver.events", []), frame("ml.sequences", [])
    given = patterns.known(events, told, frame("silver.items", rows), DAY + timedelta(days=5))
    assert [tuple(row) for row in given.titles.collect()] == [("a", "new")]
