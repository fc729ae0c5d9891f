"""What everybody chooses, over windows of days, and what a person chooses again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from lakerec.generators.base import Generator, Shelf, State, pack, unpack
from lakerec.generators.scores import Rows, Scores, Sparse
from lakerec.histories import Floats, Histories

ALWAYS = 1e9  # days: a window over everything
PATTERN_DAYS = 90.0


@dataclass(frozen=True)
class DailyCounts:
    """Choices of each item on each day: counts (days, items), first the day of row 0."""

    counts: sparse.csr_matrix
    first: int

    @classmethod
    def of(cls, histories: Histories) -> DailyCounts:
        """Count the events of a positive weight by their day."""
        chosen = histories.chosen()
        return cls.of_counts(chosen.items, chosen.times, np.ones(len(chosen.items)), histories.n_items)

    @classmethod
    def of_counts(cls, items: ArrayLike, times: ArrayLike, counts: ArrayLike, n_items: int) -> DailyCounts:
        """From items, times in days, and how often, (n,) each."""
        days = np.floor(np.asarray(times, dtype=np.float64)).astype(np.int64)
        first = int(days.min()) if len(days) else 0
        rows = int(days.max()) - first + 1 if len(days) else 1
        where = (days - first, np.asarray(items, dtype=np.int64))
        data = np.asarray(counts, dtype=np.float32)
        return cls(sparse.csr_matrix((data, where), shape=(rows, n_items)), first)

    def within(self, at: float, days: float) -> NDArray[np.float64]:
        """(items,) choices in the `days` days up to and with the day of `at`."""
        stop = int(np.clip(np.floor(at) + 1 - self.first, 0, self.counts.shape[0]))
        start = int(np.clip(np.floor(at) + 1 - self.first - min(days, 1e6), 0, stop))
        span = slice(self.counts.indptr[start], self.counts.indptr[stop])
        size = self.counts.shape[1]
        found: NDArray[np.float64] = np.bincount(self.counts.indices[span], self.counts.data[span], size).astype(float)
        return found

    def first_days(self) -> NDArray[np.float64]:
        """(items,) the first day each item was chosen on; nan for one that never was."""
        entries = self.counts.tocoo()
        found = np.full(self.counts.shape[1], np.inf)
        np.minimum.at(found, entries.col, entries.row + float(self.first))
        return np.where(np.isfinite(found), found, np.nan)


@dataclass(frozen=True)
class Popular(Generator):
    """Share of all choices in the last `days` days before a person is scored; older ones count a millionth."""

    name: ClassVar[str] = "popular"
    fresh: ClassVar[bool] = True
    daily: DailyCounts
    days: float

    @classmethod
    def fit(cls, histories: Histories, shelf: Shelf, days: float = ALWAYS) -> Popular:  # type: ignore[override]
        """Count by day."""
        return cls(DailyCounts.of(histories), days)

    def said(self, histories: Histories) -> Scores:
        """One row for all who are scored on the same day."""
        return by_day(self._row, np.floor(histories.at), histories.n_items)

    def _row(self, at: float) -> Floats:
        counted = self.daily.within(at, self.days) + 1e-6 * self.daily.within(at, ALWAYS)
        return (counted / max(counted.sum(), 1e-9)).astype(np.float32)

    def state(self) -> State:
        """The counts by day."""
        return pack("counts", self.daily.counts) | {"numbers": np.array([self.daily.first, self.days])}

    @classmethod
    def restore(cls, state: State) -> Popular:
        """From `state`."""
        first, days = state["numbers"]
        return cls(DailyCounts(unpack("counts", state), int(first)), float(days))


@dataclass(frozen=True)
class Rising(Generator):
    """Growth: the log of an item's choices in the last `days` days against what the `past` days before them promise.

    log((recent + 1) / (before * days / past + 1)), at least 0.
    """

    name: ClassVar[str] = "rising"
    fresh: ClassVar[bool] = True
    daily: DailyCounts
    days: float
    past: float

    @classmethod
    def fit(  # type: ignore[override]
        cls, histories: Histories, shelf: Shelf, days: float = 7.0, past: float = 60.0
    ) -> Rising:
        """Count by day."""
        return cls(DailyCounts.of(histories), days, past)

    def said(self, histories: Histories) -> Scores:
        """One row for all who are scored on the same day."""
        return by_day(self._row, np.floor(histories.at), histories.n_items)

    def _row(self, at: float) -> Floats:
        recent = self.daily.within(at, self.days)
        before = self.daily.within(at, self.days + self.past) - recent
        growth = np.log1p(recent) - np.log1p(before * self.days / self.past)
        return np.maximum(growth, 0.0).astype(np.float32)

    def state(self) -> State:
        """The counts by day."""
        return pack("counts", self.daily.counts) | {"numbers": np.array([self.daily.first, self.days, self.past])}

    @classmethod
    def restore(cls, state: State) -> Rising:
        """From `state`."""
        first, days, past = state["numbers"]
        return cls(DailyCounts(unpack("counts", state), int(first)), float(days), float(past))


@dataclass(frozen=True)
class New(Generator):
    """Items first seen in the last `days` days before a person is scored, the newest first."""

    name: ClassVar[str] = "new"
    fresh: ClassVar[bool] = True
    first_seen: NDArray[np.float64]
    days: float

    @classmethod
    def fit(cls, histories: Histories, shelf: Shelf, days: float = 30.0) -> New:  # type: ignore[override]
        """The shelf's first days, else those of the first choice."""
        first = shelf.first_seen if shelf.first_seen is not None else DailyCounts.of(histories).first_days()
        return cls(first, days)

    def said(self, histories: Histories) -> Scores:
        """1 for an item of the day, falling to 0 at `days`."""
        return by_day(self._row, histories.at, histories.n_items)

    def _row(self, at: float) -> Floats:
        age = at - self.first_seen
        return np.where((age >= 0) & (age < self.days), 1 - age / self.days, 0.0).astype(np.float32)

    def state(self) -> State:
        """The first days."""
        return {"first_seen": self.first_seen, "days": np.array(self.days)}

    @classmethod
    def restore(cls, state: State) -> New:
        """From `state`."""
        return cls(state["first_seen"], float(state["days"]))


@dataclass(frozen=True)
class Personal(Generator):
    """What a person chose before: the sum of 1 / 2 ** (age / half_life), ages in days; plain with an endless one."""

    name: ClassVar[str] = "personal"
    fresh: ClassVar[bool] = True
    half_life: float

    @classmethod
    def fit(cls, histories: Histories, shelf: Shelf, half_life: float = 90.0) -> Personal:  # type: ignore[override]
        """Nothing to learn."""
        return cls(half_life)

    def said(self, histories: Histories) -> Scores:
        """The person's own faded choices."""
        chosen = histories.chosen()
        age = np.repeat(chosen.at, chosen.lengths) - chosen.times
        return Sparse(chosen.matrix(np.power(0.5, np.maximum(age, 0) / self.half_life)))

    def state(self) -> State:
        """The half-life."""
        return {"half_life": np.array(self.half_life)}

    @classmethod
    def restore(cls, state: State) -> Personal:
        """From `state`."""
        return cls(float(state["half_life"]))


@dataclass(frozen=True)
class PatternPopular(Generator):
    """Share of an item in the choices of a person's behaviour pattern over the last `days` days of the fit."""

    name: ClassVar[str] = "pattern"
    fresh: ClassVar[bool] = True
    shares: Floats

    @classmethod
    def fit(cls, histories: Histories, shelf: Shelf, days: float = PATTERN_DAYS) -> PatternPopular:  # type: ignore[override]
        """shares (patterns, items); no pattern known, no rows."""
        groups = histories.groups if histories.groups is not None else np.full(len(histories), -1)
        recent = histories.keep((histories.weights > 0) & (histories.times >= histories.at.max(initial=0) - days))
        shares = np.zeros((int(groups.max(initial=-1)) + 1, histories.n_items), dtype=np.float32)
        of_event = np.repeat(groups, recent.lengths)
        np.add.at(shares, (of_event[of_event >= 0], recent.items[of_event >= 0]), 1.0)
        return cls(shares / np.maximum(shares.sum(axis=1, keepdims=True), 1.0))

    def said(self, histories: Histories) -> Scores:
        """One row for all of a pattern, 0 for people without one."""
        count = len(self.shares)
        groups = np.full(len(histories), count) if histories.groups is None else histories.groups.astype(np.int64)
        rows = np.concatenate([self.shares, np.zeros((1, histories.n_items), dtype=np.float32)])
        return Rows(rows, np.where((groups >= 0) & (groups < count), groups, count))

    def state(self) -> State:
        """The shares."""
        return {"shares": self.shares}

    @classmethod
    def restore(cls, state: State) -> PatternPopular:
        """From `state`."""
        return cls(state["shares"])


def by_day(row: Callable[[float], Floats], days: NDArray[np.float64], items: int) -> Rows:
    """One row (items,) for each of the different days (users,)."""
    found, which = np.unique(days, return_inverse=True)
    return Rows(np.stack([row(at) for at in found]) if len(found) else np.zeros((0, items), dtype=np.float32), which)
