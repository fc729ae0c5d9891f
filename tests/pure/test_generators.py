"""Generators: each against its definition by loops, its state, a grown catalogue, and people with nothing to tell."""

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from lakerec import generators
from lakerec.errors import ConfigError
from lakerec.generators import MEMBERS, Widened, fit, restore, tune
from lakerec.generators.base import Shelf, faded, largest, pack, strongest, unpack
from lakerec.generators.content import Graph, Profile, Text
from lakerec.generators.factors import Als, solve
from lakerec.generators.linear import Ease
from lakerec.generators.neighbours import ItemKnn, Markov, UserKnn
from lakerec.generators.popularity import ALWAYS, DailyCounts, New, PatternPopular, Personal, Popular, Rising
from lakerec.histories import Histories

PEOPLE, ITEMS, DAYS = 12, 9, 40
FITTED = [name for name, member in MEMBERS.items() if not member.kind.fresh]


def made(rows, people=PEOPLE, items=ITEMS, at=DAYS, groups=None):
    """Histories of (user, item, time) or (user, item, time, weight)."""
    columns = [np.array([row[n] if n < len(row) else 1.0 for row in rows]) for n in range(4)]
    user, item = columns[0].astype(int), columns[1].astype(int)
    found = Histories.of_events(user, item, columns[2], people, items, weights=columns[3], at=at)
    return found if groups is None else replace(found, groups=np.asarray(groups, dtype=np.int32))


def random_rows(seed=0, count=90, items=ITEMS):
    """Some people return things; everyone has repeats; the last person has no event."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0, DAYS, count))
    weights = rng.choice([1.0, 3.0, -5.0], count, p=[0.5, 0.35, 0.15])
    columns = (rng.integers(0, PEOPLE - 1, count), rng.integers(0, items, count), times, weights)
    return [(int(u), int(i), float(t), float(w)) for u, i, t, w in zip(*columns, strict=True)]


def make_shelf(items=ITEMS, seed=3):
    """Texts of 4 numbers, the second item without one; 5 nodes, the last one touches every item; new items."""
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(items, 4)) + 1.0
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    text[1:2] = 0
    nodes = (rng.random((items, 5)) < 0.4).astype(np.float32)
    nodes[:, 4] = 1
    first = DAYS - 5.0 * np.arange(items)
    return Shelf(text.astype(np.float32), sparse.csr_matrix(nodes), first)


ROWS, SHELF = random_rows(), make_shelf()
PROFILES = np.random.default_rng(4).normal(size=(PEOPLE, 4)).astype(np.float32)
KNOWN = replace(made(ROWS, groups=np.arange(PEOPLE) % 3 - 1), profiles=PROFILES)


def choices(histories):
    """Each person's chosen items, oldest first."""
    spans = zip(histories.starts, histories.starts[1:], strict=False)
    return [histories.items[a:b][histories.weights[a:b] > 0].tolist() for a, b in spans]


def fading(histories, keep, length=None):
    """People x items by loops: the latest choice of an item weighs keep ** (choices behind it)."""
    found = np.zeros((len(histories), histories.n_items))
    for person, mine in enumerate(choices(histories)):
        mine = mine if length is None else mine[-length:]
        for behind, item in enumerate(reversed(mine)):
            found[person, item] = max(found[person, item], keep**behind)
    return found


def who_chose(histories):
    """People x items, 0 or 1."""
    found = np.zeros((len(histories), histories.n_items))
    for person, mine in enumerate(choices(histories)):
        found[person, mine] = 1
    return found


# --- what they share ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [None, 1, 3, 500])
def test_a_history_fades_by_its_choices_and_a_repeat_keeps_the_latest(length):
    assert np.allclose(faded(KNOWN, 0.8, length).toarray(), fading(KNOWN, 0.8, length))


def test_the_largest_value_of_a_pair_also_where_all_are_negative():
    known = made([(0, 1, 1.0), (0, 1, 2.0), (1, 0, 1.0), (0, 2, 3.0)], people=2)
    found = largest(known, np.array([-3.0, -2.0, -7.0, -4.0]))
    assert {(u, i): found[u, i] for u, i in zip(*found.nonzero(), strict=True)} == {(0, 1): -2, (0, 2): -7, (1, 0): -4}


def test_the_strongest_of_a_row_ties_by_column():
    rows = sparse.csr_matrix(np.array([[1, 3, 3, 2], [0, 0, 0, 0], [5, 5, 5, 5]], dtype=np.float32))
    assert strongest(rows, 2).toarray().tolist() == [[0, 3, 3, 0], [0, 0, 0, 0], [5, 5, 0, 0]]
    assert (strongest(rows, 9) != rows).nnz == 0


def test_a_packed_matrix_comes_back():
    matrix = sparse.random(5, 7, 0.3, format="csr", random_state=1, dtype=np.float32)
    assert (unpack("m", pack("m", matrix)) != matrix).nnz == 0


def test_centred_texts_have_length_one_and_no_text_stays_nothing():
    told = np.delete(SHELF.text, 1, axis=0)
    moved = told - told.mean(axis=0)
    wanted = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    assert np.allclose(np.delete(SHELF.centred, 1, axis=0), wanted, atol=1e-6)
    assert (SHELF.centred[1] == 0).all()
    assert not Shelf(np.zeros((3, 2), np.float32)).centred.any()


# --- by their definitions -----------------------------------------------------------------------------------


def test_ease_is_a_ridge_regression_of_every_item_on_the_others():
    seen, weights = who_chose(KNOWN), np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):
        others = [other for other in range(ITEMS) if other != item]
        x, y = seen[:, others], seen[:, item]
        weights[others, item] = np.linalg.solve(x.T @ x + 7.0 * np.eye(len(others)), x.T @ y)
    found = Ease.fit(KNOWN, SHELF, penalty=7.0, keep=0.85)
    assert np.allclose(found.weights, weights, atol=1e-5)
    assert np.allclose(found.score(KNOWN), fading(KNOWN, 0.85) @ weights, atol=1e-5)


def test_ease_without_a_penalty_says_so_where_an_item_was_never_chosen_and_knows_an_empty_shop():
    with pytest.raises(ConfigError, match="penalty"):
        Ease.fit(made(ROWS, items=ITEMS + 1), SHELF, penalty=0.0)
    nothing = made([], people=2, items=0)
    assert Ease.fit(nothing, Shelf(np.zeros((0, 2), np.float32))).score(nothing).shape == (2, 0)


def test_ease_leaves_out_all_but_the_most_chosen_items():
    counts = who_chose(KNOWN).sum(axis=0)
    kept = sorted(sorted(range(ITEMS), key=lambda item: (-counts[item], item))[:4])
    found = Ease.fit(KNOWN, SHELF, limit=4).score(KNOWN)
    assert set(np.flatnonzero(np.abs(found).sum(axis=0))) <= set(kept)
    narrow = made([(u, kept.index(i), t, w) for u, i, t, w in ROWS if i in kept], items=4)
    fade = fading(KNOWN, 0.85)[:, kept]  # the history fades by all choices, those of other items too
    assert np.allclose(found[:, kept], fade @ Ease.fit(narrow, SHELF).weights, atol=1e-5)


def test_item_knn_is_the_cosine_with_shrinkage():
    seen, similar = who_chose(KNOWN), np.zeros((ITEMS, ITEMS))
    for a in range(ITEMS):
        for b in set(range(ITEMS)) - {a}:
            both = (seen[:, a] * seen[:, b]).sum()
            similar[a, b] = both / (np.sqrt(seen[:, a].sum() * seen[:, b].sum()) + 5.0)
    wanted = np.zeros_like(similar)
    for a in range(ITEMS):
        near = sorted(range(ITEMS), key=lambda b, a=a: (-similar[a, b], b))[:3]
        wanted[a, near] = similar[a, near]
    found = ItemKnn.fit(KNOWN, SHELF, neighbours=3, shrink=5.0, keep=0.9)
    assert np.allclose(found.similar.toarray(), wanted, atol=1e-6)
    assert np.allclose(found.score(KNOWN), fading(KNOWN, 0.9) @ wanted, atol=1e-5)


def transitions(histories, span, fade, shrink):
    """P(b | a) by loops."""
    counted = np.zeros((histories.n_items, histories.n_items))
    for mine in choices(histories):
        for place, first in enumerate(mine):
            for distance, second in enumerate(mine[place + 1 : place + 1 + span], start=1):
                counted[first, second] += fade ** (distance - 1)
    np.fill_diagonal(counted, 0)
    return counted / (counted.sum(axis=1, keepdims=True) + shrink)


def test_markov_counts_what_comes_behind_faded_by_distance():
    wanted = transitions(KNOWN, 3, 0.7, 5.0)
    found = Markov.fit(KNOWN, SHELF, span=3, fade=0.7, length=2, keep=0.6)
    assert np.allclose(found.following.toarray(), wanted, atol=1e-6)
    assert np.allclose(found.score(KNOWN), fading(KNOWN, 0.6, 2) @ wanted, atol=1e-5)


def test_markov_is_directed_and_keeps_the_likeliest():
    known = made([(0, 0, 1), (0, 1, 2), (0, 2, 3), (1, 0, 1), (1, 2, 2)], people=2, items=3)
    found = Markov.fit(known, SHELF, span=5, fade=0.5, shrink=1.0, neighbours=1).following.toarray()
    # 0 -> 2 once at distance 2 and once at distance 1; 0 -> 1 once at distance 1; one step of nothing.
    assert found.tolist() == [[0, 0, pytest.approx(1.5 / 3.5)], [0, 0, 0.5], [0, 0, 0]]


def test_user_knn_is_what_the_nearest_others_chose():
    history = fading(KNOWN, 0.9)
    unit = history / np.maximum(np.linalg.norm(history, axis=1, keepdims=True), 1e-12)
    cosine, seen, wanted = unit @ unit.T, who_chose(KNOWN), np.zeros((PEOPLE, ITEMS))
    for person in range(PEOPLE):
        others = [other for other in range(PEOPLE) if other != person]
        for other in sorted(others, key=lambda o, p=person: (-cosine[p, o], o))[:4]:
            wanted[person] += cosine[person, other] ** 2 * seen[other]
    found = UserKnn.fit(KNOWN, SHELF, neighbours=4, keep=0.9)
    assert np.allclose(found.score(KNOWN), wanted, atol=1e-5)


def test_user_knn_keeps_the_people_with_the_most_events():
    most = np.sort(np.argsort(-KNOWN.lengths, kind="stable")[:5])
    found = UserKnn.fit(KNOWN, SHELF, limit=5).people.toarray()
    history = fading(KNOWN.select(most), 0.98)
    assert np.allclose(found, history / np.linalg.norm(history, axis=1, keepdims=True), atol=1e-6)


def squares(ratings, people, items, alpha, reg):
    """The loss of implicit ALS in each person's part, regularised by their number of items as Spark does."""
    confidence = 1 + alpha * ratings
    misses = (confidence * ((ratings > 0) - people @ items.T) ** 2).sum(axis=1)
    return misses + reg * (ratings > 0).sum(axis=1) * (people**2).sum(axis=1)


def test_a_half_step_of_als_solves_the_normal_equations():
    rng = np.random.default_rng(5)
    ratings = (rng.random((6, ITEMS)) < 0.5) * rng.integers(1, 4, (6, ITEMS)).astype(float)
    ratings[2] = 0
    items, alpha, reg = rng.normal(size=(ITEMS, 3)), 4.0, 0.2
    found = solve(sparse.csr_matrix(ratings), items, alpha, reg)
    for row in range(6):
        weigh = np.diag(1 + alpha * ratings[row])
        left = items.T @ weigh @ items + reg * (ratings[row] > 0).sum() * np.eye(3)
        assert np.allclose(left @ found[row], items.T @ weigh @ (ratings[row] > 0))
    least = squares(ratings, found, items, alpha, reg)
    for step in np.eye(3) * 1e-2:
        for side in (step, -step):
            told = squares(ratings, found + side, items, alpha, reg) >= least
            assert told[[0, 1, 3, 4, 5]].all()
    assert (found[2] == 0).all()


def test_als_folds_people_in_and_is_the_same_again():
    found = Als.fit(KNOWN, SHELF, size=3, alpha=2.0, reg=0.1, rounds=15)
    people = solve(sparse.csr_matrix(who_chose(KNOWN)), found.factors.astype(float), 2.0, 0.1)
    assert np.allclose(found.score(KNOWN), people @ found.factors.T, atol=1e-5)
    assert np.array_equal(found.factors, Als.fit(KNOWN, SHELF, size=3, alpha=2.0, reg=0.1, rounds=15).factors)
    seen = who_chose(KNOWN)
    told = found.score(KNOWN)[:-1]
    assert told[seen[:-1] > 0].mean() > told[seen[:-1] == 0].mean() + 0.3


def test_popularity_ends_with_the_day_of_scoring_and_older_choices_count_a_millionth():
    rows = [(0, 0, 9.9), (0, 0, 10.2), (1, 1, 12.5), (1, 1, 12.6), (0, 1, 12.1), (1, 2, 13.0), (0, 3, 12.0, -5.0)]
    found = Popular.fit(made(rows, people=2, items=4), SHELF, days=3.0)
    today, later = found.score(made([], people=2, items=4, at=np.array([12.99, 13.0])))
    # As of day 12: the days 10 .. 12 count whole, day 9 a millionth, day 13 and a return not at all.
    whole = np.array([1.0 + 2e-6, 3 + 3e-6, 0, 0])
    assert np.allclose(today, whole / whole.sum(), atol=1e-9)
    whole = np.array([2e-6, 3 + 3e-6, 1 + 1e-6, 0])
    assert np.allclose(later, whole / whole.sum(), atol=1e-9)


def test_rising_is_the_growth_against_what_the_days_before_promise():
    rows = [(0, 0, day) for day in (4.0, 11.0, 12.0)] + [(1, 1, 5.5), (1, 1, 6.5), (0, 2, 12.5), (0, 2, 12.9, -5.0)]
    found = Rising.fit(made(rows, people=2, items=4), SHELF, days=2.0, past=8.0)
    told = found.score(made([], people=1, items=4, at=12.99))[0]
    # As of day 12: item 0 twice on the days 11 and 12 and once on 3 .. 10, item 1 only before, item 2 only now.
    assert np.allclose(told, [np.log(3 / (1 + 2 / 8)), 0, np.log(2), 0])


def test_new_items_are_told_by_their_age_the_newest_first():
    shelf = Shelf(np.zeros((5, 1), np.float32), None, np.array([40.0, 35.0, 29.9, 41.0, np.nan]))
    assert np.allclose(
        New.fit(KNOWN, shelf, days=10.0).score(made([], people=1, items=5, at=40.0)), [[1, 0.5, 0, 0, 0]]
    )
    unlisted = New.fit(made([(0, 1, 35.5), (0, 1, 39.0)], items=3), Shelf(np.zeros((3, 1), np.float32)), days=10.0)
    assert np.allclose(unlisted.score(made([], people=1, items=3, at=40.0)), [[0, 0.5, 0]])


def test_a_profile_speaks_by_the_cosine_with_its_text():
    found = Profile.fit(KNOWN, SHELF).score(KNOWN)
    assert np.allclose(found, PROFILES @ SHELF.text.T, atol=1e-6)
    assert not Profile.fit(KNOWN, SHELF).score(made(ROWS)).any()


def test_popularity_of_an_empty_window_is_that_of_all_time():
    found = Popular.fit(made([(0, 0, 1.0), (0, 1, 1.5), (1, 1, 2.0)], people=2, items=3), SHELF, days=7.0)
    assert np.allclose(found.score(made([], people=1, items=3, at=300.0)), [[1 / 3, 2 / 3, 0]])


def test_daily_counts_are_counts_by_day():
    rng = np.random.default_rng(1)
    items, times = rng.integers(0, 5, 60), rng.uniform(100, 130, 60)
    found = DailyCounts.of_counts(items, times, np.ones(60), 5)
    for at in (90.0, 100.0, 111.7, 129.99, 500.0):
        for days in (1.0, 7.0, ALWAYS):
            inside = (np.floor(times) <= np.floor(at)) & (np.floor(times) > np.floor(at) - days)
            assert found.within(at, days).tolist() == np.bincount(items[inside], minlength=5).tolist()
    wanted = [np.floor(times[items == item]).min(initial=np.inf) for item in range(5)]
    assert found.first_days().tolist() == wanted
    counted = DailyCounts.of_counts([0, 1, 0], [7.0, 7.0, 9.0], [2.0, 1.0, 5.0], 3)
    assert counted.within(9.0, 3.0).tolist() == [7, 1, 0]
    assert np.isnan(counted.first_days()[2])


def test_a_personal_choice_halves_with_each_half_life():
    rows = [(0, 2, 40.0), (0, 2, 30.0), (0, 1, 20.0), (0, 3, 40.0, -5.0), (1, 2, 10.0)]
    found = Personal.fit(made(rows), SHELF, half_life=10.0).score(made(rows, at=40.0))
    assert np.allclose(found[0, :4], [0, 0.25, 1.5, 0]) and np.allclose(found[1, 2], 0.125)
    counts = Personal.fit(made(rows), SHELF, half_life=ALWAYS).score(made(rows))
    assert np.allclose(counts[0, :4], [0, 1, 2, 0])


def test_a_pattern_speaks_by_the_shares_of_its_people():
    rows = [(0, 0, 39), (0, 0, 38), (1, 1, 39), (2, 2, 39), (3, 3, 39), (0, 4, 39, -5.0), (1, 5, 3)]
    found = PatternPopular.fit(made(rows, groups=[0, 0, 2, -1] + [1] * 8), SHELF, days=30.0)
    shares = Counter({0: 2, 1: 1})
    assert np.allclose(found.shares[0], [shares[item] / 3 for item in range(ITEMS)])
    assert np.allclose(found.shares[2], np.eye(ITEMS)[2]) and not found.shares[1].any()
    told = found.score(made([], people=3, groups=[2, -1, 7]))
    assert np.allclose(told[0], np.eye(ITEMS)[2])
    assert not told[1:].any()  # no pattern, and one that the fit has not seen


@pytest.mark.parametrize("length", [2, 50])
def test_text_is_the_cosine_with_the_faded_history(length):
    found = Text.fit(KNOWN, SHELF, length=length, keep=0.7).score(KNOWN)
    people = fading(KNOWN, 0.7, length) @ SHELF.centred
    norms = np.linalg.norm(people, axis=1, keepdims=True)
    assert np.allclose(found, people / np.maximum(norms, 1e-9) @ SHELF.centred.T, atol=1e-5)
    assert (found[:, 1] == 0).all()


def test_graph_is_the_cosine_of_memberships_and_a_rare_node_counts_more():
    nodes = SHELF.graph.toarray()
    weighed = nodes * np.log(ITEMS / np.maximum((nodes > 0).sum(axis=0), 1))
    norms = np.linalg.norm(weighed, axis=1, keepdims=True)
    unit = np.divide(weighed, norms, out=np.zeros_like(weighed), where=norms > 0)
    found = Graph.fit(KNOWN, SHELF, length=4, keep=0.9)
    assert np.allclose(found.score(KNOWN), fading(KNOWN, 0.9, 4) @ unit @ unit.T, atol=1e-5)
    assert not found.members.toarray()[:, 4].any()  # the node of every item says nothing
    assert not Graph.fit(KNOWN, Shelf(SHELF.text)).score(KNOWN).any()


@pytest.mark.parametrize("name", [name for name, member in MEMBERS.items() if member.stretch])
def test_a_generator_of_visits_is_fitted_on_stretches(name):
    long = made([(0, n * n % ITEMS, n / 2) for n in range(70)] + ROWS, people=PEOPLE)
    size, kind = MEMBERS[name].stretch, MEMBERS[name].kind
    wanted = kind.fit(long.stretches(size), SHELF, **MEMBERS[name].grid[0])
    assert np.allclose(fit(name, long, SHELF).score(KNOWN), wanted.score(KNOWN))
    assert not np.allclose(kind.fit(long, SHELF, **MEMBERS[name].grid[0]).score(KNOWN), wanted.score(KNOWN))


# --- state, a grown catalogue, tuning -----------------------------------------------------------------------


@pytest.mark.parametrize("name", MEMBERS)
def test_a_generator_comes_back_from_its_state(name, tmp_path):
    first = fit(name, KNOWN, SHELF)
    np.savez(tmp_path / "state.npz", **first.state())
    with np.load(tmp_path / "state.npz") as state:
        again = MEMBERS[name].kind.restore(dict(state))
    assert np.array_equal(again.score(KNOWN), first.score(KNOWN))
    assert {key: type(value) for key, value in vars(again).items() if key != "shares"} == {
        key: type(value) for key, value in vars(first).items() if key != "shares"
    }


@pytest.mark.parametrize("name", FITTED)
def test_in_a_grown_catalogue_a_generator_is_silent_on_what_it_does_not_know(name):
    old = fit(name, KNOWN, SHELF)
    assert old.items == ITEMS
    grown = restore(name, old.state(), ITEMS + 2)
    planted = [(u, ITEMS + u % 2, t, 9.0) for u, _, t, _ in ROWS[::7]]
    found = grown.score(made(sorted([*ROWS, *planted], key=lambda row: row[2]), items=ITEMS + 2))
    assert found.shape == (PEOPLE, ITEMS + 2) and not found[:, ITEMS:].any()
    assert np.array_equal(found[:, :ITEMS], old.score(KNOWN))


def test_a_widened_generator_is_neither_fitted_nor_restored_by_itself():
    with pytest.raises(NotImplementedError):
        Widened.fit(KNOWN, SHELF)
    with pytest.raises(NotImplementedError):
        Widened.restore({})


@pytest.mark.parametrize("name", [name for name, member in MEMBERS.items() if len(member.grid) > 1])
def test_settings_tried_without_a_new_fit_are_those_of_a_new_fit(name):
    tried = []
    tune(name, KNOWN, SHELF, lambda generator: tried.append(generator.score(KNOWN)) or 0.0)
    wanted = [fit(name, KNOWN, SHELF, settings).score(KNOWN) for settings in MEMBERS[name].grid]
    assert len(tried) == len(wanted)
    assert all(np.array_equal(one, other) for one, other in zip(tried, wanted, strict=True))


def test_late_settings_cost_no_fit(monkeypatch):
    fits = []
    monkeypatch.setattr(generators, "fit", lambda *given: fits.append(given) or fit(*given))
    generators.tune("ease", KNOWN, SHELF, lambda generator: 0.0)
    assert len(fits) == len({settings["penalty"] for settings in MEMBERS["ease"].grid}) < len(MEMBERS["ease"].grid)


def test_tuning_takes_the_best_and_of_equals_the_first():
    grid = MEMBERS["trending"].grid
    assert tune("trending", KNOWN, SHELF, lambda generator: -generator.days) == {"days": 7.0}
    assert tune("trending", KNOWN, SHELF, lambda generator: 1.0) == grid[0]
    assert tune("popular", KNOWN, SHELF, lambda generator: pytest.fail("nothing to choose")) == {"days": ALWAYS}


# --- odd worlds ---------------------------------------------------------------------------------------------


ODD = {
    "one item": made([(0, 0, 1.0), (0, 0, 2.0), (1, 0, 3.0)], people=3, items=1),
    "one person": made([(0, 0, 1.0), (0, 2, 2.0), (0, 2, 3.0, -5.0)], people=1),
    "one event": made([(0, 1, 1.0)], people=1),
    "no event": made([], people=3),
    "nobody": made([], people=0),
    "returns only": made([(0, 1, 1.0, -5.0), (0, 2, 2.0, -5.0)], people=2),
}


@pytest.mark.parametrize("world", ODD)
@pytest.mark.parametrize("name", MEMBERS)
def test_an_odd_world_gives_finite_scores(name, world):
    known = replace(ODD[world], groups=np.zeros(len(ODD[world]), dtype=np.int32))
    found = fit(name, known, make_shelf(known.n_items)).score(known)
    assert found.shape == (len(known), known.n_items) and found.dtype == np.float32
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", MEMBERS)
def test_who_chose_nothing_is_told_only_what_is_popular_or_new(name):
    people = made([(0, 1, 1.0, -5.0), (0, 2, 2.0, -5.0)], people=2, groups=[-1, -1])
    found = fit(name, KNOWN, SHELF).score(people)
    assert found.any() == (MEMBERS[name].kind in (Popular, Rising, New)) and np.array_equal(found[0], found[1])


@pytest.mark.parametrize("name", MEMBERS)
def test_a_score_is_a_matter_of_the_person_alone(name):
    model = fit(name, KNOWN, SHELF)
    mixed = np.random.default_rng(0).permutation(PEOPLE)[:7]
    assert np.allclose(model.score(KNOWN.select(mixed)), model.score(KNOWN)[mixed], atol=1e-6)


def test_nothing_is_learned_from_what_was_not_chosen():
    """An event of weight 0 or below changes no fit: a return is no choice."""
    chosen = replace(made([row for row in ROWS if row[3] > 0], groups=KNOWN.groups), profiles=PROFILES)
    told = defaultdict(list)
    for name in MEMBERS:
        if name != "user_knn":  # it keeps the people with the most events, returns counted
            one, other = (fit(name, known, SHELF).score(KNOWN) for known in (KNOWN, chosen))
            told[np.allclose(one, other, atol=1e-6)].append(name)
    assert told[False] == []
