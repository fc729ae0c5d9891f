"""The final order: it begins at the ranker's, takes from the language model what helps, and says what that is worth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakerec.config import Ranker as Settings
from lakerec.errors import ModelError, NotEnoughDataError
from lakerec.features import Stock
from lakerec.histories import Histories
from lakerec.scorer import final
from lakerec.scorer.calibration import Calibration
from lakerec.scorer.final import FEATURES, Final, Shortlist

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


def test_a_language_model_that_knows_something_pays_and_one_that_does_not_does_not():
    wise, table, shortlist, targets = learned(4.0)
    assert wise.pays and wise.gain.gain > 0.1
    ranker = np.nanmean(shortlist.ndcg(table[:, 0], targets))
    assert np.nanmean(shortlist.ndcg(wise.final.score(table), targets)) > ranker + 0.1
    fool = learned(0.0)[0]
    assert not fool.pays and abs(fool.gain.gain) < 0.1


def test_the_gain_is_of_people_whom_the_boosters_have_not_learned():
    """Noise fits those it was learned on: a gain taken there would be far above zero."""
    verdict, table, shortlist, targets = learned(0.0)
    own = np.nanmean(shortlist.ndcg(verdict.final.score(table), targets))
    assert own > np.nanmean(shortlist.ndcg(table[:, 0], targets))
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


def test_a_calibration_gives_the_shares_that_were_seen():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=20000).astype(np.float32)
    labels = (rng.random(20000) < 1 / (1 + np.exp(-(2 * scores - 1)))).astype(np.float32)
    ones = np.ones(20000, dtype=int)
    found = Calibration.fit(scores, ones, labels).probabilities(scores, ones)
    for low, high in [(0.0, 0.2), (0.4, 0.6), (0.8, 1.0)]:
        inside = (found >= low) & (found < high)
        assert abs(found[inside].mean() - labels[inside].mean()) < 0.02
