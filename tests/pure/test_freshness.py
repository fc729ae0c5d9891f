"""When lists are fresh: each way to be stale is named, and all of them at once."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerec.config import Freshness
from lakerec.errors import StaleListsError
from lakerec.freshness import LOOK_BACK, State, faults, gaps, refuse

DAY = date(2026, 3, 9)
TODAY = DAY + timedelta(days=1)
GOOD = State(DAY, DAY, 10, 500, DAY, 10, 500, 480)
CASES = {
    "gold.recommendations is empty": replace(GOOD, newest=None),
    "as of 2026-03-08, 1 days before": replace(GOOD, newest=DAY - timedelta(days=1), served_rows=499),
    "no list for everyone": replace(GOOD, fallback=0),
    "the site has no list at all": replace(GOOD, served=None, served_rows=0),
    "the site has no list for everyone": replace(GOOD, served_fallback=0),
    "the newest events are of 2026-03-08: did the files of 2026-03-09 come": replace(
        GOOD, events=DAY - timedelta(days=1)
    ),
    "no run has taken in the files of 2026-03-04, 2026-03-05: run reco_backfill over them": replace(
        GOOD, missed=(DAY - timedelta(days=5), DAY - timedelta(days=4))
    ),
    "the newest events are of no day at all": replace(GOOD, events=None),
    "has lists of 2026-03-10, which has not ended": replace(GOOD, newest=TODAY, served=TODAY),
    "the site serves 2026-03-07": replace(GOOD, served=DAY - timedelta(days=2)),
    "the site has 499 rows, the lake 500": replace(GOOD, served_rows=499),
    "the site serves 100 rows, the publication before had 480": replace(GOOD, rows=100, served_rows=100),
}


@pytest.mark.parametrize(("words", "state"), CASES.items(), ids=[*CASES])
def test_what_is_stale_is_named(words: str, state: State):
    told = faults(state, DAY, Freshness(), TODAY)
    assert any(words in one for one in told)
    with pytest.raises(StaleListsError, match=r"not those of 2026-03-09.*Look at reco_daily"):
        refuse(told, DAY)


def test_good_lists_pass():
    assert faults(GOOD, DAY, Freshness(), TODAY) == []
    refuse([], DAY)


@given(st.integers(0, 5), st.integers(0, 5))
def test_lists_may_be_as_old_as_the_configuration_says(age: int, allowed: int):
    then = DAY - timedelta(days=age)
    told = faults(replace(GOOD, newest=then, served=then), DAY, Freshness(max_age_days=allowed), TODAY)
    assert bool(told) is (age > allowed)


@given(st.integers(0, 5), st.integers(0, 5))
def test_a_shop_may_be_quiet_for_as_long_as_the_configuration_says(age: int, allowed: int):
    told = faults(replace(GOOD, events=DAY - timedelta(days=age)), DAY, Freshness(max_quiet_days=allowed), TODAY)
    assert bool(told) is (age > allowed)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=8))
def test_a_day_is_missed_where_no_window_since_the_first_has_it(spans: list[tuple[int, int]]):
    """Counted back from the day: a window begins so many days before it, and is so long."""
    windows = [(DAY - timedelta(days=back), DAY - timedelta(days=back - length)) for back, length in spans]
    taken = {back - n for back, length in spans for n in range(length)}
    oldest = min(max((back for back, _ in spans), default=0), LOOK_BACK - 1)
    wanted = [DAY - timedelta(days=back) for back in range(oldest, -1, -1) if back not in taken]
    assert gaps(windows, DAY) == tuple(wanted)
