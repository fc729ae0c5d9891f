"""The final ranker: the same again, finds what is planted, and judges nobody by what it learned of them."""

import numpy as np
import pytest

from lakerec.config import Ranker as Settings
from lakerec.errors import NotEnoughDataError
from lakerec.features import Candidates
from lakerec.scorer.ranker import Lessons, Ranker, _folds

NAMES = ["noise", "signal", "other"]
QUICK = Settings(rounds=25, patience=10, folds=3, leaves=4, min_leaf=20, learning_rate=0.2)


def made(people=150, each=12, seed=0, codes=None):
    """Lessons of `each` candidates a person: the item of the greatest `signal` was chosen."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(people * each, 3)).astype(np.float32)
    signal = features[:, 1].reshape(people, each)
    labels = (signal == signal.max(axis=1, keepdims=True)).ravel().astype(np.int8)
    query = np.repeat(np.arange(people), each)
    return Lessons(features, labels, query, (np.arange(people) if codes is None else np.asarray(codes))[query])


@pytest.fixture(scope="module")
def fitted():
    lessons = made()
    return lessons, Ranker.fit(lessons, NAMES, QUICK, 1)


def firsts(scores, lessons):
    """The share of queries whose best candidate was chosen."""
    order = np.lexsort((-scores, lessons.query))
    first = order[np.searchsorted(lessons.query[order], np.arange(lessons.queries))]
    return lessons.labels[first].mean()


def test_it_finds_the_planted_signal_for_people_it_has_never_seen(fitted):
    _, ranker = fitted
    strangers = made(seed=1)
    assert firsts(ranker.score(strangers.features), strangers) > 0.6
    gains = ranker.gains()
    assert next(iter(gains)) == "signal" and sum(gains.values()) == pytest.approx(1)
    assert list(gains.values()) == sorted(gains.values(), reverse=True) and set(gains) == set(NAMES)


def test_the_same_lessons_give_the_same_ranker(fitted):
    lessons, ranker = fitted
    assert Ranker.fit(lessons, NAMES, QUICK, 1).text() == ranker.text()
    assert Ranker.fit(lessons, NAMES, QUICK.model_copy(update={"seed": 5}), 1).text() != ranker.text()


def test_a_score_is_the_mean_of_the_boosters_and_of_its_row_alone(fitted):
    lessons, ranker = fitted
    assert len(ranker.boosters) == QUICK.folds
    wanted = np.mean([booster.predict(lessons.features) for booster in ranker.boosters], axis=0)
    found = ranker.score(lessons.features)
    assert found.dtype == np.float32 and np.allclose(found, wanted)
    assert np.array_equal(ranker.score(lessons.features[5:9]), found[5:9])
    assert ranker.score(np.zeros((0, 3), np.float32)).shape == (0,)
    assert np.isfinite(ranker.score(np.full((1, 3), np.nan, np.float32))).all()


def test_unseen_is_by_the_booster_that_did_not_learn_from_the_person(fitted):
    lessons, ranker = fitted
    fold = _folds(lessons.person, QUICK.folds)
    assert len(np.unique(fold)) == QUICK.folds
    found = ranker.unseen(lessons.features, lessons.person)
    for k, booster in enumerate(ranker.boosters):
        assert np.allclose(found[fold == k], booster.predict(lessons.features[fold == k]))


@pytest.mark.parametrize("k", range(3))
def test_a_booster_learns_nothing_of_its_folds_people(k):
    """Their labels decide when it stops, and nothing else."""
    lessons, endless = made(), QUICK.model_copy(update={"patience": 1000})
    changed = lessons.labels.copy()
    held = _folds(lessons.person, QUICK.folds) == k
    changed[held] = np.roll(changed[held], 5)
    others = Lessons(lessons.features, changed, lessons.query, lessons.person)
    one, other = (Ranker.fit(given, NAMES, endless, 1).boosters[k] for given in (lessons, others))
    rounds = min(one.num_trees(), other.num_trees())
    first, second = (b.predict(lessons.features, num_iteration=rounds) for b in (one, other))
    assert rounds and np.array_equal(first, second)


def test_a_person_is_in_the_same_fold_in_every_lesson():
    twice = Lessons.joined([made(20, seed=1), made(20, seed=2)])
    assert (_folds(twice.person, 4).reshape(2, -1)[0] == _folds(twice.person, 4).reshape(2, -1)[1]).all()


def test_a_ranker_comes_back_from_its_text(fitted):
    lessons, ranker = fitted
    again = Ranker.restore(ranker.text())
    assert again.names == NAMES and len(again.boosters) == len(ranker.boosters)
    assert np.array_equal(again.score(lessons.features), ranker.score(lessons.features))
    assert np.array_equal(
        again.unseen(lessons.features, lessons.person), ranker.unseen(lessons.features, lessons.person)
    )


@pytest.mark.parametrize("people", [0, 1])
def test_fewer_than_two_people_are_too_few(people):
    lessons = made(people) if people else made(2).where(np.zeros(24, bool))
    with pytest.raises(NotEnoughDataError, match="two people"):
        Ranker.fit(lessons, NAMES, QUICK, 1)


@pytest.mark.parametrize("codes", [[0, 1], [0, 2], [4, 8], [3, 9, 15], [7, 7000, 123456]], ids=str)
def test_a_handful_of_people_is_enough(codes):
    lessons = made(len(codes), 4, codes=codes)
    ranker = Ranker.fit(lessons, NAMES, QUICK, 1)
    assert len(np.unique(_folds(lessons.person, len(ranker.boosters)))) > 1
    assert np.isfinite(ranker.score(lessons.features)).all()
    assert np.isfinite(ranker.unseen(lessons.features, lessons.person)).all()


def test_one_candidate_a_person_and_constant_features_are_no_fault():
    ones = Lessons(np.ones((6, 3), np.float32), np.ones(6, np.int8), np.arange(6), np.arange(6))
    ranker = Ranker.fit(ones, NAMES, QUICK, 1)
    assert len(np.unique(ranker.score(ones.features))) == 1
    assert sum(ranker.gains().values()) == 0


# --- lessons ------------------------------------------------------------------------------------------------


def candidates(sizes):
    """Candidates of some people, `sizes` each; the feature is the place."""
    person = np.repeat(np.arange(len(sizes)), sizes)
    count = len(person)
    return Candidates(person, np.arange(count), np.arange(count, dtype=np.float32)[:, None], np.zeros(count, int))


def test_lessons_hold_whoever_has_a_positive_all_positives_and_some_negatives():
    found = candidates([100, 50, 0, 80])
    positives = np.isin(found.item, [3, 60, 99, 155])  # none of the second person's
    positives[100:150] = False
    lessons = Lessons.of(found, positives, np.array([40, 41, 42, 43]), 20, 1)
    assert set(lessons.person) == {40, 43} and lessons.queries == 2
    assert lessons.labels.sum() == 4 and set(lessons.features[lessons.labels > 0].ravel()) == {3, 60, 99, 155}
    counts = np.bincount(lessons.query) - np.bincount(lessons.query, weights=lessons.labels)
    assert ((counts > 8) & (counts < 35)).all()
    again = Lessons.of(found, positives, np.array([40, 41, 42, 43]), 20, 1)
    assert np.array_equal(again.features, lessons.features)
    assert not np.array_equal(Lessons.of(found, positives, np.arange(4), 20, 2).features, lessons.features)


def test_fewer_candidates_than_negatives_are_all_kept():
    found = candidates([5, 7])
    positives = np.isin(found.item, [0, 6])
    assert len(Lessons.of(found, positives, np.arange(2), 20, 1).labels) == 12


def test_lessons_without_candidates_or_positives_are_empty():
    for found in (candidates([0, 0]), candidates([3, 4])):
        lessons = Lessons.of(found, np.zeros(len(found), bool), np.arange(2), 5, 1)
        assert lessons.queries == 0 and len(lessons.labels) == 0 and lessons.features.shape[1] == 1


def test_joined_lessons_keep_their_queries_apart():
    one, other = made(3, 4), made(2, 5, seed=1, codes=[1, 9])
    nothing = one.where(np.zeros(12, bool))
    found = Lessons.joined([one, nothing, other])
    assert found.queries == 5 and np.bincount(found.query).tolist() == [4, 4, 4, 5, 5]
    assert found.person.tolist() == [*one.person, *other.person]
    part = found.where(found.person == 1)
    assert part.queries == 2 and np.bincount(part.query).tolist() == [4, 5]
