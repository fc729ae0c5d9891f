"""Metrics of ranking and calibration in plain numpy; ties count with their expected value."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class TieGroup(NamedTuple):
    """Candidates of one score: ranks start .. start + size - 1 (from 1), `positives` of them relevant."""

    start: int
    size: int
    positives: int


def tie_groups(scores: ArrayLike, labels: ArrayLike) -> list[TieGroup]:
    """The groups of equal score, best first; scores and labels are (n,), a label above 0 is relevant."""
    values, member = np.unique(-np.asarray(scores, dtype=np.float64), return_inverse=True)
    sizes = np.bincount(member, minlength=len(values))
    positives = np.bincount(member, weights=np.asarray(labels) > 0, minlength=len(values)).astype(int)
    starts = np.cumsum(sizes) - sizes + 1
    return [TieGroup(int(a), int(n), int(p)) for a, n, p in zip(starts, sizes, positives, strict=True)]


def _inside(group: TieGroup, k: int) -> int:
    """How many of the group's ranks are within the first k."""
    return min(max(k - group.start + 1, 0), group.size)


def hit_rate(groups: Sequence[TieGroup], k: int) -> float:
    """P(a positive among the first k): a tie's places are drawn without replacement (hypergeometric)."""
    missed = 1.0
    for group in groups:
        inside = _inside(group, k)
        missed *= comb(group.size - group.positives, inside) / comb(group.size, inside)
    return 1.0 - missed


def recall(groups: Sequence[TieGroup], k: int, targets: int) -> float:
    """Expected positives among the first k / targets (Manning, Raghavan, Schütze 2008, section 8.3)."""
    return sum(g.positives * _inside(g, k) / g.size for g in groups) / targets


def ndcg(groups: Sequence[TieGroup], k: int, targets: int) -> float:
    """DCG@k with gain 1 / log2(rank + 1) over that of min(k, targets) hits (Järvelin, Kekäläinen 2002)."""
    gains = 1.0 / np.log2(np.arange(2, k + 2))
    found = sum(g.positives / g.size * gains[g.start - 1 : g.start - 1 + g.size].sum() for g in groups)
    return float(found / gains[:targets].sum())


def reciprocal_rank(groups: Sequence[TieGroup], k: int) -> float:
    """Expected 1 / rank of the first positive, 0 beyond k (Voorhees 1999)."""
    first = next((group for group in groups if group.positives), None)
    if first is None:
        return 0.0
    others, ways = first.positives - 1, comb(first.size, first.positives)
    offsets = range(min(_inside(first, k), first.size - others))
    return sum(comb(first.size - j - 1, others) / ways / (first.start + j) for j in offsets)


def auc(groups: Sequence[TieGroup]) -> float:
    """P(a positive above a negative), ties 1/2, by mean ranks (Hanley, McNeil 1982); nan for one class."""
    positives = sum(g.positives for g in groups)
    negatives = sum(g.size for g in groups) - positives
    if not positives or not negatives:
        return float("nan")
    rank_sum = sum(g.positives * (g.start + (g.size - 1) / 2) for g in groups)
    best = positives * (positives + 1) / 2
    return 1.0 - (rank_sum - best) / (positives * negatives)


def evaluate(
    scores: Sequence[ArrayLike], labels: Sequence[ArrayLike], targets: Sequence[int], ks: Sequence[int]
) -> dict[str, Array]:
    """hr@k, recall@k, ndcg@k, mrr@k for each k, and auc: each (users,), nan for a user without targets."""
    names = [f"{name}@{k}" for k in ks for name in ("hr", "recall", "ndcg", "mrr")] + ["auc"]
    rows = [_one(s, y, t, ks) for s, y, t in zip(scores, labels, targets, strict=True)]
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(names))
    return {name: table[:, column] for column, name in enumerate(names)}


def _one(scores: ArrayLike, labels: ArrayLike, targets: int, ks: Sequence[int]) -> list[float]:
    if targets == 0:
        return [float("nan")] * (4 * len(ks) + 1)
    groups = tie_groups(scores, labels)
    row: list[float] = []
    for k in ks:
        row += [hit_rate(groups, k), recall(groups, k, targets), ndcg(groups, k, targets)]
        row.append(reciprocal_rank(groups, k))
    return [*row, auc(groups)]


def log_loss(probabilities: ArrayLike, labels: ArrayLike) -> Array:
    """Negative log-likelihood of each candidate in nats, (n,); probabilities are kept 1e-7 from 0 and 1."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64), 1e-7, 1 - 1e-7)
    y = np.asarray(labels, dtype=np.float64)
    return -(y * np.log(p) + (1 - y) * np.log1p(-p))


def calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 10) -> float:
    """ECE: mean |hit rate - mean probability| over bins of equal width, by size (Guo et al. 2017, eq. 5)."""
    p = np.asarray(probabilities, dtype=np.float64)
    member = np.minimum((p * bins).astype(int), bins - 1)
    gaps = np.bincount(member, weights=np.asarray(labels, dtype=np.float64) - p, minlength=bins)
    return float(np.abs(gaps).sum() / len(p)) if len(p) else float("nan")


def bootstrap_interval(
    values: ArrayLike, seed: int, draws: int = 1000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean over users (Efron, Tibshirani 1993, ch. 13); nan is left out."""
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    means = [known[generator.integers(0, len(known), len(known))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
