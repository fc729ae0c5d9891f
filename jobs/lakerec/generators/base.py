"""What every candidate generator shares: it is fitted on histories, scores a catalogue, and is a dict of arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from lakerec.generators.scores import Index, Scores
from lakerec.histories import Floats, Histories

State = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Shelf:
    """What is known of the catalogue's items beside the events.

    text (items, d) float32, language-model vectors of length 1, zeros where an item has no text; graph
    (items, nodes) float32, which (relation, entity) nodes of the knowledge graph an item touches, None without one;
    first_seen (items,) days since 1970-01-01, nan where unknown, None where nothing is known of any.
    """

    text: Floats
    graph: sparse.csr_matrix | None = None
    first_seen: NDArray[np.float64] | None = None

    @cached_property
    def centred(self) -> Floats:
        """(items, d) of length 1 without the mean of those that have a text; zeros stay zeros."""
        told = np.linalg.norm(self.text, axis=1) > 0
        mean = self.text[told].mean(axis=0) if told.any() else 0.0
        moved = np.where(told[:, None], self.text - mean, 0.0)
        return (moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-9)).astype(np.float32)

    @cached_property
    def likeness(self) -> Index:
        """`centred`, to be searched."""
        return Index(self.centred)

    def __len__(self) -> int:
        """Number of items."""
        return len(self.text)


class Generator(ABC):
    """A candidate source: scores of the whole catalogue for each person, 0 where it has nothing to say."""

    name: ClassVar[str]
    # What is made anew from the day's counts, texts and graph: an artefact need not hold it.
    fresh: ClassVar[bool] = False
    # Settings that act when a history is scored, not on the fit.
    late: ClassVar[tuple[str, ...]] = ()

    @classmethod
    @abstractmethod
    def fit(cls, histories: Histories, shelf: Shelf, **settings: Any) -> Generator:
        """Learn from histories (weights above 0 count as a choice)."""

    @abstractmethod
    def said(self, histories: Histories) -> Scores:
        """What it says of all items to each person, the greater the better; needs nothing but their own events."""

    def score(self, histories: Histories) -> Floats:
        """The same as an array (users, items)."""
        return self.said(histories).whole()

    @property
    def items(self) -> int:
        """Items of the catalogue it was fitted on; a fresh one is made for whatever there is."""
        raise NotImplementedError

    @abstractmethod
    def state(self) -> State:
        """Arrays from which `restore` makes the same generator."""

    @classmethod
    @abstractmethod
    def restore(cls, state: State) -> Generator:
        """The generator of a state."""


def pack(name: str, matrix: sparse.csr_matrix) -> State:
    """A sparse matrix as arrays."""
    parts = {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr}
    return {f"{name}.{part}": array for part, array in parts.items()} | {f"{name}.shape": np.array(matrix.shape)}


def unpack(name: str, state: State) -> sparse.csr_matrix:
    """The sparse matrix that `pack` took apart."""
    parts = tuple(state[f"{name}.{part}"] for part in ("data", "indices", "indptr"))
    return sparse.csr_matrix(parts, shape=tuple(int(n) for n in state[f"{name}.shape"]))


def faded(histories: Histories, keep: float, length: int | None = None) -> sparse.csr_matrix:
    """People x items: each item's latest choice weighs keep ** (choices behind it); at most the last `length`."""
    chosen = histories.chosen()
    if length is not None:
        chosen = chosen.last(length)
    # A repeated item keeps its latest choice: the largest weight of the pair.
    return largest(chosen, np.power(keep, chosen.places))


def largest(histories: Histories, values: NDArray[np.floating]) -> sparse.csr_matrix:
    """People x items, the largest value of each pair."""
    key = histories.users.astype(np.int64) * histories.n_items + histories.items
    order = np.lexsort((values, key))
    last = np.concatenate([key[order][1:] != key[order][:-1], [True]]) if len(key) else np.zeros(0, dtype=bool)
    picked = order[last]
    where = (histories.users[picked], histories.items[picked])
    shape = (len(histories), histories.n_items)
    return sparse.csr_matrix((values[picked].astype(np.float32), where), shape=shape)


def strongest(matrix: sparse.csr_matrix, count: int) -> sparse.csr_matrix:
    """Each row's `count` largest entries; ties by column."""
    matrix = matrix.tocsr()
    matrix.sort_indices()
    kept = np.ones(matrix.nnz, dtype=np.bool_)
    for row in np.flatnonzero(np.diff(matrix.indptr) > count):
        span = slice(matrix.indptr[row], matrix.indptr[row + 1])
        data = matrix.data[span]
        least = np.partition(data, len(data) - count)[len(data) - count]
        best = data > least
        best[np.flatnonzero(data == least)[: count - int(best.sum())]] = True
        kept[span] = best
    ends = np.append(0, np.cumsum(kept))[matrix.indptr]
    return sparse.csr_matrix((matrix.data[kept], matrix.indices[kept], ends), shape=matrix.shape)
