"""Slices: which people and which targets they hold."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lakerec.features import Stock
from lakerec.histories import Histories
from lakerec.protocols import Part
from lakerec.slices import Slices

ITEMS = 4
EVENT = st.tuples(st.integers(0, 2), st.integers(0, ITEMS - 1), st.sampled_from([0.0, 1.0, -1.0]))
TARGETS = st.lists(st.sets(st.integers(0, ITEMS - 1), min_size=1), min_size=3, max_size=3)


def slices(events, targets):
    """Three people's slices; an event is (person, item, weight)."""
    users, items = np.array([event[:2] for event in events], dtype=np.int64).reshape(-1, 2).T
    weights = np.array([weight for *_, weight in events], dtype=np.float32)
    histories = Histories.of_events(users, items, np.arange(len(events), dtype=float), 3, ITEMS, weights=weights)
    starts = np.append(0, np.cumsum([len(mine) for mine in targets]))
    wanted = np.array([item for mine in targets for item in sorted(mine)], dtype=np.int32)
    return Slices.of(Part(histories, np.arange(3), starts, wanted), Stock.of(histories))


@given(st.lists(EVENT, max_size=12), TARGETS)
def test_a_target_is_a_repeat_where_the_person_had_chosen_it_and_else_to_explore(events, targets):
    found = slices(events, targets).targets
    chosen = {(user, item) for user, item, weight in events if weight > 0}
    expected = [(user, item) in chosen for user, mine in enumerate(targets) for item in sorted(mine)]
    assert found["repeat items"].tolist() == expected
    assert np.array_equal(found["explore items"], ~found["repeat items"])


def test_a_slice_counts_its_own_targets_and_the_people_who_have_them():
    mine = slices([(0, 1, 1.0), (1, 2, 1.0), (2, 3, 0.0)], [{0, 1}, {2}, {3}])
    figures = dict(mine.by_user(np.array([1.0, 20.0, 1.0, 1.0])))  # person 0 finds what is new to them, not the repeat
    repeat, explore = figures["repeat items"]["ndcg@10"], figures["explore items"]["hr@10"]
    assert repeat[:2].tolist() == [0, 1] and np.isnan(repeat[2])
    assert explore[[0, 2]].tolist() == [1, 1] and np.isnan(explore[1])
    gains = mine.paired(np.array([1.0, 20.0, 1.0, 1.0]), np.full(4, 20.0), 0, ("explore items",))
    assert gains.keys() == {"explore items"} and gains["explore items"].users == 2
