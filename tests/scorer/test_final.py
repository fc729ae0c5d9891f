"""The final order: it begins at the ranker's, takes from the language model what helps, and says what that is worth."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakerec.config import Ranker as Settings
from lakerec.errors import ModelError, NotEnoughDataError
from lakerec.features import Stock
from lakerec.histories import Histories
from lakerec.metrics import Comparison
from lakerec.protocols import Part
from lakerec.scorer import final
from lakerec.scorer.calibration import Calibration
from lakerec.scorer.final import FEATURES, GUARDED, TOLD, Final, Shortlist, Verdict
from lakerec.slices import Slices

PEOPLE, ITEMS, K = 120, 40, 8
SMALL = Settings(folds=3, rounds=40, patience=10, min_leaf=5)


def shop(seed=0, people=PEOPLE):
    """Histories of three events each, a shortlist of K, and one target of each person, mostly on the list."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(people), 3)
    histories = Histories.of_events(users, rng.integers(0, ITEMS, 3 * people), rng.random(3 * people), people, ITEMS)
    items = np.stack([rng.permutation(ITEMS)[:K] for _ in range(people)])
    scores = -np.sort(-rng.normal(size=(people, K)).astype(np.float32), axis=1)
    targets = [np.array([row[rng.integers(K)] if rng.random() < 0.9 else ITEMS - 1], dtype=np.int32) for row in items]
    return histories, Stock.of(histories), Shortlist(items, scores), targets


def told_of(shortlist, targets, worth, seed=1):
    """Corrections that know the target as far as `worth` says."""
    rng = np.random.default_rng(seed)
    return [
        (worth * np.isin(row, wanted) + rng.normal(size=K)).astype(np.float32)
        for row, wanted in zip(shortlist.items, targets, strict=True)
    ]


def learned(worth, people=PEOPLE):
    histories, stock, shortlist, targets = shop(people=people)
    told = told_of(shortlist, targets, worth)
    table = shortlist.table(told, histories, stock)
    return final.learn(shortlist, table, targets, np.arange(people), SMALL, 1), table, shortlist, targets


def ndcg(shortlist, scores, targets):
    return np.mean(final._ndcg(shortlist.ranks(scores, targets), targets))


def test_a_language_model_that_knows_something_pays_and_one_that_does_not_does_not():
    wise, table, shortlist, targets = learned(4.0)
    assert wise.pays and wise.gain.gain > 0.1
    ranker = ndcg(shortlist, table[:, 0], targets)
    assert ndcg(shortlist, wise.final.score(table), targets) > ranker + 0.1
    fool = learned(0.0)[0]
    assert not fool.pays and abs(fool.gain.gain) < 0.1


def test_the_gain_is_of_people_whom_the_boosters_have_not_learned():
    """Noise fits those it was learned on: a gain taken there would be far above zero."""
    verdict, table, shortlist, targets = learned(0.0)
    own = ndcg(shortlist, verdict.final.score(table), targets)
    assert own > ndcg(shortlist, table[:, 0], targets)
    assert verdict.gain.low < 0


def test_the_final_order_is_that_of_the_probabilities():
    verdict, table, shortlist, _ = learned(4.0)
    scores = verdict.final.score(table)
    chances = verdict.final.calibration.probabilities(scores, final._places(shortlist, scores))
    assert ((chances > 0) & (chances < 1)).all()
    by_score, by_chance = shortlist.ordered(scores).items, shortlist.ordered(chances).items
    assert np.array_equal(by_score, by_chance)


def test_what_is_saved_scores_alike_and_a_broken_one_is_named(tmp_path):
    verdict, table, *_ = learned(4.0)
    assert Final.load(tmp_path) is None
    for name, order in verdict.orders.items():
        order.save(tmp_path, name)
        found = Final.load(tmp_path, name)
        assert np.array_equal(found.score(table), order.score(table)) and found.calibration == order.calibration
    (tmp_path / "final-0.txt").write_text("no booster")
    with pytest.raises(ModelError, match=r"final\.json: no final order"):
        Final.load(tmp_path)


def test_one_of_the_orders_knows_nothing_of_what_was_read():
    verdict, table, shortlist, _ = learned(4.0)
    other = shortlist.table(told_of(shortlist, [np.zeros(0, int)] * PEOPLE, 0.0), *shop(people=PEOPLE)[:2])
    assert not np.array_equal(verdict.final.score(table), verdict.final.score(other))
    assert np.array_equal(verdict.unread.score(table), verdict.unread.score(other))


def test_the_table_tells_of_the_list_the_person_and_the_item():
    histories, stock, _, _ = shop(people=3)
    shortlist = Shortlist(
        np.array([[4, 2], [7, -1], [-1, -1]]), np.array([[2.0, 1.0], [3.0, np.nan], [np.nan, np.nan]], np.float32)
    )
    told = [np.array([-1.0, 5.0], np.float32), np.array([0.5], np.float32), np.zeros(0, np.float32)]
    table = shortlist.table(told, histories, stock)
    assert table.shape == (3, len(FEATURES)) and shortlist.person.tolist() == [0, 0, 1]
    columns = dict(zip(FEATURES, table.T, strict=True))
    assert columns["ranker"].tolist() == [2, 1, 3] and columns["ranker_z"].tolist() == [1, -1, 0]
    assert np.allclose(columns["ranker_place"], np.log1p([0, 1, 0]))
    assert columns["language_model"].tolist() == [-1, 5, 0.5]
    assert np.allclose(columns["language_model_place"], np.log1p([1, 0, 0]))
    assert np.allclose(columns["events"], np.log1p(3))
    counts = np.bincount(histories.items, minlength=ITEMS)
    assert np.allclose(columns["chosen"], np.log1p(counts[[4, 2, 7]]))


def partial(min_users=1, guarded=True, people=300):
    """A verdict on a language model that tells everyone of a popular item, where the ranker knows who wants another."""
    histories, stock, shortlist, _ = shop(people=people)
    rng, shelf = np.random.default_rng(2), np.arange(ITEMS, dtype=np.int32)
    popular = Slices.of(Part(histories, np.arange(people), np.append(0, np.full(people, ITEMS)), shelf), stock)
    head, tail = (np.flatnonzero(popular.targets[name]) for name in ("head items", "tail items"))
    rows, liked, targets = [], [], []
    for wants_tail in rng.random(people) < 0.3:
        heads, tails = rng.permutation(head)[: K // 2], rng.permutation(tail)[: K // 2]
        row = rng.permutation(np.append(heads, tails))
        rows.append(np.append(tails[0], row[row != tails[0]]) if wants_tail else row)
        liked.append(heads[:1])
        targets.append(np.array([tails[0] if wants_tail else heads[0]], dtype=np.int32))
    shortlist = Shortlist(np.stack(rows), shortlist.scores)
    table = shortlist.table(told_of(shortlist, liked, 6.0), histories, stock)
    part = Part(histories, np.arange(people), np.arange(people + 1), np.concatenate(targets))
    slices = Slices.of(part, stock) if guarded else None
    return final.learn(shortlist, table, targets, np.arange(people), SMALL, 1, slices, min_users)


def test_a_language_model_that_takes_from_the_tail_what_it_gives_to_the_head_does_not_pay():
    verdict = partial()
    assert verdict.gain.low > 0.05 and verdict.slices["tail items"].high < 0
    assert verdict.doubt.startswith("surely worse in tail items -0.") and not verdict.pays
    assert verdict.told["slices"]["tail items"]["users"] == verdict.slices["tail items"].users > 50
    assert verdict.told["doubt"] == verdict.doubt and verdict.told["gain"] == verdict.gain.gain
    assert set(verdict.slices) <= set(TOLD)
    explore = replace(verdict, slices={"explore items": verdict.slices["tail items"]})
    assert explore.pays and explore.told["slices"].keys() == {"explore items"}  # told, not guarded


def test_a_slice_of_few_people_does_not_decide_and_none_does_where_none_is_given():
    enough = partial().slices["tail items"].users
    assert "tail items" in partial(enough).slices and not partial(enough).pays
    few, none = partial(enough + 1), partial(guarded=False)
    assert "tail items" not in few.slices and few.pays and not few.doubt
    assert none.slices == {} and none.pays and none.gain == few.gain


GAINS = st.tuples(st.floats(-1, 1), st.floats(0, 0.5)).map(lambda g: Comparison(g[0], g[0] - g[1], g[0] + g[1], 200, 0))


@given(GAINS, st.dictionaries(st.sampled_from(GUARDED), GAINS))
def test_a_language_model_pays_where_it_gains_and_no_slice_surely_loses(gain, slices):
    verdict = Verdict(None, None, gain, slices)
    worse = [name for name, each in slices.items() if each.high < 0]
    assert verdict.pays == (gain.low > 0 and not worse) == (verdict.doubt == "")
    assert gain.low <= 0 or all(name in verdict.doubt for name in worse)


def test_a_gain_that_is_no_number_does_not_pay():
    nothing = Comparison(0.1, np.nan, np.nan, 1, np.nan)
    assert not Verdict(None, None, nothing).pays


def test_too_few_people_are_named():
    with pytest.raises(NotEnoughDataError, match="two people"):
        learned(1.0, people=1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-20, 20, width=32), st.booleans()), min_size=2, max_size=40))
def test_a_calibration_keeps_the_order_and_stays_between_0_and_1(rows):
    scores = np.sort(np.array([score for score, _ in rows], dtype=np.float32))[::-1]
    labels = np.array([label for _, label in rows], dtype=np.float32)
    places = np.arange(1, len(rows) + 1)
    found = Calibration.fit(scores, places, labels).probabilities(scores, places)
    assert np.isfinite(found).all() and (found >= 0).all() and (found <= 1).all()
    assert (np.diff(found) <= 0).all()


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=300))
def test_probabilities_that_fall_or_stay_fall_from_place_to_place(chances):
    given_ = np.sort(np.array(chances, dtype=np.float32))[::-1]
    (found,) = final.as_ranked([given_])
    assert found.dtype == np.float32 and (np.diff(found) < 0).all() and (found > 0).all() and (found <= 1).all()
    assert np.allclose(found, given_, atol=1e-4)


def test_a_calibration_gives_the_shares_that_were_seen():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=20000).astype(np.float32)
    labels = (rng.random(20000) < 1 / (1 + np.exp(-(2 * scores - 1)))).astype(np.float32)
    ones = np.ones(20000, dtype=int)
    found = Calibration.fit(scores, ones, labels).probabilities(scores, ones)
    for low, high in [(0.0, 0.2), (0.4, 0.6), (0.8, 1.0)]:
        inside = (found >= low) & (found < high)
        assert abs(found[inside].mean() - labels[inside].mean()) < 0.02
