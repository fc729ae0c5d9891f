"""Matrix factorisation: item factors of Spark's implicit ALS; a person's factors are folded in from their events."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from lakerec.generators.base import Generator, Shelf, State
from lakerec.generators.scores import Index, Products, Scores
from lakerec.histories import Floats, Histories


@dataclass(frozen=True)
class Als(Generator):
    """Implicit ALS (Hu, Koren, Volinsky 2008): x_u = (Y'Y + Y'(C_u - I)Y + reg n_u I)^-1 Y'C_u p_u, c = 1 + alpha r.

    The half-step of Spark's solver, so that a person of today needs no new fit.
    """

    name: ClassVar[str] = "als"
    factors: Floats
    alpha: float
    reg: float

    @classmethod
    def fit(  # type: ignore[override]
        cls,
        histories: Histories,
        shelf: Shelf,
        size: int = 64,
        alpha: float = 10.0,
        reg: float = 0.05,
        rounds: int = 8,
        seed: int = 17,
    ) -> Als:
        """Alternate on this machine: the same updates as Spark's, for data that fits one process."""
        ratings = histories.chosen().matrix()
        draw = np.random.default_rng(seed)
        items = np.abs(draw.normal(size=(histories.n_items, size))).astype(np.float64) / np.sqrt(size)
        by_item = ratings.T.tocsr()
        for _ in range(rounds):
            people = solve(ratings, items, alpha, reg)
            items = solve(by_item, people, alpha, reg)
        return cls(items.astype(np.float32), alpha, reg)

    @cached_property
    def index(self) -> Index:
        """The factors, to be searched."""
        return Index(self.factors)

    def said(self, histories: Histories) -> Scores:
        """Folded-in people x item factors."""
        people = solve(histories.chosen().matrix(), self.factors.astype(np.float64), self.alpha, self.reg)
        return Products(people, self.index)

    @property
    def items(self) -> int:
        """Items of the fit."""
        return len(self.factors)

    def state(self) -> State:
        """The item factors."""
        return {"factors": self.factors, "numbers": np.array([self.alpha, self.reg])}

    @classmethod
    def restore(cls, state: State) -> Als:
        """From `state`."""
        alpha, reg = state["numbers"]
        return cls(state["factors"], float(alpha), float(reg))


def solve(ratings: object, factors: np.ndarray, alpha: float, reg: float) -> np.ndarray:
    """One half-step: ratings (rows, columns) sparse, factors (columns, f) -> (rows, f); rows without any are 0."""
    gram = factors.T @ factors
    size = factors.shape[1]
    indptr, indices, data = ratings.indptr, ratings.indices, ratings.data  # type: ignore[attr-defined]
    found = np.zeros((len(indptr) - 1, size))
    for row in np.flatnonzero(np.diff(indptr)):
        span = slice(indptr[row], indptr[row + 1])
        mine, extra = factors[indices[span]], alpha * data[span]
        left = gram + (mine.T * extra) @ mine + reg * len(extra) * np.eye(size)
        found[row] = np.linalg.solve(left, mine.T @ (1 + extra))
    return found
