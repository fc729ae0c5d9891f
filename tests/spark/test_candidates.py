"""What is known as of a day: popular list, catalogue, sequences, histories; nothing leaks from the future."""

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.spark.rows import event, item, sequences, small_frame

from lakerec.candidates import (
    catalogue,
    event_columns,
    fallback,
    histories,
    known_items,
    latest_sequences,
    popular,
    searchers,
    shelf,
)
from lakerec.collect import groups_of_users

WEIGHTS = {"view": 1.0, "buy": 5.0, "return": -5.0, "search": 0.0}
DAY = date(2024, 3, 10)
BEFORE, AFTER = DAY - timedelta(days=1), DAY + timedelta(days=1)
LONG_AGO = DAY - timedelta(days=200)


def scores(frame, *keys):
    """Rows as a dict from the key columns to the score."""
    return {tuple(row[key] for key in keys): row["score"] for row in frame.collect()}


def number(day: date) -> int:
    """Days since 1970-01-01."""
    return (day - date(1970, 1, 1)).days


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


def test_known_items_hold_from_and_until(frame):
    rows = [item("new", AFTER), item("now", DAY), item("gone", LONG_AGO, DAY), item("last", LONG_AGO, AFTER)]
    assert {r["item_id"] for r in known_items(frame("silver.items", rows), DAY).collect()} == {"now", "last"}


def test_who_has_searched_is_known_when_the_search_has_arrived(frame):
    def search(user, day, arrived, query):
        return event(user, None, day, 0, "search", arrived=arrived) | {"query": query}

    rows = [search("now", DAY, DAY, "red lamp"), search("late", DAY, AFTER, "lamp"), search("empty", DAY, DAY, "")]
    rows += [event("views", "x", DAY, 0, "view"), search("now", BEFORE, BEFORE, "lamp")]
    assert [row["user_id"] for row in searchers(frame("silver.events", rows), DAY).collect()] == ["now"]


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
    stock = small_frame(spark, [("d", ""), ("b", ""), ("a", ""), ("c", "")], "item_id string, text string")
    loved = popular(frame("silver.events", rows), DAY, 30, WEIGHTS)
    placed = {row["position"]: row["item_id"] for row in shelf(loved, stock).collect()}
    assert placed == {1: "c", 2: "b", 3: "a", 4: "d"}
    assert [(r["rank"], r["item_id"], r["score"]) for r in fallback(loved, stock, 3).collect()] == [
        (1, "c", 0.5),
        (2, "b", 0.25),
        (3, "a", 0.0),
    ]


def lists_of(frame):
    """Each user's history as (item, type, day)."""
    return {row["user_id"]: list(zip(row["items"], row["types"], row["days"], strict=True)) for row in frame.collect()}


def slow_histories(rows, as_of, kept=()):
    """Histories by their definition, in plain Python."""
    types = {name for name, weight in WEIGHTS.items() if weight} | set(kept)
    known = [r for r in rows if r["ingest_date"] <= as_of and r["item_id"] and r["event_type"] in types]
    told = {}
    for row in known:
        time = row["event_time"]
        day = number(row["event_date"]) + (time.hour * 3600 + time.minute * 60 + time.second) / 86400
        entry = (day, row["event_id"], row["item_id"], row["event_type"])
        told.setdefault(row["user_id"], []).append(entry)
    return {
        user: [(i, kind, pytest.approx(day, abs=1e-9)) for day, _, i, kind in sorted(mine)]
        for user, mine in told.items()
    }


MIXED = [
    *(event(f"u{n % 4}", f"i{n * 7 % 5}", DAY - timedelta(days=n % 6), n, sorted(WEIGHTS)[n % 4]) for n in range(40)),
    event("u0", "dance", DAY, 3, "dance"),
    event("u1", None, DAY, 4, "view"),
    event("u1", "", DAY, 5, "view"),
    event("u2", "late", LONG_AGO, 6, arrived=BEFORE),
    event("u2", "too late", LONG_AGO, 7, arrived=AFTER),
    event("u3", "one", DAY, 30, "view"),
    event("u3", "another", DAY, 30, "view"),
]


@pytest.mark.parametrize("kept", [(), ("search",)])
def test_a_history_holds_what_weighs_or_filters_oldest_first(frame, kept):
    found = lists_of(histories(frame("silver.events", MIXED), DAY, WEIGHTS, kept))
    assert found == slow_histories(MIXED, DAY, kept)
    kinds = {kind for mine in found.values() for _, kind, _ in mine}
    assert kinds == {"view", "buy", "return", *kept}


def test_partitions_and_row_order_change_no_history(frame):
    mixed = sorted(MIXED, key=lambda row: hash((row["event_id"], 7)))
    once = lists_of(histories(frame("silver.events", MIXED).coalesce(1), DAY, WEIGHTS))
    assert lists_of(histories(frame("silver.events", mixed).repartition(7, "item_id"), DAY, WEIGHTS)) == once


def test_the_columns_of_an_event(frame, spark):
    before = spark.conf.get("spark.sql.session.timeZone")
    moment = datetime(2024, 3, 10, 2, 30, tzinfo=UTC)
    row = event("u", "x", BEFORE, arrived=DAY) | {"event_time": moment}
    try:
        spark.conf.set("spark.sql.session.timeZone", "America/New_York")
        (found,) = event_columns(frame("silver.events", [row]), WEIGHTS).collect()
    finally:
        spark.conf.set("spark.sql.session.timeZone", before)
    assert found.asDict() == {
        "user_id": "u",
        "item_id": "x",
        "event_type": "buy",
        "event_id": row["event_id"],
        "day": pytest.approx(number(BEFORE) + 21.5 / 24),
        "ingest": number(DAY),
    }


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


def known(frame, events):
    """Everything that a day knows of events: the popular list, the catalogue, histories."""
    rows, items = frame("silver.events", events), frame("silver.items", [item("future", AFTER)])
    return (
        scores(popular(rows, DAY, 30, WEIGHTS), "item_id"),
        sorted(row["item_id"] for row in catalogue(rows, items, DAY).collect()),
        lists_of(histories(rows, DAY, WEIGHTS)),
    )


@pytest.fixture(scope="module")
def settled(frame):
    """What was known on the day."""
    return known(frame, SETTLED)


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(planted=NEW_EVENTS)
def test_what_arrives_after_the_day_changes_nothing(frame, settled, planted):
    assert settled[0] and known(frame, SETTLED + planted) == settled


def test_groups_are_of_the_day_and_who_searched_is_one_beside_the_attributes(frame):
    class Tables:
        """The lake's tables at their pinned versions."""

        def read(self, name, version=None):
            assert version == {"silver.events": 3, "silver.users": 5}[name]
            return frame(name, rows[name])

    person = {"valid_from": BEFORE, "valid_to": None, "text": ""}
    rows = {
        "silver.events": [event("u1", None, DAY, 0, "search") | {"query": "lamp"}, event("u2", "x", DAY)],
        "silver.users": [
            person | {"user_id": "u1", "attributes": {"plan": "free"}},
            person | {"user_id": "u2", "attributes": {}},
            person | {"user_id": "u3", "attributes": {"plan": "paid"}, "valid_from": AFTER},
        ],
    }
    versions = {"silver.events": 3, "silver.users": 5}
    found = groups_of_users(Tables(), ["plan"], DAY, versions)
    assert found == {"users who": {"u1": "searched"}, "plan": {"u1": "free", "u2": None}}
    del versions["silver.users"]  # is not read where no attribute is asked for
    assert groups_of_users(Tables(), [], BEFORE, versions) == {"users who": {}}
