"""Ranking metrics against values worked by hand and against brute force over every order of the ties."""

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakerec.metrics import (
    auc,
    bootstrap_interval,
    calibration_error,
    evaluate,
    log_loss,
    tie_groups,
)


def test_by_hand_without_ties():
    found = evaluate([[0.9, 0.8, 0.7, 0.6]], [[0, 1, 0, 1]], [3], [1, 3])
    dcg, ideal = 1 / np.log2(3), 1 + 1 / np.log2(3) + 1 / np.log2(4)
    assert found["hr@1"][0] == 0 and found["hr@3"][0] == 1
    assert found["recall@3"][0] == pytest.approx(1 / 3)
    assert found["ndcg@3"][0] == pytest.approx(dcg / ideal)
    assert found["mrr@3"][0] == pytest.approx(1 / 2)
    assert found["auc"][0] == pytest.approx(1 / 4)


def test_a_tie_counts_half():
    found = evaluate([[0.5, 0.5]], [[1, 0]], [1], [1])
    assert [found[name][0] for name in ("hr@1", "recall@1", "ndcg@1", "mrr@1", "auc")] == [0.5] * 5


def test_all_scores_equal_ranks_no_better_than_chance():
    found = evaluate([np.zeros(100)], [np.eye(100)[3]], [1], [10])
    assert found["hr@10"][0] == pytest.approx(0.1)
    assert found["auc"][0] == pytest.approx(0.5)


def test_users_without_targets_or_candidates():
    found = evaluate([[0.1], []], [[0], []], [0, 2], [5])
    assert np.isnan(found["ndcg@5"][0])
    assert found["recall@5"][1] == 0 and np.isnan(found["auc"][1])


def test_no_users():
    assert evaluate([], [], [], [10])["hr@10"].shape == (0,)


def _strict(labels, targets, k):
    """The textbook formulas for one strict order of the labels."""
    ranks = [rank for rank, label in enumerate(labels, 1) if label]
    top = [rank for rank in ranks if rank <= k]
    ideal = sum(1 / np.log2(rank + 1) for rank in range(1, min(k, targets) + 1))
    return {
        "hr": float(bool(top)),
        "recall": len(top) / targets,
        "ndcg": sum(1 / np.log2(rank + 1) for rank in top) / ideal,
        "mrr": 1 / top[0] if top else 0.0,
    }


slates = st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(slates, st.integers(1, 7), st.integers(0, 3))
def test_ties_are_the_mean_over_every_order(slate, k, unseen):
    scores, labels = zip(*slate, strict=True)
    targets = sum(labels) + unseen + (sum(labels) + unseen == 0)
    every = permutations(range(len(slate)))
    orders = [o for o in every if all(scores[a] >= scores[b] for a, b in pairwise(o))]
    strict = [_strict([labels[i] for i in order], targets, k) for order in orders]
    found = evaluate([scores], [labels], [targets], [k])
    for name in ("hr", "recall", "ndcg", "mrr"):
        assert found[f"{name}@{k}"][0] == pytest.approx(np.mean([row[name] for row in strict]))


@settings(max_examples=60, deadline=None)
@given(slates)
def test_auc_is_the_share_of_ordered_pairs(slate):
    pairs = [(a > b) + 0.5 * (a == b) for a, x in slate for b, y in slate if x and not y]
    scores, labels = zip(*slate, strict=True)
    assert auc(tie_groups(scores, labels)) == pytest.approx(np.mean(pairs) if pairs else np.nan, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(slates, st.integers(1, 6))
def test_a_monotone_change_of_the_scores_changes_nothing(slate, k):
    scores, labels = map(np.array, zip(*slate, strict=True))
    one, two = (evaluate([s], [labels], [6], [k]) for s in (scores, np.exp(scores) * 7 - 3))
    for name in one:
        np.testing.assert_allclose(one[name], two[name])


def test_log_loss_and_its_bound():
    np.testing.assert_allclose(log_loss([0.25, 0.25], [1, 0]), [np.log(4), np.log(4 / 3)])
    assert log_loss([0.0], [1])[0] == pytest.approx(-np.log(1e-7))


def test_calibration_error_by_hand():
    assert calibration_error([0.9, 0.9, 0.1, 0.1], [1, 0, 0, 0]) == pytest.approx(0.5 * 0.4 + 0.5 * 0.1)
    assert calibration_error([1.0, 0.0], [1, 0]) == 0
    assert np.isnan(calibration_error([], []))


def test_bootstrap_covers_the_mean_and_repeats():
    values = np.random.default_rng(0).normal(3, 1, 400)
    low, high = bootstrap_interval(values, seed=5)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert (low, high) == bootstrap_interval([*values, np.nan], seed=5)
    assert all(np.isnan(bootstrap_interval([], seed=1)))
