"""From scores that order a list to probabilities: a logistic curve over score and place (Platt 1999)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from lakerec.histories import Floats

RIDGE = 1e-3  # keeps the weights finite where a column separates the classes


@dataclass(frozen=True)
class Calibration:
    """P(positive) = logistic(a score + b / place + c), a and b not below 0: nothing rises from a place to the next."""

    weights: Sequence[float]

    @classmethod
    def fit(cls, scores: Floats, places: NDArray[np.integer], labels: Floats) -> Calibration:
        """Least log-loss on candidates (n,) whose scores have not seen their labels; places from 1."""
        return cls(rising_logistic(_columns(scores, places), labels).tolist())

    def probabilities(self, scores: Floats, places: NDArray[np.integer]) -> NDArray[np.float32]:
        """(n,)."""
        columns, weights = _columns(scores, places), np.asarray(self.weights)
        return expit(columns @ weights[:-1] + weights[-1]).astype(np.float32)


def rising_logistic(x: NDArray[np.floating], labels: Floats) -> NDArray[np.float64]:
    """(f + 1,) weights of the columns of x (n, f), none below 0, and the bias, of least ridge log-loss; by L-BFGS-B.

    Labels that are all alike teach the bias alone: the share that one more of each kind would give.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(labels, dtype=np.float64)

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z, ridge = x @ weights[:-1] + weights[-1], RIDGE * np.append(weights[:-1], 0.0)
        slope = (expit(z) - y) / len(y)
        value = np.mean(np.logaddexp(0.0, z) - y * z) + ridge @ weights / 2
        return float(value), np.append(x.T @ slope, slope.sum()) + ridge

    share = np.clip(y.sum() / max(len(y), 1), 1 / (len(y) + 2), (len(y) + 1) / (len(y) + 2))
    start: NDArray[np.float64] = np.append(np.zeros(x.shape[1]), logit(share))
    if y.sum() in (0, len(y)):
        return start
    bounds = [*[(0.0, None)] * x.shape[1], (None, None)]
    found: NDArray[np.float64] = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return found


def _columns(scores: Floats, places: NDArray[np.integer]) -> NDArray[np.float64]:
    return np.stack([np.asarray(scores, dtype=np.float64), 1.0 / np.asarray(places, dtype=np.float64)], axis=1)
