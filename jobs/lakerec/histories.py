"""Users' events as flat arrays: what candidate sources, the retriever and the ranker are fitted on and score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Histories:
    """The events of `users` people, oldest first; person u has the events starts[u] .. starts[u + 1] - 1.

    starts (users + 1,) int64; items (events,) int32, a place in a catalogue of n_items; times (events,) float64,
    days since 1970-01-01 UTC; weights (events,) float32, the event type's weight; types (events,) int16, a code of
    the event type; at (users,) float64, the day as of which the person is scored (times are <= at); groups (users,)
    int32, the person's behaviour pattern, -1 where none is known; profiles (users, d) float32, the text vector of the
    person's profile, zeros where there is none.
    """

    starts: NDArray[np.int64]
    items: Ints
    times: NDArray[np.float64]
    weights: Floats
    types: NDArray[np.int16]
    at: NDArray[np.float64]
    n_items: int
    groups: Ints | None = None
    profiles: Floats | None = None

    @classmethod
    def of_events(
        cls,
        users: NDArray[np.integer],
        items: NDArray[np.integer],
        times: NDArray[np.floating],
        n_users: int,
        n_items: int,
        weights: NDArray[np.floating] | None = None,
        types: NDArray[np.integer] | None = None,
        at: float | NDArray[np.floating] | None = None,
    ) -> Histories:
        """From event columns in any order; equal times of a user keep the order given. `at`: the last time."""
        order = np.lexsort((times, users))  # stable: equal times keep the order given
        starts = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=n_users))]).astype(np.int64)
        weighed = np.ones(len(users)) if weights is None else weights
        typed = np.zeros(len(users), dtype=np.int16) if types is None else types
        last = float(times.max()) if len(times) else 0.0
        return cls(
            starts,
            items[order].astype(np.int32),
            times[order].astype(np.float64),
            weighed[order].astype(np.float32),
            typed[order].astype(np.int16),
            np.broadcast_to(np.asarray(last if at is None else at, dtype=np.float64), (n_users,)),
            n_items,
        )

    def __len__(self) -> int:
        """Number of people."""
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Events of each person, (users,)."""
        return np.diff(self.starts)

    @property
    def users(self) -> Ints:
        """The person of each event, (events,)."""
        return np.repeat(np.arange(len(self), dtype=np.int32), self.lengths)

    @property
    def places(self) -> NDArray[np.int64]:
        """How many events of the same person come behind each event, (events,): 0 for the last."""
        return np.repeat(self.starts[1:], self.lengths) - 1 - np.arange(len(self.items))

    def keep(self, mask: NDArray[np.bool_]) -> Histories:
        """The events where `mask` (events,) holds; every person stays, perhaps with none."""
        counted = np.concatenate([[0], np.cumsum(mask)])
        columns = {name: getattr(self, name)[mask] for name in ("items", "times", "weights", "types")}
        return replace(self, starts=counted[self.starts], **columns)

    def chosen(self) -> Histories:
        """The events of a positive weight."""
        return self.keep(self.weights > 0)

    def without_last(self, count: int) -> Histories:
        """Without each person's last `count` events, scored as of the last event that is left."""
        left = self.keep(self.places >= count)
        if not len(left.times):
            return left
        newest = left.times[np.maximum(left.starts[1:] - 1, 0)]
        return replace(left, at=np.where(left.lengths > 0, newest, self.at))

    def last(self, count: int) -> Histories:
        """Each person's last `count` events."""
        return self.keep(self.places < count)

    def until(self, day: float) -> Histories:
        """What happened before `day` (events at times < day), scored as of the instant before it."""
        # At midnight itself a window of days would begin with a day that has not happened yet.
        return replace(self.keep(self.times < day), at=np.full(len(self), np.nextafter(day, -np.inf)))

    def select(self, people: Sequence[int] | NDArray[np.integer]) -> Histories:
        """Some people, in the order given; a person may be named twice."""
        people = np.asarray(people, dtype=np.int64)
        lengths = self.lengths[people]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        source = np.repeat(self.starts[people] - starts[:-1], lengths) + np.arange(starts[-1])
        columns = {name: getattr(self, name)[source] for name in ("items", "times", "weights", "types")}
        groups = None if self.groups is None else self.groups[people]
        profiles = None if self.profiles is None else self.profiles[people]
        return replace(self, starts=starts, at=self.at[people], groups=groups, profiles=profiles, **columns)

    def stretches(self, size: int) -> Histories:
        """Each run of at most `size` events as a person of its own: what was chosen at about the same time."""
        inside = np.arange(len(self.items)) - np.repeat(self.starts[:-1], self.lengths)
        begins = np.flatnonzero(inside % size == 0)
        starts = np.append(begins, len(self.items)).astype(np.int64)
        return replace(self, starts=starts, at=np.repeat(self.at, self.lengths)[begins], groups=None, profiles=None)

    def blocks(self, size: int) -> Iterator[NDArray[np.int64]]:
        """People in runs of `size`, as places."""
        for first in range(0, len(self), size):
            yield np.arange(first, min(first + size, len(self)))

    def matrix(self, values: NDArray[np.floating] | None = None) -> sparse.csr_matrix:
        """People x items, float32, the sum of `values` (events,) (without: 1 for each pair)."""
        data = np.ones(len(self.items), dtype=np.float32) if values is None else values.astype(np.float32)
        matrix = sparse.csr_matrix((data, self.items, self.starts), shape=(len(self), self.n_items))
        matrix = matrix.copy()
        matrix.sum_duplicates()
        if values is None:
            matrix.data[:] = 1.0
        return matrix
