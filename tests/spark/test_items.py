"""Catalogues: what a day's files say, versions against their definition for every short history, the graph."""

from __future__ import annotations

import hashlib
from datetime import date, timedelta
from itertools import product
from typing import Any

import pytest
from tests.spark.rows import small_frame

from lakerec.config import ITEM_ENTITY, Source
from lakerec.items import graph, history, item_history, observations, user_history
from lakerec.tables import table

DAY = date(2024, 3, 10)
BRONZE = "ingest_date date, source_file string, row_number bigint, payload map<string,string>"
OBSERVED = "item_id string, day date, title string, text string, attributes map<string,string>"
# Days of files, with gaps between them: a version holds until the next file, not until the next day.
DAYS = tuple(DAY + timedelta(days=n) for n in (0, 1, 3, 4, 9))
CONTENTS: dict[str, tuple[Any, ...]] = {
    "A": ("title", "text", {"price": "1", "brand": "b"}),
    "B": ("title", "text", {"price": "2", "brand": "b"}),
}
# Absent, A or B on each of 5 days: all 242 histories with at least one word, one item each.
HISTORIES = {"".join(word): word for word in product("-AB", repeat=len(DAYS)) if set(word) != {"-"}}


def observed(spark, words: dict[str, tuple[str, ...]]):
    """What each item's letters say on each day, as the frame that `observations` makes."""
    rows = [
        (item, day, *CONTENTS[said])
        for item, word in words.items()
        for day, said in zip(DAYS, word, strict=True)
        if said != "-"
    ]
    return small_frame(spark, rows, OBSERVED)


def snapshots(spark):
    """The days of full catalogues."""
    return small_frame(spark, [(day,) for day in DAYS], "day date")


def versions(word: tuple[str, ...], carried: bool) -> list[tuple[date, date | None, str]]:
    """The versions of a history; `carried`: what was said once holds until something else is said (deltas)."""
    found: list[tuple[date, date | None, str]] = []
    before = "-"
    for day, said, until in zip(DAYS, word, (*DAYS[1:], None), strict=True):
        now = before if carried and said == "-" else said
        if now != "-" and now == before:
            found[-1] = (found[-1][0], until, now)
        elif now != "-":
            found.append((day, until, now))
        before = now
    return found


def letter(row: Any) -> str:
    """The letter whose content a row has."""
    return next(name for name, content in CONTENTS.items() if content == (row["title"], row["text"], row["attributes"]))


@pytest.mark.parametrize("mode", ["snapshot", "delta"])
def test_every_history_of_five_days_has_the_versions_of_its_definition(spark, mode):
    full = snapshots(spark) if mode == "snapshot" else None
    found: dict[str, list[tuple[date, date | None, str]]] = {item: [] for item in HISTORIES}
    for row in history(observed(spark, HISTORIES).repartition(3), "item_id", full).collect():
        found[row["item_id"]].append((row["valid_from"], row["valid_to"], letter(row)))
        assert row["first_seen"] == next(d for d, said in zip(DAYS, row["item_id"], strict=True) if said != "-")
    expected = {item: versions(word, mode == "delta") for item, word in HISTORIES.items()}
    assert {item: sorted(rows, key=lambda row: row[0]) for item, rows in found.items()} == expected


@pytest.mark.parametrize(
    "word, mode, expected",
    [
        ("AABBB", "snapshot", [(0, 2, "A"), (2, None, "B")]),
        ("AA--A", "snapshot", [(0, 2, "A"), (4, None, "A")]),
        ("AAA--", "snapshot", [(0, 3, "A")]),
        ("AA--A", "delta", [(0, None, "A")]),
        ("A-B-A", "delta", [(0, 2, "A"), (2, 4, "B"), (4, None, "A")]),
    ],
    ids=["corrected", "come back", "retired", "unchanged", "back and forth"],
)
def test_the_definition_itself_in_examples(word, mode, expected):
    told = [(DAYS[a], None if b is None else DAYS[b], said) for a, b, said in expected]
    assert versions(tuple(word), mode == "delta") == told


def test_each_version_of_a_delta_ends_where_the_next_begins(spark):
    rows = history(observed(spark, {"x": tuple("AB-AB")}), "item_id").orderBy("valid_from").collect()
    assert [row["valid_to"] for row in rows] == [*[row["valid_from"] for row in rows[1:]], None]
    assert len(rows) == 4


def test_an_earlier_file_that_lands_later_gives_the_same_history(spark):
    both = observed(spark, {"x": tuple("A-B--")})
    forward = history(both.orderBy("day"), "item_id").collect()
    assert sorted(history(both.orderBy("day", ascending=False), "item_id").collect()) == sorted(forward)


def test_content_is_title_text_and_attributes_whatever_their_order(spark):
    said = [
        ("t", "x", {"a": "1", "b": "2"}),
        ("t", "x", {"b": "2", "a": "1"}),
        ("t", "x", {"a": "1"}),
        ("t", "y", {"a": "1"}),
        (None, "y", {"a": "1"}),
    ]
    rows = [("x", day, *content) for day, content in zip(DAYS, said, strict=True)]
    found = history(small_frame(spark, rows, OBSERVED), "item_id").orderBy("valid_from").collect()
    assert [row["valid_from"] for row in found] == [DAYS[0], *DAYS[2:]]
    assert len({row["content_hash"] for row in found}) == 4


def test_an_item_without_a_title_is_told_by_its_text(spark):
    rows = [("a", DAY, "title", "text", {}), ("b", DAY, None, "téxt", {})]
    found = item_history(small_frame(spark, rows, OBSERVED), None).orderBy("item_id")
    assert found.columns == table("silver.items").column_names
    assert [(row["title"], row["text_hash"]) for row in found.collect()] == [
        ("title", hashlib.sha256(b"text").hexdigest()),
        ("téxt", hashlib.sha256("téxt".encode()).hexdigest()),
    ]


def test_users_have_the_columns_of_their_table(spark):
    rows = observed(spark, {"x": tuple("AB---")}).withColumnRenamed("item_id", "user_id")
    found = user_history(rows, None)
    assert found.columns == table("silver.users").column_names
    assert found.count() == 2


# What the files of a day say.

ITEMS = Source.model_validate(
    {"path": "items/{date}.csv", "columns": {"item_id": "upper(id)", "title": "name", "text": "name", "price": "price"}}
)


def landed(spark, rows: list[tuple[date, str, int, dict[str, str | None]]]):
    """Rows of a bronze table."""
    return small_frame(spark, rows, BRONZE)


def test_the_last_row_of_a_day_speaks_for_it(spark):
    rows = [
        (DAY, "a", 1, {"id": "x", "name": "first", "price": "1"}),
        (DAY, "b", 1, {"id": "x", "name": "last", "price": None}),
        (DAY, "a", 10, {"id": "X", "name": "second", "price": "2"}),
        (DAY, "b", 2, {"id": "x", "name": "", "price": "3"}),
        (DAYS[1], "c", 1, {"id": "x", "name": "next", "price": "4"}),
    ]
    found = observations(landed(spark, rows), ITEMS, "item_id").orderBy("day").collect()
    assert [tuple(row) for row in found] == [
        ("X", DAY, "last", "last", {}),
        ("X", DAYS[1], "next", "next", {"price": "4"}),
    ]


def test_rows_without_an_id_or_a_text_say_nothing(spark):
    said = [("", "n"), (None, "n"), ("x", ""), ("x", None)]
    rows = [(DAY, "a", n, {"id": item, "name": name}) for n, (item, name) in enumerate(said)]
    assert observations(landed(spark, rows), ITEMS, "item_id").count() == 0


def test_users_need_no_title(spark):
    source = Source.model_validate({"path": "u.csv", "columns": {"user_id": "id", "text": "profile"}})
    found = observations(landed(spark, [(DAY, "a", 1, {"id": "u", "profile": "a cook"})]), source, "user_id")
    assert [tuple(row) for row in found.collect()] == [("u", DAY, None, "a cook", {})]


def test_observations_become_versions_of_the_catalogue(spark):
    rows = [
        (DAY, "a", 1, {"id": "x", "name": "lamp", "price": "1"}),
        (DAYS[1], "b", 1, {"id": "x", "name": "lamp", "price": "1"}),
        (DAYS[2], "c", 1, {"id": "x", "name": "lamp", "price": "2"}),
        (DAYS[2], "c", 2, {"id": "y", "name": "vase", "price": "1"}),
        (DAYS[3], "d", 1, {"id": "y", "name": "vase", "price": "1"}),
    ]
    bronze = landed(spark, rows)
    full = bronze.selectExpr("ingest_date as day").distinct()
    found = item_history(observations(bronze, ITEMS, "item_id"), full).orderBy("item_id", "valid_from").collect()
    assert [(r["item_id"], r["valid_from"], r["valid_to"], r["attributes"]["price"]) for r in found] == [
        ("X", DAY, DAYS[2], "1"),
        ("X", DAYS[2], DAYS[3], "2"),
        ("Y", DAYS[2], None, "1"),
    ]


# The graph.


def test_a_triple_is_known_from_its_first_day_and_incomplete_ones_are_left_out(spark):
    source = Source.model_validate({"path": "kg.tsv", "columns": {"head": "h", "relation": "lower(r)", "tail": "t"}})
    said = [(DAYS[1], "m1", "BY", "p1"), (DAY, "m1", "by", "p1"), (DAY, "m1", "by", "p2"), (DAY, "m1", None, "p3")]
    rows = [(day, "kg", n, {"h": h, "r": r, "t": t}) for n, (day, h, r, t) in enumerate(said)]
    rows += [(DAY, "kg", 7, {"h": None, "r": "by", "t": "p"}), (DAY, "kg", 8, {"h": "m", "r": "by", "t": None})]
    found = graph(landed(spark, rows), source)
    assert found.columns == table("silver.kg").column_names
    assert {tuple(row) for row in found.collect()} == {("m1", "by", "p1", DAY), ("m1", "by", "p2", DAY)}


def test_a_link_ties_an_item_to_its_entity(spark):
    source = Source.model_validate({"path": "links.tsv", "columns": {"item_id": "item", "entity": "concat('m.', e)"}})
    rows = [(DAY, "links", 1, {"item": "7", "e": "x"}), (DAY, "links", 2, {"item": "8", "e": None})]
    found = graph(landed(spark, rows), source, ITEM_ENTITY)
    assert [tuple(row) for row in found.collect()] == [("7", "item_entity", "m.x", DAY)]
