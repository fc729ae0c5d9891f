"""Neighbourhood models: item-kNN, user-kNN, and directed co-visitation (a Markov chain with gaps)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import sparse

from lakerec.generators.base import Generator, Shelf, State, faded, pack, strongest, unpack
from lakerec.generators.scores import Scores, Sparse
from lakerec.histories import Histories


@dataclass(frozen=True)
class ItemKnn(Generator):
    """Item-to-item cosine with shrinkage (Sarwar et al. 2001): |a and b| / (sqrt(|a| |b|) + shrink)."""

    name: ClassVar[str] = "item_knn"
    late: ClassVar[tuple[str, ...]] = ("keep",)
    similar: sparse.csr_matrix
    keep: float

    @classmethod
    def fit(  # type: ignore[override]
        cls, histories: Histories, shelf: Shelf, neighbours: int = 200, shrink: float = 5.0, keep: float = 0.9
    ) -> ItemKnn:
        """Who chose both, of those who chose either; each item keeps its nearest `neighbours`."""
        seen = histories.chosen().matrix()
        both = (seen.T @ seen).tocoo()
        counts = np.asarray(seen.sum(axis=0)).ravel()
        value = both.data / (np.sqrt(counts[both.row] * counts[both.col]) + shrink)
        value[both.row == both.col] = 0.0
        pairs = sparse.csr_matrix((value.astype(np.float32), (both.row, both.col)), shape=both.shape)
        pairs.eliminate_zeros()
        return cls(strongest(pairs, neighbours), keep)

    def said(self, histories: Histories) -> Scores:
        """Faded history x similarity."""
        return Sparse(faded(histories, self.keep) @ self.similar)

    @property
    def items(self) -> int:
        """Items of the fit."""
        return int(self.similar.shape[0])

    def state(self) -> State:
        """The neighbours."""
        return pack("similar", self.similar) | {"keep": np.array(self.keep)}

    @classmethod
    def restore(cls, state: State) -> ItemKnn:
        """From `state`."""
        return cls(unpack("similar", state), float(state["keep"]))


@dataclass(frozen=True)
class UserKnn(Generator):
    """What the nearest people chose: cosine of faded histories, the `neighbours` nearest, weighted by nearness."""

    name: ClassVar[str] = "user_knn"
    people: sparse.csr_matrix
    neighbours: int
    keep: float

    @classmethod
    def fit(  # type: ignore[override]
        cls, histories: Histories, shelf: Shelf, neighbours: int = 100, keep: float = 0.98, limit: int = 50_000
    ) -> UserKnn:
        """Keep the faded histories of the `limit` people with the most events."""
        most = np.sort(np.argsort(-histories.lengths, kind="stable")[:limit])
        return cls(_unit(faded(histories.select(most), keep)), neighbours, keep)

    def said(self, histories: Histories) -> Scores:
        """The neighbours' choices; a person is no neighbour of their own (cosine above .9999)."""
        near = (_unit(faded(histories, self.keep)) @ self.people.T).tocsr()
        near.data[near.data > 0.9999] = 0.0
        near = strongest(near, self.neighbours)
        near.data **= 2
        chosen = self.people.copy()
        chosen.data = np.ones_like(chosen.data)
        return Sparse(near @ chosen)

    @property
    def items(self) -> int:
        """Items of the fit."""
        return int(self.people.shape[1])

    def state(self) -> State:
        """The people's histories."""
        return pack("people", self.people) | {"numbers": np.array([self.neighbours, self.keep])}

    @classmethod
    def restore(cls, state: State) -> UserKnn:
        """From `state`."""
        neighbours, keep = state["numbers"]
        return cls(unpack("people", state), int(neighbours), float(keep))


@dataclass(frozen=True)
class Markov(Generator):
    """Directed co-visitation: P(b | a) from what was chosen up to `span` events behind a, faded by distance."""

    name: ClassVar[str] = "markov"
    following: sparse.csr_matrix
    length: int
    keep: float

    @classmethod
    def fit(  # type: ignore[override]
        cls,
        histories: Histories,
        shelf: Shelf,
        span: int = 10,
        fade: float = 0.8,
        length: int = 10,
        keep: float = 0.8,
        shrink: float = 5.0,
        neighbours: int = 500,
    ) -> Markov:
        """A step of distance d counts fade^(d - 1); a row's shares are shrunk by `shrink` steps of nothing."""
        chosen = histories.chosen()
        counted = sparse.csr_matrix((chosen.n_items, chosen.n_items), dtype=np.float32)
        for distance in range(1, span + 1):
            counted = counted + _steps(chosen, distance) * fade ** (distance - 1)
        counted.setdiag(0)
        counted.eliminate_zeros()
        total = np.asarray(counted.sum(axis=1)).ravel() + shrink
        share = sparse.diags(1 / total) @ counted
        return cls(strongest(share.astype(np.float32), neighbours), length, keep)

    def said(self, histories: Histories) -> Scores:
        """The last `length` choices x P."""
        return Sparse(faded(histories, self.keep, self.length) @ self.following)

    @property
    def items(self) -> int:
        """Items of the fit."""
        return int(self.following.shape[0])

    def state(self) -> State:
        """The shares."""
        return pack("following", self.following) | {"numbers": np.array([self.length, self.keep])}

    @classmethod
    def restore(cls, state: State) -> Markov:
        """From `state`."""
        length, keep = state["numbers"]
        return cls(unpack("following", state), int(length), float(keep))


def _steps(chosen: Histories, distance: int) -> sparse.csr_matrix:
    """Items x items: how often the column was chosen exactly `distance` events behind the row by one person."""
    first = np.flatnonzero(chosen.places >= distance)
    shape = (chosen.n_items, chosen.n_items)
    ones = np.ones(len(first), dtype=np.float32)
    return sparse.csr_matrix((ones, (chosen.items[first], chosen.items[first + distance])), shape=shape)


def _unit(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Rows of length 1."""
    length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return (sparse.diags(1 / np.maximum(length, 1e-12)) @ matrix).tocsr().astype(np.float32)
