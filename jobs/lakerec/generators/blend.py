"""A convex blend of sources: each person's scores are standardised, the weights are fitted to what people chose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

from lakerec.histories import Floats


def standardised(scores: Floats) -> Floats:
    """(users, items): less each person's mean, over the standard deviation; 0 where all are equal."""
    moved = scores - scores.mean(axis=1, keepdims=True)
    spread = moved.std(axis=1, keepdims=True)
    return np.where(spread > 1e-9, moved / np.maximum(spread, 1e-9), 0.0).astype(np.float32)


def blended(standard: Sequence[Floats], weights: NDArray[np.float64]) -> Floats:
    """(users, items): the weighted sum of standardised scores; sources without weight are not read."""
    total = np.zeros_like(standard[0])
    for score, weight in zip(standard, weights, strict=True):
        if weight:
            total += np.float32(weight) * score
    return total


def fitted_weights(
    standard: Sequence[Floats], allowed: NDArray[np.bool_], users: NDArray[np.integer], items: NDArray[np.integer]
) -> NDArray[np.float64]:
    """(sources,) weights of at least 0 with sum 1, proportional to those of the likeliest softmax over the catalogue.

    standard: standardised scores, (users, items) each; `allowed` (users, items) what may be recommended; users, items
    (t,) the targets. Equal weights where nothing helps.
    """
    z = np.stack(standard).astype(np.float32)
    counts = np.bincount(users, minlength=len(allowed)).astype(np.float64)
    wanted = z[:, users, items].sum(axis=1, dtype=np.float64)

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = np.where(allowed, np.tensordot(weights.astype(np.float32), z, 1), -np.inf)
        total = logsumexp(logits, axis=1)
        chance = np.exp(logits - total[:, None]) * counts[:, None]
        expected = z.reshape(len(z), -1) @ chance.ravel().astype(np.float32)
        return float((counts @ total - weights @ wanted) / len(users)), (expected - wanted) / len(users)

    start = np.full(len(z), 1 / len(z))
    found = np.maximum(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(z)).x, 0.0)
    return found / found.sum() if found.sum() > 0 else start
