"""Policy: which pairs are taken out of a list."""

from datetime import date, timedelta

from tests.spark.rows import event

from lakerec.policy import excluded

DAY = date(2024, 3, 10)


def test_excluded_are_the_pairs_of_the_named_types_that_had_arrived(frame):
    rows = [event("u", "a", DAY), event("u", "a", DAY, 1), event("u", "b", DAY, 2, "view")]
    rows += [event("v", "c", DAY, arrived=DAY + timedelta(days=1)), event("v", None, DAY)]
    events = frame("silver.events", rows)
    assert [tuple(row) for row in excluded(events, DAY, ["buy"]).collect()] == [("u", "a")]
    assert excluded(events, DAY, ["buy", "view"]).count() == 2


def test_no_types_exclude_nothing(frame):
    assert excluded(frame("silver.events", [event("u", "a", DAY)]), DAY, []).count() == 0
