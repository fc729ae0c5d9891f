"""Behaviour sequences against their definition in Python, and the text they are told as."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyspark.sql import functions as F
from tests.spark import rows as made
from tests.spark.rows import event, item, small_frame

from lakerec.config import Config
from lakerec.prompts import history_text
from lakerec.sequences import sequence_types, sequences
from lakerec.tables import table

DAY = date(2024, 3, 10)
GOLDEN = Path(__file__).parents[1] / "golden" / "history.txt"
TOLD = ("as_of_date", "user_id", "item_ids", "event_types", "event_times", "events")


def after(days: int) -> date:
    """The day so many days behind DAY."""
    return DAY + timedelta(days=days)


def config(length: int = 50, types: tuple[str, ...] = ()) -> Config:
    """A deployment in which an impression has no weight."""
    source = {name: name for name in ("event_id", "user_id", "item_id", "event_type", "event_time")}
    return Config.model_validate(
        {
            "lake": "lake",
            "sources": {"events": {"path": "{date}.csv", "columns": source}},
            "event_types": {"buy": 5, "view": 1, "impression": 0, "return": -5},
            "sequence": {"length": length, "types": list(types), "verbs": {"buy": "bought", "view": "viewed"}},
        }
    )


def told(rows: list[Any]) -> list[dict[str, Any]]:
    """The columns that the definition has, in a total order."""
    return sorted(({name: row[name] for name in TOLD} for row in rows), key=lambda r: (r["as_of_date"], r["user_id"]))


def build(frame, events: list[dict], items: Sequence[dict] = (), length: int = 50, since: date = DAY) -> list[Any]:
    """Rows of ml.sequences, by day and user."""
    found = sequences(frame("silver.events", events), frame("silver.items", list(items)), config(length), since)
    return found.orderBy("as_of_date", "user_id").collect()


happened = st.lists(
    st.builds(
        lambda user, thing, day, lag, minute, kind: event(
            user, thing, after(day), minute, kind, arrived=after(day + lag)
        ),
        st.sampled_from("abcdefgh"),
        st.sampled_from(["i1", "i2", None]),
        st.integers(0, 4),
        st.integers(0, 2),
        st.integers(0, 5),
        st.sampled_from(["buy", "view", "return", "impression"]),
    ),
    min_size=60,
    max_size=200,
    unique_by=lambda e: (e["event_date"], e["event_id"]),
)


# A few large examples of 8 users each: every example is a Spark call, so shrinking would cost minutes.
@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(happened, st.integers(1, 8), st.integers(0, 3))
def test_sequences_are_those_of_the_definition_from_any_day_on(frame, events, length, first):
    mine = [e for e in events if e["event_type"] != "impression"]
    expected = [row for row in made.sequences(mine, length) if row["as_of_date"] >= after(first)]
    assert told(build(frame, events, length=length, since=after(first))) == told(expected)


def test_columns_are_those_of_the_table(frame):
    empty = frame("silver.events", [])
    assert sequences(empty, frame("silver.items", []), config(), DAY).columns == table("ml.sequences").column_names


def test_a_sequence_holds_the_last_events_and_counts_them_all(frame):
    (row,) = build(frame, [event("u", f"i{n}", DAY, n) for n in range(7)], length=3)
    assert (row["item_ids"], row["events"]) == (["i4", "i5", "i6"], 7)


def test_a_late_event_is_unknown_before_it_arrives_and_then_shown_in_its_place(frame):
    late = event("u", "late", DAY, 1, arrived=after(2))
    events = [event("u", "a", DAY, 2), event("u", "b", after(1)), late]
    found = {row["as_of_date"]: row["item_ids"] for row in build(frame, events)}
    assert found == {DAY: ["a"], after(1): ["a", "b"], after(2): ["late", "a", "b"]}


def test_the_length_cuts_by_arrival_so_a_late_event_pushes_out_what_was_known_longest(frame):
    late = event("u", "late", DAY, 1, arrived=after(2))
    events = [event("u", "a", DAY, 2), event("u", "b", after(1)), late]
    assert build(frame, events, length=2)[-1]["item_ids"] == ["late", "b"]


def test_a_future_event_changes_no_earlier_row(frame):
    events = [event("u", "a", DAY), event("u", "b", after(1))]
    before = build(frame, events)
    planted = event("u", "leak", after(1), 1, arrived=after(3))
    assert build(frame, [*events, planted])[:2] == before


def test_an_item_is_told_by_its_title_as_of_the_day_its_event_landed(frame):
    items = [
        item("a", DAY, after(1)) | {"title": "old name"},
        item("a", after(1), after(3)) | {"title": "new name"},
    ]
    events = [event("u", "a", DAY), event("u", "a", after(1)), event("u", "a", DAY, 5, arrived=after(2))]
    events += [event("u", "a", after(3)), event("u", "unknown", after(3), 1)]
    assert build(frame, events, items)[-1]["text"] == (
        "2024-03-10 bought old name; bought new name; 2024-03-11 bought new name; 2024-03-13 bought a; bought unknown"
    )


def test_a_search_is_told_by_its_words(frame):
    events = [event("u", None, DAY, 0, "view") | {"query": "red lamp"}, event("u", "a", DAY, 1)]
    assert build(frame, events)[0]["text"] == "2024-03-10 viewed red lamp; bought a"


def test_sequences_tell_the_types_with_a_weight_or_those_configured():
    assert sequence_types(config()) == ["buy", "view", "return"]
    assert sequence_types(config(types=("impression",))) == ["impression"]


HISTORIES = {
    "nothing": [],
    "one event": [("2024-03-10 09:00:00", "view", "red lamp")],
    "one day": [("2024-03-10 00:00:00", "view", "red lamp"), ("2024-03-10 23:59:59", "buy", "red lamp")],
    "two days and a year": [
        ("2023-12-31 23:59:59", "view", "vase, blue"),
        ("2024-01-01 00:00:00", "return", "vase; blue"),
        ("2024-01-01 00:00:01", "buy", "Müller's lamp"),
    ],
}


def test_the_text_is_that_of_the_golden_file(spark):
    shown = "array<struct<time: string, event_type: string, title: string>>"
    frame = small_frame(spark, list(HISTORIES.items()), f"name string, shown {shown}")
    timed = F.transform("shown", lambda e: e.withField("event_time", e["time"].cast("timestamp")))
    text = history_text(timed, {"buy": "bought", "view": "viewed"})
    found = {row["name"]: row["text"] for row in frame.select("name", text.alias("text")).collect()}
    page = "".join(f"# {name}\n{found[name]}\n" for name in HISTORIES)
    if os.environ.get("LAKEREC_GOLDEN") == "write":
        GOLDEN.write_text(page)
    assert page == GOLDEN.read_text(), f"{GOLDEN.name} differs: look, then write it anew with LAKEREC_GOLDEN=write"
