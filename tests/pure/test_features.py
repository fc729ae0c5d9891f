"""Candidates and their features: who is nominated, and every column by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

from lakerec import features, generators
from lakerec.features import WINDOWS, Candidates, Stock, feature_names
from lakerec.generators.base import Shelf
from lakerec.generators.scores import Allowed, Whole
from lakerec.histories import Histories

PEOPLE, ITEMS, AT = 7, 12, 400.0


def open_to(mask):
    """Everything is on the shelf, what the mask (people, items) has not is closed."""
    return Allowed.of(len(mask), np.ones(mask.shape[1], bool), *np.nonzero(~mask))


def candidates(scores, histories, mask, *rest):
    """By whole arrays and a mask."""
    return features.candidates({name: Whole(s) for name, s in scores.items()}, histories, open_to(mask), *rest)


def nominate(scores, mask, depth):
    """By whole arrays and a mask."""
    depth = min(depth, mask.shape[1])
    surveys = [Whole(score).survey(open_to(mask), depth) for score in scores.values()]
    return features.nominate(surveys, mask.shape[1], depth)


def made(rows, people=PEOPLE, items=ITEMS, at=AT):
    """Histories of (user, item, time) or (user, item, time, weight)."""
    columns = [np.array([row[n] if n < len(row) else 1.0 for row in rows]) for n in range(4)]
    ids = columns[0].astype(int), columns[1].astype(int)
    return Histories.of_events(*ids, columns[2], people, items, weights=columns[3], at=at)


def random_world(seed=0, count=80):
    """Everyone but the last has events over a year, some of them returns; prices and first days in parts unknown."""
    rng = np.random.default_rng(seed)
    weights = rng.choice([1.0, 5.0, -5.0, 0.0], count, p=[0.5, 0.3, 0.1, 0.1])
    columns = (
        rng.integers(0, PEOPLE - 1, count),
        rng.integers(0, ITEMS - 1, count),
        rng.uniform(0, AT, count),
        weights,
    )
    known = made([tuple(row) for row in zip(*columns, strict=True)])
    text = rng.normal(size=(ITEMS, 3)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    text[2] = 0
    nodes = sparse.csr_matrix((rng.random((ITEMS, 4)) < 0.4).astype(np.float32))
    price = rng.uniform(1, 50, ITEMS)
    price[[1, 5]] = np.nan
    return known, Shelf(text, nodes), Stock.of(known, price)


KNOWN, SHELF, STOCK = random_world()
MEMBERS = {name: generators.fit(name, KNOWN, SHELF) for name in ("popular", "personal", "ease", "markov", "text")}
SCORES = {name: member.score(KNOWN) for name, member in MEMBERS.items()}
ALL = np.ones((PEOPLE, ITEMS), dtype=bool)
NAMES = feature_names(list(SCORES))


def column(found: Candidates, name, names=NAMES):
    """A feature by name, as a dict from (person, item)."""
    values = found.features[:, names.index(name)]
    return {(int(p), int(i)): float(v) for p, i, v in zip(found.person, found.item, values, strict=True)}


def features_of(rows, shelf=None, stock=None, at=AT, people=2, items=4):
    """The candidates of a small world where one source likes every item but the last."""
    known = made(rows, people, items, at)
    scores = {"one": np.tile(np.arange(items, 0, -1, dtype=np.float32), (people, 1))}
    shelf = shelf or Shelf(np.zeros((items, 2), np.float32))
    return candidates(scores, known, np.ones((people, items), bool), shelf, stock or Stock.of(known), items)


ONE = feature_names(["one"])


# --- nomination ---------------------------------------------------------------------------------------------


def slow_nominate(scores, allowed, depth):
    """By sorting: each source's `depth` best allowed items above the least allowed one, ties by item."""
    found = {}
    for place, score in enumerate(scores.values()):
        for user, row in enumerate(score):
            items = [item for item in np.argsort(-row, kind="stable") if allowed[user, item] and np.isfinite(row[item])]
            least = min((row[item] for item in items), default=0)
            for rank, item in enumerate([item for item in items[:depth] if row[item] > least]):
                found.setdefault((user, int(item)), [depth] * len(scores))[place] = rank
    return dict(sorted(found.items()))


distinct = st.permutations(range(8)).map(lambda order: np.array(order, dtype=np.float32))
rows = st.lists(distinct, min_size=3, max_size=3).map(np.stack)


@settings(max_examples=60, deadline=None)
@given(rows, rows, arrays(bool, (3, 8)), st.integers(1, 10))
def test_each_source_nominates_its_best_of_what_is_allowed(one, other, allowed, depth):
    scores = {"one": one, "other": other}
    person, item, ranks = nominate(scores, allowed, depth)
    found = {(int(p), int(i)): rank.tolist() for p, i, rank in zip(person, item, ranks, strict=True)}
    assert found == slow_nominate(scores, allowed, min(depth, 8))
    assert list(found) == sorted(found)
    assert all(allowed[pair] for pair in found)


values = st.sampled_from([0.0, 1.0, 2.5, -1.0, np.nan, np.inf, -np.inf]) | st.floats(-5, 5, width=32)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (2, 150), elements=values), arrays(bool, (2, 150)), st.integers(1, 6))
def test_so_it_does_of_many_items_with_equal_and_broken_scores(score, allowed, depth):
    person, item, ranks = nominate({"one": score}, allowed, depth)
    found = {(int(p), int(i)): rank.tolist() for p, i, rank in zip(person, item, ranks, strict=True)}
    assert found == slow_nominate({"one": score}, allowed, depth)


def test_of_equal_scores_within_the_best_the_first_item_ranks_first():
    scores = {"one": np.array([[1, 3, 0, 3, 2, 3]], dtype=np.float32)}
    person, item, ranks = nominate(scores, np.ones((1, 6), bool), 5)
    assert dict(zip(item.tolist(), ranks[:, 0].tolist(), strict=True)) == {1: 0, 3: 1, 5: 2, 4: 3, 0: 4}
    assert person.tolist() == [0] * 5


@pytest.mark.parametrize("value", [0.0, 0.25, -3.0])
def test_a_source_that_says_the_same_of_all_items_is_silent(value):
    person, item, ranks = nominate({"one": np.full((2, 5), value, np.float32)}, np.ones((2, 5), bool), 3)
    assert len(person) == len(item) == len(ranks) == 0


def test_without_sources_nobody_nominates():
    person, item, ranks = nominate({}, np.ones((2, 5), bool), 3)
    assert len(person) == len(item) == 0 and ranks.shape == (0, 0)


def test_nobody_nominates_where_nothing_is_allowed():
    found = candidates(SCORES, KNOWN, np.zeros_like(ALL), SHELF, STOCK, 5)
    assert len(found) == 0 and found.features.shape == (0, len(NAMES))


@settings(max_examples=25, deadline=None)
@given(arrays(bool, (PEOPLE, ITEMS)), st.integers(1, ITEMS))
def test_a_masked_item_is_never_a_candidate_and_no_feature_is_infinite(allowed, depth):
    found = candidates(SCORES, KNOWN, allowed, SHELF, STOCK, depth)
    assert allowed[found.person, found.item].all()
    assert found.features.shape == (len(found), len(NAMES)) and found.features.dtype == np.float32
    assert not np.isinf(found.features).any()
    assert np.isfinite(found.features[:, : 3 * len(SCORES)]).all()


def test_a_candidate_is_of_the_source_that_ranks_it_best_of_equals_the_first():
    one, other = np.array([[9, 5, 7, 0]], np.float32), np.array([[9, 7, 5, 0]], np.float32)
    known, shelf = made([], 1, 4), Shelf(np.zeros((4, 2), np.float32))
    scores = {"silent": np.zeros((1, 4), np.float32), "one": one, "other": other}
    found = candidates(scores, known, np.ones((1, 4), bool), shelf, Stock.of(known), 4)
    assert dict(zip(found.item.tolist(), found.source.tolist(), strict=True)) == {0: 1, 1: 2, 2: 1}
    names = feature_names(list(scores))
    assert column(found, "generators", names) == {(0, 0): 2, (0, 1): 2, (0, 2): 2}
    assert column(found, "silent_rank", names) == pytest.approx(dict.fromkeys([(0, 0), (0, 1), (0, 2)], np.log1p(4)))


# --- columns ------------------------------------------------------------------------------------------------


def test_every_column_has_a_name_of_its_own():
    found = candidates(SCORES, KNOWN, ALL, SHELF, STOCK, 5)
    assert found.features.shape[1] == len(NAMES) == len(set(NAMES))
    assert len(feature_names(list(generators.MEMBERS))) == len(NAMES) + 3 * (len(generators.MEMBERS) - len(SCORES))
    assert all(name.isidentifier() for name in NAMES)  # LightGBM takes no other


def test_what_a_source_says_as_score_z_and_rank():
    score = np.array([[4, 1, 3, 0], [0, 0, 8, 4]], dtype=np.float32)
    known, shelf = made([], 2, 4), Shelf(np.zeros((4, 2), np.float32))
    found = candidates({"one": score}, known, np.array([[1, 1, 0, 1], [1, 1, 1, 1]], bool), shelf, Stock.of(known), 2)
    assert column(found, "one_score", ONE) == {(0, 0): 4, (0, 1): 1, (1, 2): 8, (1, 3): 4}
    # The mean and the deviation of the whole row, masked items with it.
    first, second = (np.array(row) for row in ([4, 1, 3, 0], [0, 0, 8, 4]))
    z = {(0, 0): (4 - 2) / first.std(), (0, 1): (1 - 2) / first.std()}
    z |= {(1, 2): (8 - 3) / second.std(), (1, 3): (4 - 3) / second.std()}
    assert column(found, "one_z", ONE) == pytest.approx(z, abs=1e-5)
    assert column(found, "one_rank", ONE) == pytest.approx({(0, 0): 0, (0, 1): np.log(2), (1, 2): 0, (1, 3): np.log(2)})


def test_popularity_in_windows_that_end_with_the_day_of_scoring():
    days = {0: [AT + 0.5, AT - 0.5, AT - 6.5, AT - 28.5, AT - 88, AT - 300, AT - 399], 1: [AT - 100.5, AT + 1.5]}
    rows = [(0, item, day) for item, times in days.items() for day in times] + [(0, 0, AT, -5.0)]
    found = features_of(rows, at=AT + 0.75)
    chosen = [column(found, f"chosen_{told}", ONE)[1, 0] for told in ("1d", "7d", "30d", "90d", "365d", "always")]
    assert np.allclose(np.expm1(chosen), [1, 2, 4, 5, 6, 7])
    shares = [column(found, f"share_{told}", ONE)[1, 0] for told in ("1d", "7d", "30d", "90d", "365d")]
    assert np.allclose(shares, [1 / 2, 2 / 4, 4 / 5, 5 / 6, 6 / 7])
    assert column(found, "chosen_365d", ONE)[0, 1] == pytest.approx(np.log1p(1))  # what comes later does not count
    assert column(found, "share_1d", ONE)[0, 2] == 0
    assert len(WINDOWS) == 6


def test_people_of_different_days_see_the_counts_of_their_day():
    rows = [(0, 0, 10.5), (0, 0, 12.5), (1, 0, 14.5)]
    found = features_of(rows, at=np.array([12.6, 14.6]))
    assert column(found, "chosen_always", ONE)[0, 0] == pytest.approx(np.log1p(2))
    assert column(found, "chosen_always", ONE)[1, 0] == pytest.approx(np.log1p(3))
    assert column(found, "item_age", ONE)[0, 0] == pytest.approx(2.6)


def test_growth_is_a_month_against_a_third_of_the_three_before():
    times = [AT - 1, AT - 2, AT - 29, AT - 30, AT - 60, AT - 118, AT - 120]
    found = features_of([(0, 0, day) for day in times])
    assert column(found, "growth", ONE)[0, 0] == pytest.approx(np.log1p(3) - np.log1p(3 / 3))
    assert column(found, "growth", ONE)[0, 1] == 0


def test_how_often_and_when_a_person_chose_an_item():
    rows = [(0, 0, AT - 10), (0, 0, AT - 4), (0, 0, AT - 3), (0, 1, AT - 2), (0, 0, AT - 1, -5.0), (1, 2, AT)]
    found = features_of(rows)
    assert column(found, "own_count", ONE) == {
        **{(0, 0): 3, (0, 1): 1, (0, 2): 0},
        **{(1, 0): 0, (1, 1): 0, (1, 2): 1},
    }
    since, gap = column(found, "own_days_since", ONE), column(found, "own_gap", ONE)
    assert since[0, 0] == pytest.approx(3) and since[0, 1] == pytest.approx(2) and since[1, 2] == 0
    assert gap[0, 0] == pytest.approx((10 - 3) / 2)
    assert all(np.isnan(told) for told in (since[0, 2], since[1, 0], gap[0, 1], gap[1, 2]))


def test_what_a_person_is_like():
    rows = [(0, 0, 1.2), (0, 0, 1.9), (0, 1, 3.0), (0, 2, AT - 2.5, -5.0)]
    found = features_of(rows)
    told = {name: column(found, name, ONE) for name in ("events", "items", "active_days", "days_since_last")}
    assert [told[name][0, 0] for name in ("events", "items", "active_days")] == pytest.approx(np.log1p([4, 3, 3]))
    assert told["days_since_last"][0, 0] == pytest.approx(2.5)
    assert [told[name][1, 0] for name in ("events", "items", "active_days")] == [0, 0, 0]
    assert np.isnan(told["days_since_last"][1, 0])


def test_a_price_against_what_the_person_pays():
    rows = [(0, 0, 1.0), (0, 1, 2.0), (0, 3, 3.0)]
    found = features_of(rows, stock=Stock.of(made(rows, 2, 4), np.array([10, 30, np.nan, np.nan])))
    paid = (np.log(11) + np.log(31)) / 2
    assert column(found, "price_gap", ONE)[0, 0] == pytest.approx(np.log(11) - paid, abs=1e-6)
    assert np.isnan([column(found, "price_gap", ONE)[pair] for pair in ((0, 2), (1, 0))]).all()
    assert column(found, "price", ONE)[1, 1] == 30 and np.isnan(column(found, "price", ONE)[0, 2])


def test_likeness_to_the_last_choice_and_the_nearest_of_ten():
    text = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=np.float32)
    shelf = Shelf(text)
    rows = [(0, 0, 1.0), (0, 1, 2.0), (0, 2, 3.0, -5.0), (1, 2, 0.5)] + [(1, 1, n) for n in range(1, 11)]
    found = features_of(rows, shelf)
    cosine = shelf.centred @ shelf.centred.T
    last, near = column(found, "text_last", ONE), column(found, "text_near", ONE)
    for item in (0, 1, 2):
        assert last[0, item] == pytest.approx(cosine[item, 1], abs=1e-6)
        assert near[0, item] == pytest.approx(max(cosine[item, 0], cosine[item, 1]), abs=1e-6)
        assert near[1, item] == pytest.approx(cosine[item, 1], abs=1e-6)  # item 2 is the eleventh from the end
    assert not features_of(rows).features[:, [ONE.index("text_last"), ONE.index("text_near")]].any()


# --- invariances and odd worlds -----------------------------------------------------------------------------


def rows_of(found: Candidates, names=None):
    """Each candidate's features by person (named) and item."""
    people = found.person if names is None else np.asarray(names)[found.person]
    return {(int(p), int(i)): f for p, i, f in zip(people, found.item, found.features, strict=True)}


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, PEOPLE - 1), min_size=1, max_size=PEOPLE, unique=True))
def test_a_person_has_the_same_candidates_whoever_stands_beside(people):
    some = KNOWN.select(people)
    mask = np.random.default_rng(0).random((PEOPLE, ITEMS)) < 0.8
    whole = rows_of(candidates(SCORES, KNOWN, mask, SHELF, STOCK, 5))
    scores = {name: score[people] for name, score in SCORES.items()}
    found = rows_of(candidates(scores, some, mask[people], SHELF, STOCK, 5), people)
    assert found.keys() == {pair for pair in whole if pair[0] in people}
    assert all(np.allclose(found[pair], whole[pair], atol=1e-6, equal_nan=True) for pair in found)


ODD = {
    "no events": made([]),
    "returns only": made([(0, 1, 5.0, -5.0), (1, 1, 6.0, -5.0)]),
    "one person": made([(0, 1, 5.0), (0, 2, 6.0)], people=1),
    "all at once": made([(0, 1, AT)] * 3 + [(0, 2, AT)]),
}


@pytest.mark.parametrize("world", ODD)
def test_an_odd_world_has_features_without_infinities(world):
    known = ODD[world]
    stock = Stock.of(known, np.where(np.arange(ITEMS) % 2, 0.0, np.nan))
    scores = {name: generators.fit(name, known, SHELF).score(known) for name in generators.MEMBERS}
    scores["liked"] = np.tile(np.arange(ITEMS, dtype=np.float32), (len(known), 1))
    found = candidates(scores, known, np.ones((len(known), ITEMS), bool), SHELF, stock, 3)
    assert set(found.person) == set(range(len(known)))
    assert not np.isinf(found.features).any()
    assert len(feature_names(list(scores))) == found.features.shape[1]


@pytest.mark.parametrize("price", [-1.0, -7.5, 0.0, np.inf])
def test_an_odd_price_is_no_infinite_feature(price):
    rows = [(0, 0, 1.0), (0, 1, 2.0)]
    found = features_of(rows, stock=Stock.of(made(rows, 2, 4), np.array([price, 3.0, price, np.nan])))
    assert not np.isinf(found.features).any()


def test_where_there_is_one_item_there_is_nothing_to_choose():
    """Of one item every source says the same as of all: no candidates, and the list for everyone steps in."""
    known, shelf = made([(0, 0, 1.0)], people=2, items=1), Shelf(np.zeros((1, 2), np.float32))
    scores = {name: generators.fit(name, known, shelf).score(known) for name in MEMBERS}
    assert len(candidates(scores, known, np.ones((2, 1), bool), shelf, Stock.of(known), 5)) == 0


def test_nobody_has_no_candidates():
    found = candidates({"one": np.zeros((0, 4), np.float32)}, made([], 0, 4), np.ones((0, 4), bool), SHELF, STOCK, 3)
    assert len(found) == 0 and found.features.shape == (0, len(ONE))


def test_a_source_that_was_fitted_on_fewer_people_may_score_others():
    """What was fitted at a cut scores whoever comes: nothing of a person is in a generator."""
    newcomer = made([(0, 3, 5.0)], people=1)
    scores = {name: member.score(newcomer) for name, member in MEMBERS.items()}
    found = candidates(scores, newcomer, np.ones((1, ITEMS), bool), SHELF, STOCK, 5)
    assert len(found) and not np.isinf(found.features).any()
