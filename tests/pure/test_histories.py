"""Histories: every cut of the flat arrays is the same cut of plain lists."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakerec.histories import Histories

PEOPLE, ITEMS = 4, 5
events = st.lists(
    st.tuples(
        st.integers(0, PEOPLE - 1), st.integers(0, ITEMS - 1), st.integers(0, 6), st.sampled_from([-5.0, 0.0, 1.0, 3.0])
    ),
    max_size=25,
)
quick = settings(max_examples=60, deadline=None)


def made(rows, people=PEOPLE, items=ITEMS, at=None):
    """Histories of (user, item, time, weight); the type is the item's parity."""
    user, item, time, weight = (np.array([row[n] for row in rows]) for n in range(4))
    ids = user.astype(int), item.astype(int)
    return Histories.of_events(*ids, time / 2, people, items, weights=weight, types=ids[1] % 2, at=at)


def lists(histories):
    """Each person's events as (item, time, weight, type), oldest first."""
    columns = zip(histories.items, histories.times, histories.weights, histories.types, strict=True)
    told = [(int(i), float(t), float(w), int(k)) for i, t, w, k in columns]
    return [told[a:b] for a, b in zip(histories.starts, histories.starts[1:], strict=False)]


def expected(rows, people=PEOPLE):
    """The same from the rows, by Python's stable sort."""
    mine = [[(i, t / 2, w, i % 2) for u, i, t, w in rows if u == person] for person in range(people)]
    return [sorted(events, key=lambda event: event[1]) for events in mine]


@quick
@given(events)
def test_events_are_in_the_order_of_time_and_equal_times_as_given(rows):
    found = made(rows)
    assert lists(found) == expected(rows)
    assert len(found) == PEOPLE and found.lengths.tolist() == [len(mine) for mine in expected(rows)]
    assert found.users.tolist() == [u for u, mine in enumerate(expected(rows)) for _ in mine]
    assert found.places.tolist() == [len(mine) - 1 - n for mine in expected(rows) for n in range(len(mine))]
    assert (found.at == max((t / 2 for _, _, t, _ in rows), default=0.0)).all()


@quick
@given(events, st.integers(0, 6), st.floats(0, 4))
def test_cuts_are_those_of_lists(rows, count, day):
    found, plain = made(rows), expected(rows)
    assert lists(found.chosen()) == [[e for e in mine if e[2] > 0] for mine in plain]
    assert lists(found.last(count)) == [mine[len(mine) - count :] if count < len(mine) else mine for mine in plain]
    assert lists(found.without_last(count)) == [mine[: max(len(mine) - count, 0)] for mine in plain]
    assert lists(found.until(day)) == [[e for e in mine if e[1] < day] for mine in plain]
    assert (found.until(day).at == np.nextafter(day, -np.inf)).all()


@quick
@given(events, st.integers(1, 3))
def test_without_the_last_events_a_person_is_scored_as_of_what_is_left(rows, count):
    found = made(rows, at=9.0).without_last(count)
    wanted = [mine[-1][1] if mine else 9.0 for mine in lists(found)]
    assert found.at.tolist() == wanted


@quick
@given(events, st.lists(st.integers(0, PEOPLE - 1), max_size=6))
def test_people_are_selected_in_the_order_named_also_twice(rows, people):
    groups = np.arange(PEOPLE, dtype=np.int32) - 1
    at = np.arange(PEOPLE) + 10.0
    whole = Histories(**{**vars(made(rows)), "groups": groups, "at": at})
    found = whole.select(people)
    assert lists(found) == [expected(rows)[person] for person in people]
    assert found.groups.tolist() == [person - 1 for person in people]
    assert found.at.tolist() == [person + 10.0 for person in people]


@quick
@given(events, st.integers(1, 4))
def test_stretches_are_runs_of_a_person(rows, size):
    found = made(rows).stretches(size)
    wanted = [mine[n : n + size] for mine in expected(rows) for n in range(0, len(mine), size)]
    assert lists(found) == wanted
    assert len(found.at) == len(found) and found.groups is None


@quick
@given(events)
def test_a_matrix_sums_the_values_of_a_pair_or_says_that_there_was_one(rows):
    found = made(rows)
    counted, summed = np.zeros((PEOPLE, ITEMS)), np.zeros((PEOPLE, ITEMS))
    for user, item, _, weight in rows:
        counted[user, item] = 1
        summed[user, item] += weight
    assert np.array_equal(found.matrix().toarray(), counted)
    before = found.weights.copy()
    assert np.allclose(found.matrix(found.weights).toarray(), summed)
    assert np.array_equal(found.weights, before)
    assert found.matrix().has_canonical_format


def test_blocks_hold_everybody_once():
    found = made([(0, 1, 2, 1.0)])
    assert [block.tolist() for block in found.blocks(3)] == [[0, 1, 2], [3]]
    assert list(made([], people=0).blocks(3)) == []


@pytest.mark.parametrize("people", [0, 1, 3])
def test_nobody_and_no_events_are_histories_too(people):
    empty = made([], people=people)
    cuts = [empty, empty.chosen(), empty.last(2), empty.until(3.0), empty.without_last(1), empty.select([])]
    assert [len(cut) for cut in cuts] == [people] * 5 + [0]
    assert all(len(cut.items) == 0 for cut in cuts)
    assert empty.matrix().shape == (people, ITEMS) and len(empty.stretches(2)) == 0


def test_the_types_of_the_arrays_are_those_told():
    found = made([(1, 2, 3, 1.0), (0, 1, 1, -5.0)])
    wanted = {
        "starts": "int64",
        "items": "int32",
        "times": "float64",
        "weights": "float32",
        "types": "int16",
        "at": "float64",
    }
    assert {f.name: str(getattr(found, f.name).dtype) for f in fields(found) if f.name in wanted} == wanted
