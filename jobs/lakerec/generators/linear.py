"""EASE: a linear model of every item on every other, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

from lakerec.errors import ConfigError
from lakerec.generators.base import Generator, Shelf, State, faded
from lakerec.generators.scores import Columns, Scores, dense
from lakerec.histories import Floats, Histories


@dataclass(frozen=True)
class Ease(Generator):
    """Embarrassingly shallow autoencoder (Steck 2019): B = I - P diag(P)^-1 with P = (X'X + penalty I)^-1.

    Only the `limit` most chosen items take part: P costs limit^3 operations and limit^2 * 4 bytes.
    """

    name: ClassVar[str] = "ease"
    late: ClassVar[tuple[str, ...]] = ("keep",)
    weights: Floats
    columns: np.ndarray
    n_items: int
    keep: float

    @classmethod
    def fit(  # type: ignore[override]
        cls, histories: Histories, shelf: Shelf, penalty: float = 100.0, keep: float = 0.85, limit: int = 12_000
    ) -> Ease:
        """Fit on who chose what (0 or 1); `keep` fades a person's own history when it is scored."""
        seen = histories.chosen().matrix()
        counts = np.asarray(seen.sum(axis=0)).ravel()
        columns = np.sort(np.argsort(-counts, kind="stable")[:limit])
        seen = seen[:, columns]
        gram = dense(seen.T @ seen).astype(np.float64)
        gram[np.diag_indices_from(gram)] += penalty
        inverse = _inverse(gram)
        weights = inverse / -np.diag(inverse)
        weights[np.diag_indices_from(weights)] = 0.0
        return cls(weights.astype(np.float32), columns, histories.n_items, keep)

    def said(self, histories: Histories) -> Scores:
        """Faded history x B."""
        told = dense(faded(histories, self.keep)[:, self.columns] @ self.weights)
        return Columns(told, self.columns, self.n_items)

    @property
    def items(self) -> int:
        """Items of the fit."""
        return self.n_items

    def state(self) -> State:
        """The weights and their items."""
        return {
            "weights": self.weights,
            "columns": self.columns,
            "numbers": np.array([self.n_items, self.keep]),
        }

    @classmethod
    def restore(cls, state: State) -> Ease:
        """From `state`."""
        n_items, keep = state["numbers"]
        return cls(state["weights"], state["columns"], int(n_items), float(keep))


def _inverse(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of a symmetric positive definite matrix, which is used up: by Cholesky, half the operations of a general one."""
    if not len(gram):
        return gram
    lower, failed = lapack.dpotrf(gram.T, lower=1, overwrite_a=1)
    if failed:
        raise ConfigError("candidates.generators: ease cannot be fitted with this penalty; it must be above 0")
    half = np.tril(lapack.dpotri(lower, lower=1, overwrite_c=1)[0])
    half += np.tril(half, -1).T
    return half
