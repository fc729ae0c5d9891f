"""From scores that order a list to probabilities: a logistic curve over score and place (Platt 1999)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from lakerec.histories import Floats

RIDGE = 1e-3  # keeps the weights finite where the score separates the classes


@dataclass(frozen=True)
class Calibration:
    """P(positive) = logistic(a score + b / place + c), a and b not below 0: nothing rises from a place to the next."""

    weights: Sequence[float]

    @classmethod
    def fit(cls, scores: Floats, places: NDArray[np.integer], labels: Floats) -> Calibration:
        """Least log-loss on candidates (n,) whose scores have not seen their labels; places from 1."""
        x = _columns(scores, places)
        y = np.asarray(labels, dtype=np.float64)

        def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            z = x @ weights
            value = np.mean(np.logaddexp(0.0, z) - y * z) + RIDGE / 2 * np.sum(weights[:2] ** 2)
            return float(value), x.T @ (expit(z) - y) / len(y) + RIDGE * np.append(weights[:2], 0.0)

        rate = np.clip(y.mean(), 1e-6, 1 - 1e-6)
        start = np.array([0.0, 0.0, np.log(rate / (1 - rate))])
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None), (0, None), (None, None)])
        return cls([float(weight) for weight in found.x])

    def probabilities(self, scores: Floats, places: NDArray[np.integer]) -> NDArray[np.float32]:
        """(n,)."""
        return expit(_columns(scores, places) @ np.asarray(self.weights)).astype(np.float32)


def _columns(scores: Floats, places: NDArray[np.integer]) -> NDArray[np.float64]:
    score = np.asarray(scores, dtype=np.float64)
    return np.stack([score, 1.0 / np.asarray(places, dtype=np.float64), np.ones(len(score))], axis=1)
