"""What retention leaves of the days that are past it."""

from __future__ import annotations

from collections import Counter
from datetime import date, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conftest import DAY

from lakerec import upkeep

PLACES = st.lists(st.tuples(st.integers(0, 9), st.sampled_from("abc*")), unique=True, min_size=1, max_size=12)


def day(n: int) -> date:
    return DAY + timedelta(days=n)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lists=PLACES, before=st.integers(0, 10))
def test_a_user_keeps_the_newest_list_whatever_its_age(frame, lists, before):
    rows = frame(
        "gold.recommendations", [{"as_of_date": day(n), "user_id": u, "rank": r} for n, u in lists for r in (1, 2)]
    )
    rule = upkeep.RULES["gold.recommendations"]
    kept = upkeep.staying(rows, rule, day(before)).collect()
    newest = {user: max(n for n, u in lists if u == user) for _, user in lists}
    expected = {(day(n), user, rank) for user, n in newest.items() if n < before for rank in (1, 2)}
    assert {(row["as_of_date"], row["user_id"], row["rank"]) for row in kept} == expected and len(kept) == len(expected)
    gone = Counter(day(n) for n, user in lists if n < min(before, newest[user]) for _ in (1, 2))
    assert upkeep.going(rows, rule, day(before)) == gone


@pytest.mark.parametrize(
    ("table", "days"), [("ml.user_patterns", [4]), ("quarantine.events", [])], ids=["newest of all", "nothing"]
)
def test_of_other_tables_the_newest_day_stays_or_none(frame, table, days):
    rule = upkeep.RULES[table]
    rows = frame(table, [{rule.day: day(n), "user_id": f"u{n}"} for n in (1, 4)])
    kept = upkeep.staying(rows, rule, day(9)).collect()
    assert [row[rule.day] for row in kept] == [day(n) for n in days]


def test_the_newest_snapshot_of_all_stays(frame):
    rows = frame("ml.snapshots", [{"snapshot_id": f"s{n}", "as_of_date": day(n)} for n in (1, 3, 5)])
    assert upkeep.superseded(rows, day(9)) == ["s1", "s3"]
    assert upkeep.superseded(rows, day(3)) == ["s1"]
    assert upkeep.superseded(rows.where("snapshot_id = 's1'"), day(9)) == []


def test_examples_without_a_manifest_go_by_their_last_cut(frame):
    cuts = {"built": (1, 2), "anew": (1, 5), "old": (1, 2), "older": (0, 1)}
    examples = frame("ml.examples", [{"snapshot_id": s, "cut_date": day(n)} for s, days in cuts.items() for n in days])
    snapshots = frame("ml.snapshots", [{"snapshot_id": "built", "as_of_date": day(3)}])
    assert upkeep.without_manifest(examples, snapshots, day(5)) == ["old", "older"]
    assert upkeep.without_manifest(examples, snapshots, day(6)) == ["anew", "old", "older"]
