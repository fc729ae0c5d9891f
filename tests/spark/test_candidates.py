"""Candidates: what each source says, how a slate is put together, and that nothing leaks from the future."""

import math
from collections import Counter, defaultdict
from datetime import date, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.spark.rows import event, item, sequences

from lakerec.candidates import (
    FEATURES,
    catalogue,
    covisitation,
    fallback,
    known_items,
    latest_sequences,
    personal,
    popular,
    shelf,
    slates,
)
from lakerec.config import Candidates

WEIGHTS = {"view": 1.0, "buy": 5.0, "return": -5.0, "search": 0.0}
DAY = date(2024, 3, 10)
BEFORE, AFTER = DAY - timedelta(days=1), DAY + timedelta(days=1)
LONG_AGO = DAY - timedelta(days=200)


def scores(frame, *keys):
    """Rows as a dict from the key columns to the score."""
    return {tuple(row[key] for key in keys): row["score"] for row in frame.collect()}


def slate_of(frame):
    """Each user's slate as a dict from item to its candidate."""
    return {row["user_id"]: {c["item_id"]: c for c in row["candidates"]} for row in frame.collect()}


def make(frame, events, items=(), as_of=DAY, excluded=None, **wanted):
    """Slates of the users of `events`."""
    known = frame("silver.events", events), frame("ml.sequences", sequences(events))
    return slates(*known, frame("silver.items", list(items)), as_of, Candidates(**wanted), WEIGHTS, excluded)


def test_popular_is_the_share_of_recent_weight_and_a_return_counts_against(frame):
    rows = [event("a", "x", DAY), event("b", "x", DAY, kind="view"), event("a", "y", DAY, kind="view")]
    rows += [event("a", "z", DAY), event("a", "z", DAY, 1, "return"), event("a", "late", DAY, arrived=AFTER)]
    found = scores(popular(frame("silver.events", rows), DAY, 30, WEIGHTS), "item_id")
    assert found == {("x",): pytest.approx(6 / 7), ("y",): pytest.approx(1 / 7)}


def test_popular_window_ends_with_the_day_and_has_its_length(frame):
    rows = [event("a", "in", DAY - timedelta(days=29)), event("a", "out", DAY - timedelta(days=30))]
    found = scores(popular(frame("silver.events", rows), DAY, 30, WEIGHTS), "item_id")
    assert found["in",] > 0.99999 and 0 < found["out",] < 1e-5


def test_popular_falls_back_to_all_time(frame):
    rows = [event("a", "x", LONG_AGO), event("a", "y", LONG_AGO), event("b", "y", LONG_AGO, 1)]
    found = scores(popular(frame("silver.events", rows), DAY, 30, WEIGHTS), "item_id")
    assert found == {("x",): pytest.approx(1 / 3), ("y",): pytest.approx(2 / 3)}


def brute_covisitation(rows, span):
    """Co-visitation by its definition, in plain Python."""
    mass, total = defaultdict(float), Counter()
    for user in {r["user_id"] for r in rows}:
        own = [r for r in rows if r["user_id"] == user and WEIGHTS[r["event_type"]] > 0]
        own.sort(key=lambda r: (r["event_time"], r["event_id"]))
        for i, first in enumerate(own):
            for distance, second in enumerate(own[i + 1 : i + 1 + span], start=1):
                if first["item_id"] != second["item_id"]:
                    gain = WEIGHTS[second["event_type"]] / distance
                    mass[first["item_id"], second["item_id"]] += gain
                    total[first["item_id"]] += gain
    return {pair: value / total[pair[0]] for pair, value in mass.items()}


def test_covisitation_equals_its_definition(frame):
    letters = "abcadbeacdbbae"
    kinds = ["buy", "view", "return", "view"]
    rows = [
        event(user, letter, DAY, minute, kinds[(minute + shift) % 4])
        for shift, user in enumerate("uvw")
        for minute, letter in enumerate(letters[shift:])
    ]
    found = scores(covisitation(frame("silver.events", rows), DAY, 3, 50, WEIGHTS), "item_id", "neighbour")
    assert found == pytest.approx(brute_covisitation(rows, 3), abs=1e-8)


def test_covisitation_is_directed_and_keeps_the_strongest(frame):
    rows = [event("u", "a", DAY, 0), event("u", "b", DAY, 1), event("u", "c", DAY, 2)]
    rows += [event("v", "a", DAY, 0), event("v", "c", DAY, 1)]
    found = scores(covisitation(frame("silver.events", rows), DAY, 5, 1, WEIGHTS), "item_id", "neighbour")
    # a -> c once at distance 2 and once at distance 1; a -> b once at distance 1.
    assert found == {("a", "c"): pytest.approx(0.6), ("b", "c"): 1.0}


def test_personal_halves_in_ninety_days_and_drops_what_came_back(frame):
    rows = [event("u", "x", DAY), event("u", "x", DAY - timedelta(days=90)), event("u", "y", DAY)]
    rows += [event("u", "y", DAY, 5, "return"), event("u", "q", DAY, 6, "search")]
    assert scores(personal(frame("silver.events", rows), DAY, WEIGHTS), "item_id") == {("x",): 7.5}


def test_known_items_hold_from_and_until(frame):
    rows = [item("new", AFTER), item("now", DAY), item("gone", LONG_AGO, DAY), item("last", LONG_AGO, AFTER)]
    assert {r["item_id"] for r in known_items(frame("silver.items", rows), DAY).collect()} == {"now", "last"}


def test_catalogue_is_the_events_items_only_where_none_was_ever_known(frame):
    events = frame("silver.events", [event("u", "x", DAY), event("u", None, DAY, 1), event("u", "z", AFTER)])
    unlisted = catalogue(events, frame("silver.items", [item("a", AFTER)]), DAY).collect()
    assert [tuple(row) for row in unlisted] == [("x", "x")]
    retired = frame("silver.items", [item("a", LONG_AGO, BEFORE)])
    assert catalogue(events, retired, DAY).collect() == []


def test_latest_sequence_is_the_last_one_known(frame):
    rows = sequences([event("u", "x", LONG_AGO), event("u", "y", BEFORE), event("u", "z", AFTER)])
    found = latest_sequences(frame("ml.sequences", rows), DAY).collect()
    assert [(row["as_of_date"], row["text"]) for row in found] == [(BEFORE, "x y")]


def test_shelf_holds_the_whole_catalogue_and_the_fallback_its_head(frame, spark):
    rows = [event("u", "b", DAY), event("u", "c", DAY), event("v", "c", DAY), event("v", "unlisted", DAY)]
    stock = spark.createDataFrame([("d", ""), ("b", ""), ("a", ""), ("c", "")], "item_id string, text string")
    loved = popular(frame("silver.events", rows), DAY, 30, WEIGHTS)
    placed = {row["position"]: row["item_id"] for row in shelf(loved, stock).collect()}
    assert placed == {1: "c", 2: "b", 3: "a", 4: "d"}
    assert [(r["rank"], r["item_id"], r["score"]) for r in fallback(loved, stock, 3).collect()] == [
        (1, "c", 0.5),
        (2, "b", 0.25),
        (3, "a", 0.0),
    ]


def test_sources_take_turns(frame):
    own = [event("u", f"own{i}", DAY, i) for i in range(5)]
    loved = [event(user, f"pop{i}", DAY, i) for i in range(5) for user in ("v", "w", "x")]
    made = slate_of(make(frame, own + loved, per_user=4, sources=["personal", "popular"]))["u"]
    assert {name: c["source"] for name, c in made.items()} == {
        "own0": "personal",
        "own1": "personal",
        "pop0": "popular",
        "pop1": "popular",
    }


def test_the_first_source_of_equals_names_the_item(frame):
    made = slate_of(make(frame, [event("u", "x", DAY)], sources=["popular", "personal"]))
    assert made["u"]["x"]["source"] == "popular"


def test_features_are_the_scores_and_ranks_of_each_source(frame):
    rows = [event("v", "x", DAY, 0), event("v", "y", DAY, 1), event("u", "x", DAY, 2)]
    made = slate_of(make(frame, rows))["u"]["y"]
    assert dict(zip(FEATURES, made["features"], strict=True)) == pytest.approx(
        {
            "personal_score": 0,
            "personal_reciprocal_rank": 0,
            "covisit_score": math.log1p(1000),
            "covisit_reciprocal_rank": 1,
            "popular_score": math.log1p(10000 / 3),
            "popular_reciprocal_rank": 0.5,
        }
    )
    assert made["source"] == "covisit"


@pytest.mark.parametrize("sources", [["personal"], ["covisit"], ["popular"], []])
def test_each_user_gets_a_full_slate_from_whatever_sources(frame, sources):
    rows = [event("u", "i1", DAY), event("v", "i2", DAY), event("v", "i3", DAY, 1)]
    stock = [item(f"i{n}", LONG_AGO) for n in range(8)]
    made = slate_of(make(frame, rows, stock, per_user=6, sources=sources))
    assert {user: len(slate) for user, slate in made.items()} == {"u": 6, "v": 6}
    never = [c for slate in made.values() for c in slate.values() if c["item_id"] in {"i0", "i4", "i5"}]
    assert never and all(c["source"] == "catalogue" and sum(c["features"]) == 0 for c in never)


def test_exclusions_do_not_shorten_a_slate(frame, spark):
    rows = [event("u", f"i{n}", DAY, n) for n in range(6)] + [event("v", "i0", DAY)]
    stock = [item(f"i{n}", LONG_AGO) for n in range(10)]
    pairs = [("u", f"i{n}") for n in range(6)]
    excluded = spark.createDataFrame(pairs, "user_id string, item_id string")
    made = slate_of(make(frame, rows, stock, excluded=excluded, per_user=4))
    assert set(made["u"]) == {"i6", "i7", "i8", "i9"}
    assert "i0" in made["v"] and len(made["v"]) == 4


def test_only_items_of_the_catalogue_and_their_text(frame):
    rows = [event("u", name, DAY, n) for n, name in enumerate(["told", "untold", "gone", "unknown"])]
    stock = [item("told", DAY, text="a red train"), item("untold", DAY), item("gone", LONG_AGO, DAY)]
    made = slate_of(make(frame, rows, stock))["u"]
    assert {name: c["text"] for name, c in made.items()} == {"told": "a red train", "untold": "title untold"}


def test_place_in_the_array_tells_nothing_of_the_rank(frame):
    users = [f"u{n}" for n in range(40)]
    rows = [event(user, "own", DAY, 3) for user in users]
    rows += [event("v", f"i{n}", DAY, n) for n in range(9)]
    made = make(frame, rows, per_user=8).where("user_id like 'u%'").collect()
    places = Counter([c["item_id"] for c in row["candidates"]].index("own") for row in made)
    assert len(places) >= 6 and max(places.values()) < 20


def test_partitions_and_row_order_change_nothing(frame):
    rows = [event(f"u{n % 5}", f"i{n * 7 % 11}", DAY - timedelta(days=n), n) for n in range(60)]
    mixed = sorted(rows, key=lambda row: hash((row["event_id"], 7)))
    once = slate_of(make(frame, rows))
    events = frame("silver.events", mixed).repartition(7, "item_id")
    known = frame("ml.sequences", sequences(rows)).repartition(5)
    again = slate_of(slates(events, known, frame("silver.items", []), DAY, Candidates(), WEIGHTS))
    assert once == again


NEW_EVENTS = st.lists(
    st.builds(
        event,
        user=st.sampled_from(["u", "v", "newcomer"]),
        item=st.sampled_from(["x", "y", "future"]),
        day=st.sampled_from([LONG_AGO, BEFORE, DAY, AFTER]),
        minute=st.integers(0, 90),
        kind=st.sampled_from(sorted(WEIGHTS)),
        arrived=st.sampled_from([AFTER, AFTER + timedelta(days=1)]),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda row: (row["event_date"], row["event_id"]),
)


SETTLED = [event("u", "x", BEFORE), event("u", "y", DAY), event("v", "y", BEFORE, 1), event("v", "x", DAY, 2)]


@pytest.fixture(scope="module")
def settled(frame):
    """The slates of what was known on the day."""
    return slate_of(make(frame, SETTLED))


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(planted=NEW_EVENTS)
def test_what_arrives_after_the_day_changes_nothing(frame, settled, planted):
    assert slate_of(make(frame, SETTLED + planted, [item("future", AFTER)])) == settled
