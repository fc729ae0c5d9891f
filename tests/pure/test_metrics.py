"""Metrics against values worked by hand, ir_measures and scikit-learn, and brute force over every order of the ties."""

import warnings
from itertools import combinations, pairwise, permutations

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, R, Success, nDCG
from sklearn.metrics import roc_auc_score

from lakerec import metrics
from lakerec.errors import ContractError, ModelError
from lakerec.metrics import (
    attribute_slices,
    auc,
    auc_by_user,
    bootstrap_interval,
    by_user,
    calibration_error,
    coverage,
    evaluate,
    gini,
    intra_list_diversity,
    log_loss,
    mean_ranks,
    novelty,
    paired,
    target_slices,
    uauc,
    user_slices,
)

KINDS = ("hr", "recall", "ndcg", "mrr")
rows = st.lists(st.integers(0, 2), min_size=1, max_size=6)
slates = st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6)


def ranks_of(row, items):
    """Mean ranks of some items of one user's scores."""
    return mean_ranks(np.array([row], dtype=np.float32), np.zeros(len(items), dtype=int), np.array(items, dtype=int))


def test_ranks_by_hand():
    scores = np.array([[3, 1, 2, 1], [5, 5, 5, -np.inf]], dtype=np.float32)
    users, items = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 1, 3])
    np.testing.assert_array_equal(mean_ranks(scores, users, items), [1, 3.5, 2, 2, 4])


@settings(max_examples=60, deadline=None)
@given(rows)
def test_the_mean_rank_is_the_mean_over_every_order_of_the_ties(row):
    every = permutations(range(len(row)))
    orders = [o for o in every if all(row[a] >= row[b] for a, b in pairwise(o))]
    found = ranks_of(row, range(len(row)))
    for item in range(len(row)):
        assert found[item] == pytest.approx(np.mean([order.index(item) + 1 for order in orders]))


@settings(max_examples=60, deadline=None)
@given(rows, st.randoms(use_true_random=False))
def test_the_order_of_the_items_changes_no_rank(row, random):
    moved = random.sample(range(len(row)), len(row))
    found = ranks_of([row[i] for i in moved], range(len(row)))
    np.testing.assert_array_equal(found, ranks_of(row, moved))


@settings(max_examples=60, deadline=None)
@given(rows, st.integers(1, 3))
def test_masked_items_are_below_everything_and_a_masked_target_is_last(row, masked):
    padded = row + [-np.inf] * masked
    found = ranks_of(padded, range(len(padded)))
    np.testing.assert_array_equal(found[: len(row)], ranks_of(row, range(len(row))))
    np.testing.assert_array_equal(found[len(row) :], len(padded))


def test_all_scores_equal_rank_no_better_than_chance():
    users, items = np.divmod(np.arange(4000), 100)
    ranks = mean_ranks(np.zeros((40, 100), dtype=np.float32), users, items)
    found = by_user(ranks, np.arange(4001), (5, 20, 50))
    for k in (5, 20, 50):
        gains = 1 / np.arange(1, k + 1), 1 / np.log2(np.arange(2, k + 2))
        chance = {"hr": k / 100, "recall": k / 100, "mrr": gains[0].sum() / 100, "ndcg": gains[1].sum() / 100}
        assert all(found[f"{kind}@{k}"].mean() <= chance[kind] for kind in KINDS)
    assert auc(np.zeros(100), np.arange(100) < 3) == 0.5


def test_blocks_change_nothing(monkeypatch):
    generator = np.random.default_rng(1)
    scores = generator.integers(0, 9, (30, 40)).astype(np.float32)
    users, items = generator.integers(0, 30, 200), generator.integers(0, 40, 200)
    lists, vectors, values = (
        generator.integers(-1, 40, (30, 5)),
        generator.normal(size=(40, 3)),
        generator.normal(size=50),
    )

    def figures():
        return (
            mean_ranks(scores, users, items),
            intra_list_diversity(lists, vectors),
            np.array(bootstrap_interval(values, seed=2, draws=99)),
        )

    whole = figures()
    monkeypatch.setattr(metrics, "BLOCK", 130)
    for one, two in zip(whole, figures(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_scores_that_have_no_rank_are_refused(wrong):
    with pytest.raises(ModelError, match="2 of 4 scores are not finite"):
        ranks_of([1, wrong, -np.inf, wrong], [0])
    with pytest.raises(ModelError, match="1 of 2 scores"):
        auc([wrong, 0], [1, 0])
    with pytest.raises(ModelError, match="1 of 2 scores"):
        evaluate([[wrong, 0]], [[1, 0]], [1], [5])


def test_depths_by_hand():
    ranks, starts = np.array([2.0, 4.0, np.inf, 1.5]), np.array([0, 3, 3, 4])
    found = by_user(ranks, starts, (1, 3))
    np.testing.assert_array_equal(found["hr@1"], [0, np.nan, 0])
    np.testing.assert_array_equal(found["hr@3"], [1, np.nan, 1])
    np.testing.assert_allclose(found["recall@3"], [1 / 3, np.nan, 1])
    ideal = 1 + 1 / np.log2(3) + 1 / np.log2(4)
    np.testing.assert_allclose(found["ndcg@3"], [1 / np.log2(3) / ideal, np.nan, 1 / np.log2(2.5)])
    np.testing.assert_allclose(found["mrr@3"], [1 / 2, np.nan, 1 / 1.5])


def test_by_user_agrees_with_ir_measures():
    generator = np.random.default_rng(0)
    scores = generator.permuted(np.tile(np.arange(80, dtype=np.float32), (60, 1)), axis=1)
    counts = generator.integers(1, 15, 60)
    starts, users = np.append(0, np.cumsum(counts)), np.repeat(np.arange(60), counts)
    items = np.concatenate([generator.choice(80, count, replace=False) for count in counts])
    found = by_user(mean_ranks(scores, users, items), starts, (1, 5, 10, 20))
    relevant = [ir_measures.Qrel(str(u), str(i), 1) for u, i in zip(users, items, strict=True)]
    run = [ir_measures.ScoredDoc(str(u), str(i), float(scores[u, i])) for u in range(60) for i in range(80)]
    theirs = {k: {"hr": Success @ k, "recall": R @ k, "ndcg": nDCG @ k, "mrr": RR @ k} for k in (1, 5, 10, 20)}
    names = {measure: f"{kind}@{k}" for k, kinds in theirs.items() for kind, measure in kinds.items()}
    values = list(ir_measures.iter_calc(list(names), relevant, run))
    assert len(values) == 60 * len(names)
    for value in values:
        assert found[names[value.measure]][int(value.query_id)] == pytest.approx(value.value, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(rows, st.data(), st.integers(1, 8))
def test_bounds_and_order_of_the_metrics(row, data, k):
    items = data.draw(st.lists(st.sampled_from(range(len(row))), unique=True))
    found = by_user(ranks_of(row, items), np.array([0, len(items)]), (k, k + 1))
    values = [found[f"{kind}@{k}"][0] for kind in KINDS]
    if not items:
        assert np.isnan(values).all()
        return
    assert all(0 <= value <= 1 for value in values)
    hr, recall, _, mrr = values
    assert recall <= hr and mrr <= hr
    assert all(found[f"{kind}@{k}"][0] <= found[f"{kind}@{k + 1}"][0] for kind in ("hr", "recall", "mrr"))


def test_many_targets_of_one_score_gain_no_more_than_the_ideal():
    found = by_user(ranks_of([0.0] * 19, range(19)), np.array([0, 19]), (10,))
    assert found["ndcg@10"][0] == 1


def test_no_users():
    assert by_user(np.empty(0), np.zeros(1, dtype=np.int64))["hr@10"].shape == (0,)
    assert evaluate([], [], [], [10])["hr@10"].shape == (0,)
    assert np.isnan(uauc([], [], np.empty(0, dtype=int)))


def test_auc_agrees_with_scikit_learn():
    generator = np.random.default_rng(0)
    labels, users = generator.integers(0, 2, 3000), generator.integers(0, 50, 3000)
    for scores in (generator.random(3000), generator.integers(0, 7, 3000)):
        assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
        each = [roc_auc_score(labels[users == u], scores[users == u]) for u in range(50)]
        np.testing.assert_allclose(auc_by_user(scores, labels, users, 50), each, atol=1e-9)
        assert uauc(scores, labels, users) == pytest.approx(np.mean(each), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(slates)
def test_auc_is_the_share_of_ordered_pairs(slate):
    pairs = [(a > b) + 0.5 * (a == b) for a, x in slate for b, y in slate if x and not y]
    scores, labels = zip(*slate, strict=True)
    assert auc(scores, labels) == pytest.approx(np.mean(pairs) if pairs else np.nan, nan_ok=True)


def test_users_of_one_class_are_left_out_of_uauc():
    users = np.array([0, 0, 1, 1, 2, 4])
    labels, scores = [1, 0, 1, 1, 0, 1], [0.2, 0.1, 0.9, 0.3, 0.5, 0.5]
    np.testing.assert_array_equal(auc_by_user(scores, labels, users, 5), [1, np.nan, np.nan, np.nan, np.nan])
    assert uauc(scores, labels, users) == 1
    assert np.isnan(uauc([1, 2], [1, 1], np.array([0, 1])))


def test_slates_by_hand():
    found = evaluate([[0.9, 0.8, 0.7, 0.6]], [[0, 1, 0, 1]], [3], [1, 3])
    ideal = 1 + 1 / np.log2(3) + 1 / np.log2(4)
    assert found["hr@1"][0] == 0 and found["hr@3"][0] == 1
    assert found["recall@3"][0] == pytest.approx(1 / 3)
    assert found["ndcg@3"][0] == pytest.approx(1 / np.log2(3) / ideal)
    assert found["mrr@3"][0] == pytest.approx(1 / 2)
    assert found["auc"][0] == pytest.approx(1 / 4)


def test_slates_without_targets_or_candidates():
    found = evaluate([[0.1, 0.2], [], [0.3, 0.1]], [[0, 0], [], [1, 0]], [0, 2, 1], [5])
    np.testing.assert_array_equal(found["ndcg@5"], [np.nan, 0, 1])
    np.testing.assert_array_equal(found["recall@5"], [np.nan, 0, 1])
    np.testing.assert_array_equal(found["auc"], [np.nan, np.nan, 1])


def test_more_labels_than_targets_are_a_fault():
    with pytest.raises(ContractError, match="2 candidates are labelled"):
        evaluate([[0.1, 0.2]], [[1, 1]], [1], [5])


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
    with pytest.raises(ModelError):
        calibration_error([np.nan], [1])


LISTS = np.array([[0, 1], [0, -1], [-1, -1]])


def test_coverage_and_gini_by_hand():
    assert coverage(LISTS, 4) == 0.5
    # Counts 0, 0, 1, 2 with the signs -3, -1, 1, 3: 7 / 3 recommendations / 3.
    assert gini(LISTS, 4) == pytest.approx(7 / 9)
    assert gini(np.array([[0, 1], [2, 3]]), 4) == 0
    assert gini(np.array([[2], [2]]), 4) == 1
    assert np.isnan(gini(LISTS[2:], 4)) and coverage(LISTS[2:], 4) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(-1, 4), min_size=3, max_size=3), min_size=1, max_size=6))
def test_gini_is_half_the_relative_mean_difference(lists):
    flat = np.array(lists).ravel()
    counts = np.bincount(flat[flat >= 0], minlength=5)
    pairs = [abs(a - b) for a, b in combinations(counts, 2)]
    expected = np.mean(pairs) / 2 / counts.mean() if counts.sum() else np.nan
    assert gini(np.array(lists), 5) == pytest.approx(expected, nan_ok=True)


def test_novelty_by_hand():
    np.testing.assert_allclose(novelty(LISTS, np.array([8, 2, 0, 6])), [2, 1, np.nan])
    np.testing.assert_allclose(novelty(LISTS, np.array([8, 2, 0, 6]), total=8), [1, 0, np.nan])
    assert novelty(np.array([[2]]), np.array([8, 2, 0, 6]))[0] == 4


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(-1, 6), min_size=4, max_size=4), min_size=1, max_size=4), st.integers(0, 9))
def test_diversity_is_the_mean_over_the_pairs(lists, seed):
    vectors = np.random.default_rng(seed).normal(size=(7, 3)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = intra_list_diversity(np.array(lists), vectors)
    for row, value in zip(lists, found, strict=True):
        pairs = [1 - unit[a] @ unit[b] for a, b in combinations([i for i in row if i >= 0], 2)]
        assert value == pytest.approx(np.mean(pairs) if pairs else np.nan, abs=1e-5, nan_ok=True)


def test_a_zero_vector_is_like_nothing_else():
    assert intra_list_diversity(np.array([[0, 1]]), np.array([[0.0, 0.0], [1.0, 0.0]]))[0] == 1


@given(st.lists(st.integers(0, 30)))
def test_user_slices_are_a_partition(lengths):
    masks = user_slices(np.array(lengths, dtype=int))
    np.testing.assert_array_equal(sum(mask.astype(int) for mask in masks.values()), 1)


def test_user_slices_by_hand():
    masks = user_slices(np.array([0, 1, 10, 11]))
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "new": [True, False, False, False],
        "short": [False, True, True, False],
        "long": [False, False, False, True],
    }


def test_target_slices_by_hand():
    popularity = np.array([5, 0, 9, 1, 1, 1])
    masks = target_slices(np.array([0, 1, 2, 3, 1]), popularity)
    assert masks["head"].tolist() == [False, False, True, False, False]
    np.testing.assert_array_equal(masks["tail"], ~masks["head"])
    assert masks["new"].tolist() == [False, True, False, False, True]
    assert not target_slices(np.array([0]), np.zeros(3))["head"][0]


def test_attribute_slices_leave_out_small_and_unknown_values():
    masks = attribute_slices(["b", "a", None, "a", "b", "c"], at_least=2)
    assert list(masks) == ["a", "b"]
    assert masks["a"].tolist() == [False, True, False, True, False, False]
    assert attribute_slices([], at_least=0) == {}


def test_bootstrap_covers_the_mean_and_repeats():
    values = np.random.default_rng(0).normal(3, 1, 400)
    low, high = bootstrap_interval(values, seed=5)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert (low, high) == bootstrap_interval([*values, np.nan], seed=5)
    assert (low, high) != bootstrap_interval(values, seed=6)
    assert all(np.isnan(bootstrap_interval([np.nan], seed=1)))
    assert bootstrap_interval([2.0, 2.0], seed=1) == (2, 2)


def test_clusters_are_drawn_whole():
    each = np.random.default_rng(0).normal(3, 1, 200)
    repeated, owners = np.repeat(each, 5), np.repeat(np.arange(200), 5)
    low, high = bootstrap_interval(repeated, seed=1, clusters=owners)
    np.testing.assert_allclose((low, high), bootstrap_interval(each, seed=1))
    low_alone, high_alone = bootstrap_interval(repeated, seed=1)
    assert high - low > 1.8 * (high_alone - low_alone)
    apart = np.random.default_rng(1).permutation(1000)
    np.testing.assert_allclose((low, high), bootstrap_interval(repeated[apart], seed=1, clusters=owners[apart]))


def test_a_paired_gain_by_hand():
    generator = np.random.default_rng(0)
    base, gains = generator.normal(0, 5, 900), generator.normal(0.2, 1, 900)
    a = np.append(base + gains, [np.nan, 1])
    found = paired(a, np.append(base, [1, np.nan]), seed=3)
    assert found.users == 900
    assert found.gain == pytest.approx(gains.mean())
    assert found.low < found.gain < found.high
    assert found.detectable == pytest.approx(2.8 * gains.std() / 30, rel=0.1)


def test_paired_of_the_same_of_clusters_and_of_too_few():
    values = np.random.default_rng(0).random(50)
    assert paired(values, values, seed=1) == (0, 0, 0, 50, 0)
    assert paired(values, values * 0, seed=1, clusters=np.arange(50) // 5).users == 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, none = paired([1, np.nan], [0, 0], seed=1), paired([], [], seed=1)
    assert (one.gain, one.users) == (1, 1) and np.isnan([one.low, one.high, one.detectable]).all()
    assert none.users == 0 and np.isnan(none.gain)
    with pytest.raises(ContractError, match="differ in shape"):
        paired([1, 2], [1], seed=1)


def test_the_detectable_gain_is_found_four_times_in_five():
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 1, (300, 200))
    gain = 2.8 / np.sqrt(200)
    found = sum(paired(row + gain, row * 0, seed=1, draws=400).low > 0 for row in noise)
    assert found / 300 == pytest.approx(0.8, abs=0.08)
