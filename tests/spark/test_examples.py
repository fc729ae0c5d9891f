"""Examples: cut days, targets, and that an example tells what scoring would have read."""

from datetime import date, timedelta

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.spark.rows import event, schema, sequences, small_frame

from lakerec.config import Config, Training
from lakerec.examples import cuts, examples, manifest, sample, snapshot_id, target_types

CUT = date(2024, 3, 10)
END = CUT + timedelta(days=7)
WEIGHTS = {"view": 1, "buy": 5, "return": -5, "impression": 0}


def on(days: int) -> date:
    """A day relative to the cut."""
    return CUT + timedelta(days=days)


def config(**sections) -> Config:
    """A deployment with a horizon of seven days."""
    columns = dict.fromkeys(("event_id", "user_id", "item_id", "event_type", "event_time"), "x")
    source = {"events": {"path": "{date}.csv", "columns": columns}}
    return Config.model_validate({"lake": "lake", "sources": source, "event_types": WEIGHTS, **sections})


def made_of(frame, events, settings=None, types=()):
    """The examples at CUT from `events`, as rows by user."""
    tables = frame("silver.events", events), frame("ml.sequences", sequences(events))
    found = examples(*tables, CUT, "valid", END, settings or config(), types)
    return {row["user_id"]: row for row in found.collect()}


def test_cuts_are_a_horizon_apart_and_no_training_target_lies_behind_the_valid_cut():
    training = Training(cuts=2, horizon_days=7)
    found = cuts(date(2024, 3, 31), training)
    assert found == [
        (date(2024, 3, 3), "train"),
        (date(2024, 3, 10), "train"),
        (date(2024, 3, 17), "valid"),
        (date(2024, 3, 24), "test"),
    ]
    valid = next(cut for cut, split in found if split == "valid")
    assert all(cut + timedelta(days=7) <= valid for cut, split in found if split == "train")


def test_columns_are_those_of_the_table(frame, spark):
    empty = [frame(name, []) for name in ("silver.events", "ml.sequences")]
    made = examples(*empty, CUT, "train", END, config())
    wanted = small_frame(spark, [], schema("ml.examples")).drop("snapshot_id")
    assert [(f.name, f.dataType.simpleString()) for f in made.schema] == [
        (f.name, f.dataType.simpleString()) for f in wanted.schema
    ]


def test_targets_lie_behind_the_cut_within_the_horizon_and_what_was_known(frame):
    rows = [event("u", "a", CUT), event("u", "b", on(1)), event("u", "c", on(7)), event("u", "d", on(8))]
    rows += [event("u", "e", on(6), arrived=on(9)), event("u", "f", on(2), kind="return")]
    rows += [
        event("u", "late", on(-1), arrived=on(2)),
        event("newcomer", "a", on(1)),
        event("idle", "a", CUT),
    ]
    made = made_of(frame, rows)
    assert set(made) == {"u", "newcomer"}
    assert made["u"]["targets"] == ["b", "c"]
    assert (made["u"]["example_id"], made["u"]["cut_date"], made["u"]["split"]) == (
        "u@2024-03-10",
        CUT,
        "valid",
    )
    assert made["u"]["history"] == "a"


def test_who_comes_behind_the_cut_is_an_example_without_a_history(frame):
    rows = [
        event("newcomer", "b", on(1)),
        event("newcomer", "a", on(2)),
        event("latecomer", "c", on(-1), arrived=on(1)),
    ]
    made = made_of(frame, [*rows, event("latecomer", "d", on(3))])
    assert {user: (row["history"], row["targets"]) for user, row in made.items()} == {
        "newcomer": (None, ["a", "b"]),
        "latecomer": (None, ["d"]),
    }


def test_target_types_are_those_named_or_all_of_positive_weight(frame):
    assert target_types([], WEIGHTS) == ["view", "buy"]
    rows = [event("u", "a", CUT), event("u", "b", on(1), kind="view"), event("u", "a", on(2))]
    assert made_of(frame, rows, types=["buy"])["u"]["targets"] == ["a"]


def test_what_the_policy_filters_is_no_target(frame):
    rows = [event("u", "had", CUT), event("u", "seen", CUT, 1, "view"), event("v", "new", CUT)]
    rows += [event("u", name, on(1), n) for n, name in enumerate(["had", "seen", "new"])]
    rows += [event("v", "new", on(1))]
    made = made_of(frame, rows, config(policy={"filter_types": ["buy"]}))
    assert {user: row["targets"] for user, row in made.items()} == {"u": ["new", "seen"]}


def test_what_was_shown_behind_the_cut_and_not_chosen_there_is_passed_over(frame):
    shown = {"b": on(1), "a": on(7), "before": CUT, "after": on(8), "viewed": on(2), "bought": on(6)}
    rows = [event("u", name, day, kind="impression") for name, day in shown.items()]
    rows += [event("u", "b", on(3), kind="impression"), event("u", "late", on(6), arrived=on(9), kind="impression")]
    rows += [event("u", "viewed", on(3), kind="view"), event("u", "bought", on(1)), event("u", "before", CUT)]
    rows += [event("v", "b", on(1)), event("idle", "b", on(1), kind="impression")]
    told = {user: row["passed_over"] for user, row in made_of(frame, rows).items()}
    assert told == {"u": ["a", "b"], "v": []}
    assert made_of(frame, rows, types=["buy"])["u"]["passed_over"] == ["a", "b"]
    assert made_of(frame, rows, types=["impression"])["u"]["passed_over"] == []
    filtered = made_of(frame, [*rows, event("u", "bought", CUT)], config(policy={"filter_types": ["buy"]}))
    assert (filtered["u"]["targets"], filtered["u"]["passed_over"]) == (["viewed"], ["a", "b"])
    other = {"impressions": ["return"]}
    rows += [event("u", "b", on(3), kind="return")]
    assert made_of(frame, rows, config(scorer={"training": other}))["u"]["passed_over"] == ["b"]
    assert made_of(frame, rows, config(scorer={"training": {"impressions": []}}))["u"]["passed_over"] == []


DAYS = st.integers(-1, 9).map(on)
WEEK = st.lists(
    st.builds(
        event,
        user=st.sampled_from(["u0", "u1"]),
        item=st.sampled_from(["i0", "i1", "i2", "i3"]),
        day=DAYS,
        minute=st.integers(0, 90),
        kind=st.sampled_from(["impression", "impression", *WEIGHTS]),
        arrived=DAYS,
    ),
    min_size=20,
    max_size=40,
    unique_by=lambda row: (row["event_date"], row["event_id"]),
)


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(week=WEEK)
def test_what_is_passed_over_is_what_was_shown_on_the_targets_days_but_the_targets(frame, week):
    inside = [row for row in week if CUT < row["event_date"] <= END and row["ingest_date"] <= END]
    for user, row in made_of(frame, week).items():
        mine = [(e["event_type"], e["item_id"]) for e in inside if e["user_id"] == user]
        chosen = {item for kind, item in mine if kind in ("view", "buy")}
        assert row["targets"] == sorted(chosen)
        assert row["passed_over"] == sorted({item for kind, item in mine if kind == "impression"} - chosen)


LATER = st.lists(
    st.builds(
        event,
        user=st.sampled_from(["u0", "u1", "newcomer"]),
        item=st.sampled_from(["i1", "future"]),
        day=st.integers(-3, 12).map(on),
        minute=st.integers(0, 90),
        kind=st.sampled_from(sorted(WEIGHTS)),
        arrived=st.sampled_from([on(8), on(9)]),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda row: (row["event_date"], row["event_id"]),
)
SETTLED = [event(f"u{n % 4}", f"i{n * 5 % 9}", on(4 - n), n, arrived=on(4 - n + n % 2)) for n in range(20)]


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(planted=LATER)
def test_what_arrives_behind_the_horizon_changes_no_example(frame, planted):
    before = {user: tuple(row) for user, row in made_of(frame, SETTLED).items()}
    assert before and {user: tuple(row) for user, row in made_of(frame, SETTLED + planted).items()} == before


EXAMPLES = "example_id string, targets array<string>"


def test_sample_draws_the_same_examples_again(spark):
    rows = [(f"e{n}", []) for n in range(40)]
    drawn = [row["example_id"] for row in sample(small_frame(spark, rows, EXAMPLES), 8, 17).collect()]
    mixed = small_frame(spark, rows[::-1], EXAMPLES).repartition(5)
    assert len(set(drawn)) == 8
    assert [row["example_id"] for row in sample(mixed, 8, 17).collect()] == drawn
    assert [row["example_id"] for row in sample(mixed, 8, 18).collect()] != drawn
    assert sample(mixed, 100, 17).count() == 40


def test_snapshot_id_is_a_hash_of_everything_in_the_manifest():
    splits = [(CUT, "train"), (END, "test")]
    first = manifest(END, {"silver.events": 3, "silver.items": 1}, splits, {"train": 9}, "abc")
    same = manifest(END, {"silver.items": 1, "silver.events": 3}, splits, {"train": 9}, "abc")
    other = manifest(END, {"silver.events": 4, "silver.items": 1}, splits, {"train": 9}, "abc")
    assert len(snapshot_id(first)) == 16 and int(snapshot_id(first), 16) >= 0
    assert snapshot_id(first) == snapshot_id(same) != snapshot_id(other)
