"""What an item is: likeness of texts, and neighbours in the knowledge graph; both know items nobody has chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import sparse

from lakerec.generators.base import Generator, Shelf, State, faded, pack, unpack
from lakerec.generators.scores import Index, Links, Products, Scores, Sparse
from lakerec.histories import Histories


@dataclass(frozen=True)
class Text(Generator):
    """Cosine of an item's text vector with the faded mean of the person's, the catalogue's mean taken off."""

    name: ClassVar[str] = "text"
    late: ClassVar[tuple[str, ...]] = ("length", "keep")
    fresh: ClassVar[bool] = True
    index: Index
    length: int
    keep: float

    @classmethod
    def fit(cls, histories: Histories, shelf: Shelf, length: int = 50, keep: float = 0.9) -> Text:  # type: ignore[override]
        """The shelf's vectors, centred: what all items share says nothing of one."""
        return cls(shelf.likeness, length, keep)

    def said(self, histories: Histories) -> Scores:
        """The faded mean of each person's x the vectors."""
        people = faded(histories, self.keep, self.length) @ self.index.vectors
        people /= np.maximum(np.linalg.norm(people, axis=1, keepdims=True), 1e-9)
        return Products(people, self.index)

    def state(self) -> State:
        """The vectors."""
        return {"vectors": self.index.vectors, "numbers": np.array([self.length, self.keep])}

    @classmethod
    def restore(cls, state: State) -> Text:
        """From `state`."""
        length, keep = state["numbers"]
        return cls(Index(state["vectors"]), int(length), float(keep))


@dataclass(frozen=True)
class Profile(Generator):
    """Cosine of an item's text vector with that of the person's profile: all that is known of a new user."""

    name: ClassVar[str] = "profile"
    fresh: ClassVar[bool] = True
    index: Index

    @classmethod
    def fit(cls, histories: Histories, shelf: Shelf) -> Profile:  # type: ignore[override]
        """The shelf's vectors as they are: a profile is no mean of items."""
        return cls(Index(shelf.text))

    def said(self, histories: Histories) -> Scores:
        """Each profile x the vectors; nothing to people without one."""
        if histories.profiles is None or histories.profiles.shape[1] != self.index.vectors.shape[1]:
            return Sparse(sparse.csr_matrix((len(histories), histories.n_items), dtype=np.float32))
        return Products(histories.profiles, self.index)

    def state(self) -> State:
        """The vectors."""
        return {"vectors": self.index.vectors}

    @classmethod
    def restore(cls, state: State) -> Profile:
        """From `state`."""
        return cls(Index(state["vectors"]))


@dataclass(frozen=True)
class Graph(Generator):
    """Items that share nodes of the knowledge graph: cosine of memberships, rare nodes count more (idf)."""

    name: ClassVar[str] = "graph"
    late: ClassVar[tuple[str, ...]] = ("length", "keep")
    fresh: ClassVar[bool] = True
    members: sparse.csr_matrix
    length: int
    keep: float

    @classmethod
    def fit(cls, histories: Histories, shelf: Shelf, length: int = 50, keep: float = 0.95) -> Graph:  # type: ignore[override]
        """Weigh each node by log(items / items at the node); rows of length 1."""
        members = shelf.graph if shelf.graph is not None else sparse.csr_matrix((len(shelf), 1), dtype=np.float32)
        at_node = np.maximum(np.asarray((members != 0).sum(axis=0)).ravel(), 1)
        told = (members @ sparse.diags(np.log(len(shelf) / at_node))).tocsr()
        norm = np.sqrt(np.asarray(told.multiply(told).sum(axis=1)).ravel())
        return cls((sparse.diags(1 / np.maximum(norm, 1e-9)) @ told).tocsr().astype(np.float32), length, keep)

    def said(self, histories: Histories) -> Scores:
        """The nodes of each person's items x those of all."""
        return Links(faded(histories, self.keep, self.length) @ self.members, self.members)

    def state(self) -> State:
        """The weighted memberships."""
        return pack("members", self.members) | {"numbers": np.array([self.length, self.keep])}

    @classmethod
    def restore(cls, state: State) -> Graph:
        """From `state`."""
        length, keep = state["numbers"]
        return cls(unpack("members", state), int(length), float(keep))
