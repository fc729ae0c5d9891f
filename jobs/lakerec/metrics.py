"""Metrics of ranking, calibration and whole lists in plain numpy, by slice and with intervals over users.

Equal scores take their mean rank: one score for all finds nothing at depth k among 2k candidates or more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lakerec.errors import ContractError, ModelError

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Integers = NDArray[np.integer]

DEPTHS = (5, 10, 20)
BLOCK = 1 << 20  # elements of a temporary array: a few MB, which stay in the processor's cache
POWER = 2.8  # 1.96 + 0.84: normal quantiles of a two-sided 5 % test and of 80 % power
HEAD_SHARE = 0.2


def mean_ranks(scores: NDArray[np.floating], users: Integers, items: Integers) -> Array:
    """Rank from 1 of each target in its user's row, (t,); scores (users, items); users, items (t,).

    Equal scores take the mean rank. -inf is masked: below everything, and a masked target has the worst rank.
    ModelError for nan or +inf.
    """
    _require_ranks(scores)
    own = scores[users, items]
    ranks = np.empty(len(own))
    for block in _blocks(len(own), scores.shape[1]):
        rows, mine = scores[users[block]], own[block, None]
        above, tied = np.count_nonzero(rows > mine, axis=1), np.count_nonzero(rows == mine, axis=1)
        ranks[block] = above + (tied + 1) / 2
    return np.where(np.isneginf(own), scores.shape[1], ranks)


def _blocks(length: int, width: int) -> Iterator[slice]:
    """Slices of rows that hold about BLOCK elements when a row has `width`."""
    size = max(BLOCK // max(width, 1), 1)
    return (slice(start, start + size) for start in range(0, length, size))


def _require_ranks(scores: NDArray[np.floating]) -> None:
    """ModelError if a score is nan or +inf, which have no rank; -inf has the last."""
    wrong = scores.size - np.count_nonzero(scores < np.inf)
    if wrong:
        raise ModelError(
            f"{wrong} of {scores.size} scores are not finite (nan or +inf; only -inf masks): "
            "the model is broken; train it again, or serve another by `lakerec rollback`"
        )


def by_user(ranks: Array, starts: NDArray[np.int64], ks: Sequence[int] = DEPTHS) -> dict[str, Array]:
    """hr@k, recall@k, ndcg@k, mrr@k, each (users,), nan for a user without targets.

    ranks (t,) of all targets, +inf for one that was no candidate; those of user u are starts[u] .. starts[u + 1] - 1.
    """
    counts = np.diff(starts)
    owners = np.repeat(np.arange(len(counts)), counts)
    found: dict[str, Array] = {}
    for k in ks:
        found |= _at_depth(ranks, owners, counts, k)
    return {name: np.where(counts > 0, values, np.nan) for name, values in found.items()}


def _at_depth(ranks: Array, owners: Integers, counts: Integers, k: int) -> dict[str, Array]:
    """The four metrics at one depth, (users,); users without targets get any number."""
    inside, some = ranks <= k, np.maximum(counts, 1)
    hits = np.bincount(owners[inside], minlength=len(counts))
    return {
        f"hr@{k}": (hits > 0).astype(np.float64),
        f"recall@{k}": hits / some,
        f"ndcg@{k}": _ndcg(ranks[inside], owners[inside], some, k),
        f"mrr@{k}": _reciprocal(ranks[inside], owners[inside], len(counts)),
    }


def _ndcg(ranks: Array, owners: Integers, counts: Integers, k: int) -> Array:
    """DCG, gain 1 / log2(rank + 1), over that of min(k, targets) hits (Järvelin, Kekäläinen 2002), (users,)."""
    gains = np.bincount(owners, weights=1 / np.log2(ranks + 1), minlength=len(counts))
    ideal = np.cumsum(1 / np.log2(np.arange(2, k + 2)))
    # More than k targets of one score may share a mean rank inside k: the only way above 1.
    return np.minimum(gains / ideal[np.minimum(counts, k) - 1], 1.0)


def _reciprocal(ranks: Array, owners: Integers, users: int) -> Array:
    """1 / rank of the first target, 0 for a user with none in `ranks` (Voorhees 1999), (users,)."""
    first = np.full(users, np.inf)
    np.minimum.at(first, owners, ranks)
    return 1 / first


def auc_by_user(scores: ArrayLike, labels: ArrayLike, users: Integers, n_users: int) -> Array:
    """P(a positive above a negative), ties 1/2 (Hanley, McNeil 1982), (n_users,); nan for a user with one class.

    scores, labels, users (n,); a label above 0 is positive. ModelError for nan or +inf.
    """
    values, positive = np.asarray(scores, dtype=np.float64), np.asarray(labels) > 0
    _require_ranks(values)
    wins = np.bincount(users[positive], weights=_ranks_within(values, users)[positive], minlength=n_users)
    ones = np.bincount(users[positive], minlength=n_users)
    pairs = ones * (np.bincount(users, minlength=n_users) - ones)
    return np.where(pairs > 0, (wins - ones * (ones + 1) / 2) / np.maximum(pairs, 1), np.nan)


def _ranks_within(values: Array, users: Integers) -> Array:
    """Rank of each value among its user's, the lowest 1, equal values their mean rank, (n,)."""
    order = np.lexsort((values, users))
    owner, value = users[order], values[order]
    changes = owner[1:] != owner[:-1]
    tie = _run_starts(changes | (value[1:] != value[:-1]))
    ends = np.append(tie[1:], len(order))
    middle = np.repeat((tie + ends - 1) / 2, ends - tie)
    first = _run_starts(changes)
    ranks = np.empty(len(order))
    ranks[order] = middle - np.repeat(first, np.diff(np.append(first, len(order)))) + 1
    return ranks


def _run_starts(changes: Mask) -> NDArray[np.int64]:
    """The places where a run starts, the first included, from changes (n - 1,) between neighbours."""
    return np.concatenate([[0], np.flatnonzero(changes) + 1]).astype(np.int64)


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """AUC over all pairs, whoever the user; scores, labels (n,); nan for one class."""
    users = np.zeros(len(np.asarray(scores)), dtype=np.int64)
    return float(auc_by_user(scores, labels, users, 1)[0])


def uauc(scores: ArrayLike, labels: ArrayLike, users: Integers) -> float:
    """Mean AUC of the users with both classes; scores, labels, users (n,); nan if no user has both."""
    found = auc_by_user(scores, labels, users, int(users.max(initial=0)) + 1)
    known = found[~np.isnan(found)]
    return float(known.mean()) if len(known) else float("nan")


def evaluate(
    scores: Sequence[ArrayLike], labels: Sequence[ArrayLike], targets: Sequence[int], ks: Sequence[int]
) -> dict[str, Array]:
    """by_user and auc of users with their own candidates, each (users,), nan for a user without targets.

    scores, labels: (candidates,) a user; `targets` counts all of a user's targets, candidates or not.
    """
    owned = np.asarray(targets, dtype=np.int64)
    ranks = [_slate_ranks(s, y, t) for s, y, t in zip(scores, labels, targets, strict=True)]
    found = by_user(_joined(ranks), np.append(0, np.cumsum(owned)), ks)
    users = np.repeat(np.arange(len(owned)), [len(np.asarray(s)) for s in scores])
    areas = auc_by_user(_joined(scores), _joined(labels), users, len(owned))
    return found | {"auc": np.where(owned > 0, areas, np.nan)}


def _slate_ranks(scores: ArrayLike, labels: ArrayLike, targets: int) -> Array:
    """Mean ranks of one user's targets among the candidates, +inf for those that are none, (targets,)."""
    places = np.flatnonzero(np.asarray(labels) > 0)
    if len(places) > targets:
        raise ContractError(f"{len(places)} candidates are labelled as targets, but there are {targets} targets")
    row = np.asarray(scores, dtype=np.float64)[None]
    ranks = mean_ranks(row, np.zeros_like(places), places)
    return np.append(ranks, np.full(targets - len(ranks), np.inf))


def _joined(parts: Sequence[ArrayLike]) -> Array:
    """All parts behind one another as float64, also of no parts."""
    return np.concatenate([np.empty(0), *(np.asarray(part, dtype=np.float64) for part in parts)])


def log_loss(probabilities: ArrayLike, labels: ArrayLike) -> Array:
    """Negative log-likelihood of each candidate in nats, (n,); probabilities are kept 1e-7 from 0 and 1."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64), 1e-7, 1 - 1e-7)
    y = np.asarray(labels, dtype=np.float64)
    return -(y * np.log(p) + (1 - y) * np.log1p(-p))


def calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 10) -> float:
    """ECE: mean |hit rate - mean probability| over bins of equal width, by size (Guo et al. 2017, eq. 5)."""
    p = np.asarray(probabilities, dtype=np.float64)
    _require_ranks(p)
    member = np.minimum((p * bins).astype(int), bins - 1)
    gaps = np.bincount(member, weights=np.asarray(labels, dtype=np.float64) - p, minlength=bins)
    return float(np.abs(gaps).sum() / len(p)) if len(p) else float("nan")


def coverage(lists: Integers, n_items: int) -> float:
    """Share of the n_items of the catalogue that stand in at least one list; lists (users, k), -1 = nothing."""
    return np.unique(lists[lists >= 0]).size / n_items


def gini(lists: Integers, n_items: int) -> float:
    """Inequality of the items' exposure: 0 all equal, 1 one item has all (Shani, Gunawardana 2011).

    lists (users, k), -1 = nothing; nan without a recommendation or with fewer than two items.
    """
    counts = np.sort(np.bincount(lists[lists >= 0], minlength=n_items))
    if n_items < 2 or not counts.sum():
        return float("nan")
    signs = 2 * np.arange(1, n_items + 1) - n_items - 1
    return float(signs @ counts / counts.sum() / (n_items - 1))


def novelty(lists: Integers, popularity: NDArray[np.number], total: float | None = None) -> Array:
    """Mean self-information -log2(popularity / total) of each list in bits (Zhou et al. 2010), (users,).

    lists (users, k), -1 = nothing; popularity (n_items,) counts. `total` people with counts of people is the source's
    definition; without it the sum of the counts. nan for an empty list.
    """
    # An item that nobody chose counts as chosen once: its surprise would be infinite.
    surprise = np.log2(popularity.sum() if total is None else total) - np.log2(np.maximum(popularity, 1))
    known = lists >= 0
    return _ratio(np.where(known, surprise[lists], 0).sum(axis=1), known.sum(axis=1))


def intra_list_diversity(lists: Integers, vectors: NDArray[np.floating]) -> Array:
    """Mean 1 - cosine over the pairs of each list (Ziegler et al. 2005), (users,); nan for fewer than two items.

    lists (users, k), -1 = nothing; vectors (n_items, d), a zero vector is like nothing else.
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(norms > 0, norms, 1)
    blocks = _blocks(len(lists), lists.shape[1] * vectors.shape[1])
    return np.concatenate([np.empty(0), *(_diversity(lists[block], unit) for block in blocks)])


def _diversity(lists: Integers, unit: NDArray[np.floating]) -> Array:
    """intra_list_diversity of one block: the cosines of all pairs sum to (|sum of vectors|^2 - sum of |v|^2) / 2."""
    known = lists >= 0
    inside = np.where(known[:, :, None], unit[lists], 0).astype(np.float64)
    both = (inside.sum(axis=1) ** 2).sum(axis=1) - (inside**2).sum(axis=(1, 2))
    counts = known.sum(axis=1)
    return 1 - _ratio(both, counts * (counts - 1))


def _ratio(sums: Array, counts: Integers) -> Array:
    """sums / counts, nan where there is nothing to count."""
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def user_slices(lengths: Integers, short: int = 10) -> dict[str, Mask]:
    """Masks (users,) by history length (users,): new (no event), short (1 to `short` events), long (more)."""
    return {"new": lengths == 0, "short": (lengths > 0) & (lengths <= short), "long": lengths > short}


def target_slices(items: Integers, popularity: NDArray[np.number]) -> dict[str, Mask]:
    """Masks (t,) of targets `items` (t,): head, tail (all others) and, of these, new: not chosen before the cut.

    popularity (n_items,) counts before the cut; head is the top 20 % of the items with a count (Abdollahpouri et al.
    2019, "The unfairness of popularity bias").
    """
    size = int(np.ceil(HEAD_SHARE * np.count_nonzero(popularity)))
    popular = np.zeros(len(popularity), dtype=bool)
    popular[np.argsort(-popularity, kind="stable")[:size]] = True
    head = popular[items]
    return {"head": head, "tail": ~head, "new": popularity[items] == 0}


def attribute_slices(values: Sequence[str | None], at_least: int = 30) -> dict[str, Mask]:
    """Masks (users,) of each value that at least `at_least` users have, by name; who has none is in no mask."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    counts = Counter(value for value in values if isinstance(value, str))
    return {name: column == name for name in sorted(counts) if counts[name] >= at_least}


def bootstrap_interval(
    values: ArrayLike, seed: int, draws: int = 1000, clusters: Integers | None = None, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean (Efron, Tibshirani 1993, ch. 13); values (n,), nan is left out.

    clusters (n,): whose value it is; whole clusters are drawn (Field, Welsh 2007), else each value by itself.
    """
    sums, counts = _units(np.asarray(values, dtype=np.float64), clusters)
    return _interval(_resampled(sums, counts, seed, draws), confidence) if len(sums) else (np.nan, np.nan)


def _units(values: Array, clusters: Integers | None) -> tuple[Array, Array]:
    """Sum and number of the known values of each unit that is drawn: a value, or a cluster, each (units,)."""
    known = ~np.isnan(values)
    if clusters is None:
        return values[known], np.ones(int(known.sum()))
    _, member = np.unique(clusters[known], return_inverse=True)
    sums, counts = np.bincount(member, weights=values[known]), np.bincount(member)
    return sums.astype(np.float64), counts.astype(np.float64)


def _resampled(sums: Array, counts: Array, seed: int, draws: int) -> Array:
    """Means of `draws` samples of len(sums) units, with replacement, (draws,)."""
    generator = np.random.default_rng(seed)
    means = np.empty(draws)
    for block in _blocks(draws, len(sums)):
        picks = generator.integers(0, len(sums), (len(means[block]), len(sums)), dtype=np.int32)
        means[block] = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    return means


def _interval(means: Array, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


class Comparison(NamedTuple):
    """Mean gain of one model over another on the same users, its 95 % interval and what could have been seen."""

    gain: float
    low: float
    high: float
    users: int
    detectable: float

    @property
    def told(self) -> str:
        """All of it, for people."""
        return f"{self.gain:+.4f} [{self.low:+.4f}, {self.high:+.4f}] on {self.users} people"


def paired(a: ArrayLike, b: ArrayLike, seed: int, clusters: Integers | None = None, draws: int = 1000) -> Comparison:
    """Bootstrap of the mean of a - b, both (n,), where both are known; `users` counts the units drawn.

    detectable: the smallest true gain that a two-sided 5 % test finds with 80 % power, 2.8 standard errors
    (Gelman, Hill 2007, ch. 20). Interval and detectable are nan for fewer than two units.
    """
    one, two = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if one.shape != two.shape:
        raise ContractError(f"paired values differ in shape: {one.shape} and {two.shape}")
    sums, counts = _units(one - two, clusters)
    if len(sums) < 2:
        gain = float(sums.sum() / counts.sum()) if len(sums) else np.nan
        return Comparison(gain, np.nan, np.nan, len(sums), np.nan)
    means = _resampled(sums, counts, seed, draws)
    low, high = _interval(means, 0.95)
    return Comparison(float(sums.sum() / counts.sum()), low, high, len(sums), POWER * float(means.std(ddof=1)))
