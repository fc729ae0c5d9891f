"""Protocols: nothing of a target is known before it, and the same histories always split alike."""

from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakerec.errors import NotEnoughDataError
from lakerec.histories import Histories
from lakerec.protocols import (
    GlobalTime,
    LeaveOneOut,
    mask_known,
    order,
    share_of_ties,
    shuffle_ties,
)

PEOPLE = 6
rows = st.lists(st.tuples(st.integers(0, PEOPLE - 2), st.integers(0, 11)), max_size=30)
leave_one_out = st.builds(
    LeaveOneOut, st.sampled_from(["published_order", "shuffled"]), st.integers(0, 3), st.booleans()
)
global_time = st.builds(GlobalTime, st.just(8.0), st.just(4.0), st.booleans(), st.booleans())
protocols = leave_one_out | global_time


def histories(events, items=None, weights=None):
    """Histories of (user, time) pairs; without `items`, each event has an item of its own, which names it."""
    users, times = (np.array([event[place] for event in events], dtype=int) for place in (0, 1))
    items = np.arange(len(events)) if items is None else np.array(items, dtype=int)
    weights = None if weights is None else np.array(weights)
    return Histories.of_events(users, items, times / 2, PEOPLE, max(len(events), 10), weights=weights)


def split(protocol, known):
    """The split, or None where a part is empty."""
    try:
        return protocol.split(known)
    except NotEnoughDataError as error:
        assert "valid" in str(error) or "test" in str(error)
        return None


def targets(part):
    """The targets of each person, by the person's place in the original."""
    return {
        int(person): part.target_items[part.target_starts[i] : part.target_starts[i + 1]].tolist()
        for i, person in enumerate(part.people)
    }


def same(one, two):
    """Whether two dataclasses hold the same arrays."""
    pairs = [(getattr(one, f.name), getattr(two, f.name)) for f in fields(one)]
    return all(same(a, b) if hasattr(a, "__dataclass_fields__") else np.array_equal(a, b) for a, b in pairs)


@settings(max_examples=200, deadline=None)
@given(rows, protocols)
def test_no_target_is_known_before_it(events, protocol):
    found = split(protocol, histories(events))
    if found is None:
        return
    seen = set(found.train.items.tolist())
    assert not seen & set(found.valid.target_items.tolist())
    assert not seen & set(found.test.target_items.tolist())
    assert not set(found.valid.target_items.tolist()) & set(found.test.target_items.tolist())
    for part in (found.valid, found.test):
        owners = part.people[part.target_users].tolist()
        assert [events[item][0] for item in part.target_items] == owners
        for i, wanted in enumerate(targets(part).values()):
            known = part.histories.select([i])
            assert not set(known.items.tolist()) & set(wanted)
            assert all(events[item][1] / 2 >= known.times.max(initial=0) for item in wanted)


@settings(max_examples=100, deadline=None)
@given(rows, protocols)
def test_the_same_histories_split_alike(events, protocol):
    one, two = split(protocol, histories(events)), split(protocol, histories(events))
    assert (one is None and two is None) or same(one, two)


@settings(max_examples=100, deadline=None)
@given(rows, protocols)
def test_parts_hold_people_with_targets_and_train_holds_everyone(events, protocol):
    found = split(protocol, histories(events))
    if found is None:
        return
    assert len(found.train) == PEOPLE
    for part in (found.valid, found.test):
        assert len(part) == len(part.histories) == len(part.target_starts) - 1
        assert (np.diff(part.target_starts) > 0).all() and part.target_starts[-1] == len(part.target_items)
        assert (np.diff(part.people) > 0).all()
        assert (part.histories.times <= np.repeat(part.histories.at, part.histories.lengths)).all()


@settings(max_examples=150, deadline=None)
@given(rows, st.integers(1, 4))
def test_each_event_of_the_window_is_a_target_behind_what_was_done_before_it(events, each):
    whole = histories(events)
    found = split(GlobalTime(4.0, 2.0, each=each), whole)
    if found is None:
        return
    part = found.test
    inside = (whole.times >= 4.0) & (whole.times < 6.0)
    wanted = np.minimum(np.bincount(whole.users[inside], minlength=PEOPLE), each)
    np.testing.assert_array_equal(np.bincount(part.people, minlength=PEOPLE), wanted)
    assert (np.diff(part.target_starts) == 1).all() and (np.diff(part.people) >= 0).all()
    for row, (person, item) in enumerate(zip(part.people, part.target_items, strict=True)):
        mine = whole.items[whole.starts[person] : whole.starts[person + 1]].tolist()
        known = part.histories.select([row])
        assert known.items.tolist() == mine[: mine.index(item)]
        assert (known.at >= known.times.max(initial=0)).all()


@settings(max_examples=100, deadline=None)
@given(rows, leave_one_out)
def test_leave_one_out_takes_the_last_two_of_those_with_three(events, protocol):
    whole = histories(events)
    found = split(protocol, whole)
    enough = np.flatnonzero(whole.lengths >= 3)
    if found is None:
        assert not len(enough)
        return
    np.testing.assert_array_equal(found.test.people, enough)
    np.testing.assert_array_equal(found.valid.people, enough)
    np.testing.assert_array_equal(found.test.histories.lengths, whole.lengths[enough] - 1)
    np.testing.assert_array_equal(found.valid.histories.lengths, whole.lengths[enough] - 2)
    np.testing.assert_array_equal(found.train.lengths, np.where(whole.lengths >= 3, whole.lengths - 2, whole.lengths))
    parts = [found.train.items, found.valid.target_items, found.test.target_items]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(events)))


def test_leave_one_out_by_hand():
    whole = histories([(0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (1, 2)], items=[4, 5, 6, 7, 8, 9])
    found = LeaveOneOut().split(whole)
    assert targets(found.valid) == {0: [6]} and targets(found.test) == {0: [7]}
    assert found.train.items.tolist() == [4, 5, 8, 9]
    assert found.valid.histories.items.tolist() == [4, 5] and found.test.histories.items.tolist() == [4, 5, 6]
    assert found.valid.histories.at.tolist() == [1.0] and found.test.histories.at.tolist() == [1.5]
    assert found.train.at.tolist() == [1.0] + [2.0] * (PEOPLE - 1)


def test_leave_one_out_of_a_repeated_item():
    whole = histories([(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)], items=[4, 5, 4, 4, 5, 6])
    assert targets(LeaveOneOut().split(whole).test) == {1: [6]}
    assert targets(LeaveOneOut(repeats=True).split(whole).test) == {0: [4], 1: [6]}


@settings(max_examples=100, deadline=None)
@given(rows)
def test_global_time_takes_the_windows(events):
    found = split(GlobalTime(4.0, 2.0), histories(events))
    if found is None:
        return
    times = {item: time / 2 for item, (_, time) in enumerate(events)}
    assert set(found.train.items.tolist()) == {i for i, t in times.items() if t < 2}
    assert set(found.valid.target_items.tolist()) == {i for i, t in times.items() if 2 <= t < 4}
    assert set(found.test.target_items.tolist()) == {i for i, t in times.items() if 4 <= t < 6}
    before = [set(np.ceil(each.at)) for each in (found.train, found.valid.histories, found.test.histories)]
    assert before == [{2}, {2}, {4}] and (found.test.histories.at < 4).all()


def test_global_time_by_hand():
    events = [(0, 1), (0, 5), (0, 9), (0, 9), (0, 10), (1, 11), (2, 5), (2, 8)]
    whole = histories(events, items=[1, 2, 3, 3, 1, 4, 5, 5])
    assert targets(GlobalTime(4, 2).split(whole).test) == {0: [3], 1: [4]}
    assert targets(GlobalTime(4, 2, repeats=True).split(whole).test) == {0: [3, 1], 1: [4], 2: [5]}
    assert targets(GlobalTime(4, 2, repeats=True, first_basket=True).split(whole).test) == {0: [3], 1: [4], 2: [5]}
    assert targets(GlobalTime(4, 2).split(whole).valid) == {0: [2], 2: [5]}
    assert GlobalTime(4, 2).split(whole).test.histories.lengths.tolist() == [2, 0]


def test_a_first_basket_is_of_one_day_even_if_all_of_it_is_known():
    whole = histories([(0, 5), (0, 8), (0, 10), (1, 5), (1, 8), (1, 9), (1, 10)], items=[1, 1, 2, 3, 4, 5, 6])
    assert targets(GlobalTime(4, 2, first_basket=True).split(whole).test) == {1: [4, 5]}


def test_events_without_positive_weight_are_no_targets_of_global_time():
    whole = histories([(0, 5), (0, 8), (0, 9), (1, 9)], weights=[1, -1, 1, 0])
    found = GlobalTime(4, 2).split(whole)
    assert targets(found.test) == {0: [2]}


def test_cuts_are_a_horizon_apart_and_end_with_the_protocol():
    protocol = GlobalTime(100, 7, repeats=True)
    assert [one.cut for one in protocol.cuts(3)] == [86, 93, 100]
    assert protocol.cuts(3)[-1] == protocol and all(one.repeats for one in protocol.cuts(3))


def test_names():
    assert GlobalTime(15288, 30).name == "global_time cut=2011-11-10 horizon=30d"
    assert (
        GlobalTime(0.5, 1.5, True, True).name == "global_time cut=1970-01-01T12:00:00 horizon=1.5d repeats first_basket"
    )
    assert LeaveOneOut().name == "leave_one_out ties=published_order"
    assert LeaveOneOut("shuffled", 3).name == "leave_one_out ties=shuffled seed=3"


def test_an_empty_part_is_named():
    whole = histories([(0, 1), (0, 8)])
    with pytest.raises(NotEnoughDataError, match=r"valid split \(1970-01-03 to 1970-01-05\) is empty"):
        GlobalTime(4, 2).split(whole)
    with pytest.raises(NotEnoughDataError, match=r"test split \(1970-01-06 to 1970-01-07\) is empty"):
        GlobalTime(5, 1).split(whole)
    with pytest.raises(NotEnoughDataError, match="leave_one_out ties=published_order: valid split is empty"):
        LeaveOneOut().split(whole)
    with pytest.raises(NotEnoughDataError, match="valid"):
        LeaveOneOut().split(histories([]))


@settings(max_examples=100, deadline=None)
@given(rows, st.integers(0, 5))
def test_ties_are_shuffled_among_themselves_only(events, seed):
    users, times = (np.array([event[place] for event in events], dtype=int) for place in (0, 1))
    moved = shuffle_ties(users, times, seed)
    np.testing.assert_array_equal(np.sort(moved), np.arange(len(events)))
    np.testing.assert_array_equal(users[moved], users)
    np.testing.assert_array_equal(times[moved], times)
    np.testing.assert_array_equal(moved, shuffle_ties(users, times, seed))


def test_every_order_of_a_tie_comes_up_alike():
    users, times = np.zeros(3, dtype=int), np.zeros(3)
    counts = Counter(tuple(shuffle_ties(users, times, seed).tolist()) for seed in range(600))
    assert len(counts) == 6 and min(counts.values()) > 60


@settings(max_examples=50, deadline=None)
@given(rows)
def test_published_order_stays_and_shuffled_keeps_the_events(events):
    whole = histories(events, weights=np.arange(len(events)) + 1.0)
    assert order(whole, "published_order") is whole
    moved = order(whole, "shuffled", 1)
    np.testing.assert_array_equal(moved.times, whole.times)
    np.testing.assert_array_equal(moved.starts, whole.starts)
    np.testing.assert_array_equal(moved.weights, moved.items + 1)
    assert sorted(moved.items) == sorted(whole.items)


def test_the_seed_decides_which_of_a_tie_is_last():
    whole = histories([(0, 1)] * 5)
    published = LeaveOneOut().split(whole)
    assert (targets(published.valid), targets(published.test)) == ({0: [3]}, {0: [4]})
    last = {LeaveOneOut("shuffled", seed).split(whole).test.target_items[0] for seed in range(40)}
    assert last == {0, 1, 2, 3, 4}


def test_share_of_ties():
    assert share_of_ties(histories([(0, 1), (0, 2), (0, 2), (1, 3), (1, 4), (2, 1)])) == 0.5
    assert np.isnan(share_of_ties(histories([(0, 1)])))


def test_known_items_are_masked():
    scores = np.ones((PEOPLE, 10), dtype=np.float32)
    masked = mask_known(scores, histories([(0, 1), (0, 2), (3, 1)], items=[4, 4, 7]))
    assert np.argwhere(np.isneginf(masked)).tolist() == [[0, 4], [3, 7]]
    assert masked.dtype == np.float32 and (scores == 1).all()


@settings(max_examples=100, deadline=None)
@given(rows, st.data(), global_time | leave_one_out)
def test_a_target_without_repeats_is_never_masked(events, data, protocol):
    items = data.draw(st.lists(st.integers(0, 3), min_size=len(events), max_size=len(events)))
    found = split(protocol, histories(events, items=items))
    if found is None or protocol.repeats:
        return
    for part in (found.valid, found.test):
        masked = mask_known(np.zeros((len(part), part.histories.n_items), dtype=np.float32), part.histories)
        assert (masked[part.target_users, part.target_items] == 0).all()
