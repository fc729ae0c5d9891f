"""Evaluation protocols as data: what is fitted on, what is known of each person, what is to be found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lakerec.errors import ContractError, NotEnoughDataError
from lakerec.histories import Histories, Ints

Ties = Literal["published_order", "shuffled"]
Mask = NDArray[np.bool_]
Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """The u people with a target: what is known of them before it, and their targets.

    people (u,) are places in the histories that were split; the targets of histories' person i are
    target_items[target_starts[i] .. target_starts[i + 1] - 1], target_starts (u + 1,), target_items (t,).
    """

    histories: Histories
    people: Codes
    target_starts: Codes
    target_items: Ints

    def __len__(self) -> int:
        """Number of people, u."""
        return len(self.people)

    @property
    def targets(self) -> list[Ints]:
        """The targets of each person, by their place in `histories`."""
        bounds = zip(self.target_starts, self.target_starts[1:], strict=False)
        return [self.target_items[first:last] for first, last in bounds]

    @property
    def target_users(self) -> Codes:
        """The place in `histories` of each target's person, (t,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.target_starts))

    def some(self, limit: int, seed: int) -> Part:
        """At most `limit` people, drawn by seed."""
        if len(self) <= limit:
            return self
        chosen = np.sort(np.random.default_rng(seed).choice(len(self), limit, replace=False))
        starts = np.append(0, np.cumsum(np.diff(self.target_starts)[chosen])).astype(np.int64)
        items = self.target_items[np.isin(self.target_users, chosen)]
        return Part(self.histories.select(chosen), self.people[chosen], starts, items)


@dataclass(frozen=True)
class Split:
    """`train` keeps every person, and everything is fitted on it; `valid` chooses, `test` reports."""

    train: Histories
    valid: Part
    test: Part


@dataclass(frozen=True)
class GlobalTime:
    """Targets: the distinct items chosen on the `horizon` days from `cut` on (days since 1970-01-01 UTC).

    Only events of positive weight make targets. `repeats`: items of the person's history count too; without, they are
    to be masked. `first_basket`: only the person's first day (UTC) with such events in the window. `each`: so many of
    a person's events in the window, drawn by seed, are targets by themselves, with what the person did before them as
    history, at their own time: models are as old as the cut, histories are not. Not with `first_basket`.
    """

    cut: float
    horizon: float
    repeats: bool = False
    first_basket: bool = False
    each: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.each and self.first_basket:
            raise ContractError("a global time split takes `each` or `first_basket`, not both")

    @property
    def name(self) -> str:
        """The protocol in words, as in gold.model_metrics."""
        return f"global_time cut={_day(self.cut)} horizon={self.horizon:g}d" + self._options

    @property
    def _options(self) -> str:
        """What differs from the default, for the name."""
        each = f" each={self.each} seed={self.seed} target_time_known" if self.each else ""
        return " repeats" * self.repeats + " first_basket" * self.first_basket + each

    def cuts(self, count: int) -> list[GlobalTime]:
        """`count` protocols, oldest first, a horizon apart, so that no two test windows overlap; the last is this."""
        return [replace(self, cut=self.cut - back * self.horizon) for back in reversed(range(count))]

    def split(self, histories: Histories) -> Split:
        """Train before cut - horizon, valid from there, test from the cut. NotEnoughDataError if a part is empty."""
        train = histories.until(self.cut - self.horizon)
        valid = self._part(histories, train, "valid")
        return Split(train, valid, self._part(histories, histories.until(self.cut), "test"))

    def _part(self, histories: Histories, known: Histories, split: str) -> Part:
        """What is chosen in the window behind the known events, for everyone with a target, known before or not."""
        start = float(np.nextafter(known.at[0], np.inf)) if len(known) else self.cut
        where = f"{self.name}: {split} split ({_day(start)} to {_day(start + self.horizon)})"
        if self.each:
            return self._each(histories, start, where)
        window = histories.chosen()
        window = window.keep((window.times >= start) & (window.times < start + self.horizon))
        if self.first_basket:
            window = window.keep(_on_first_day(window))
        wanted = window.keep(_first_of_pair(window))
        return _part(known, wanted.users, wanted.items, self.repeats, where)

    def _each(self, whole: Histories, start: float, where: str) -> Part:
        """A row for each target; a person stands there as often as they have one."""
        inside = (whole.times >= start) & (whole.times < start + self.horizon) & (whole.weights > 0)
        places = np.flatnonzero(inside)
        chance = np.random.default_rng(self.seed).random(len(places))
        drawn = np.lexsort((chance, whole.users[places]))
        users = whole.users[places][drawn]
        drawn = np.sort(places[drawn][np.arange(len(users)) - np.searchsorted(users, users) < self.each])
        known = whole.select(whole.users[drawn])
        left = known.lengths - (drawn - whole.starts[whole.users[drawn]])
        known = known.keep(known.places >= np.repeat(left, known.lengths))
        known = replace(known, at=whole.times[drawn])
        part = _part(known, np.arange(len(drawn), dtype=np.int32), whole.items[drawn], self.repeats, where)
        return replace(part, people=whole.users[drawn][part.people].astype(np.int64))


@dataclass(frozen=True)
class LeaveOneOut:
    """Each person's last event is the test target, the last but one the valid target; any weight counts.

    People with fewer than 3 events stay in train with all of them. Published protocols differ in how they order events
    of equal time, so it is part of the name. Without `repeats`, a target that is in the person's history is left out:
    it would be masked.
    """

    ties: Ties = "published_order"
    seed: int = 0
    repeats: bool = False

    @property
    def name(self) -> str:
        """The protocol in words, as in gold.model_metrics."""
        seed = f" seed={self.seed}" if self.ties == "shuffled" else ""
        return f"leave_one_out ties={self.ties}" + seed + " repeats" * self.repeats

    def split(self, histories: Histories) -> Split:
        """Train without the last two events of those who have three. NotEnoughDataError if valid or test is empty."""
        ordered = order(histories, self.ties, self.seed)
        enough = ordered.lengths >= 3
        kept = ordered.keep((ordered.places >= 2) | ~enough[ordered.users])
        train = replace(kept, at=np.where(enough, ordered.without_last(2).at, ordered.at))
        return Split(train, self._part(ordered, 2, "valid"), self._part(ordered, 1, "test"))

    def _part(self, ordered: Histories, back: int, split: str) -> Part:
        """The event `back` places from the end as target, all before it as history."""
        wanted = ordered.keep((ordered.places == back - 1) & (ordered.lengths >= 3)[ordered.users])
        where = f"{self.name}: {split} split"
        return _part(ordered.without_last(back), wanted.users, wanted.items, self.repeats, where)


def _part(known: Histories, users: Ints, items: Ints, repeats: bool, where: str) -> Part:
    """Targets (t,), sorted by user, of people whose events `known` holds. NotEnoughDataError names `where`."""
    if not repeats:
        fresh = ~np.isin(pairs(users, items, known.n_items), pairs(known.users, known.items, known.n_items))
        users, items = users[fresh], items[fresh]
    if not len(users):
        raise NotEnoughDataError(f"{where} is empty: nobody has a target in it")
    people, counts = np.unique(users, return_counts=True)
    starts = np.append(0, np.cumsum(counts)).astype(np.int64)
    return Part(known.select(people), people.astype(np.int64), starts, items)


def pairs(users: Ints | Codes, items: Ints, n_items: int) -> Codes:
    """One code for each user and item, (n,)."""
    return users.astype(np.int64) * n_items + items


def _first_of_pair(histories: Histories) -> Mask:
    """The first event of each person with each item, (events,)."""
    _, first = np.unique(pairs(histories.users, histories.items, histories.n_items), return_index=True)
    return np.isin(np.arange(len(histories.items)), first)


def _on_first_day(histories: Histories) -> Mask:
    """The events on the day (UTC) of the person's first one, (events,)."""
    days = np.floor(histories.times)
    first = np.repeat(histories.starts[:-1], histories.lengths)
    return days == days[first]


def _day(day: float) -> str:
    """A day since 1970-01-01 as a date, with the time where it is not midnight UTC."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)
    return moment.date().isoformat() if day == int(day) else f"{moment:%Y-%m-%dT%H:%M:%S}"


def shuffle_ties(users: NDArray[np.integer], times: NDArray[np.floating], seed: int) -> Codes:
    """A permutation (events,) that moves events only among those of the same user and time."""
    chance = np.random.default_rng(seed).random(len(users))
    permutation = np.empty(len(users), dtype=np.int64)
    permutation[np.lexsort((times, users))] = np.lexsort((chance, times, users))
    return permutation


def order(histories: Histories, ties: Ties, seed: int = 0) -> Histories:
    """Events of equal time as published (as they are), or shuffled once: for training and test alike."""
    if ties == "published_order":
        return histories
    moved = shuffle_ties(histories.users, histories.times, seed)
    columns = {name: getattr(histories, name)[moved] for name in ("items", "times", "weights", "types")}
    return replace(histories, **columns)


def share_of_ties(histories: Histories) -> float:
    """Share of the people with two events or more whose last two have the same time; nan if there are none."""
    last = histories.starts[1:][histories.lengths >= 2] - 1
    return float((histories.times[last] == histories.times[last - 1]).mean()) if len(last) else float("nan")


def mask_known(scores: NDArray[np.float32], histories: Histories) -> NDArray[np.float32]:
    """A copy of scores (users, items), -inf at the items of each person's history; for protocols without repeats."""
    masked = scores.copy()
    masked[histories.users, histories.items] = -np.inf
    return masked
