"""From generators' scores to candidates and their features: what the final ranker reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lakerec.generators.base import Shelf, largest
from lakerec.generators.popularity import ALWAYS, DailyCounts
from lakerec.generators.scores import Allowed, Scores, Survey
from lakerec.histories import Floats, Histories

WINDOWS = (1.0, 7.0, 30.0, 90.0, 365.0, ALWAYS)  # days
FILL = "catalogue"  # the source of what only fills a list up


@dataclass(frozen=True)
class Stock:
    """What is known of each item on the day of scoring, (items,) each; nan where unknown."""

    daily: DailyCounts
    first_seen: NDArray[np.float64]
    price: NDArray[np.float64]

    @property
    def sound_price(self) -> NDArray[np.float64]:
        """(items,) prices; nan also where one is below 0 or infinite."""
        return np.where(np.isfinite(self.price) & (self.price >= 0), self.price, np.nan)

    @classmethod
    def of(cls, histories: Histories, price: NDArray[np.floating] | None = None) -> Stock:
        """Counts and first days of the events alone."""
        daily = DailyCounts.of(histories)
        unknown = np.full(histories.n_items, np.nan)
        return cls(daily, daily.first_days(), unknown if price is None else np.asarray(price, dtype=np.float64))


@dataclass(frozen=True)
class Candidates:
    """Candidates of some people: person (n,) ascending, item (n,), features (n, f).

    source (n,) is the place of the generator that ranks it best.
    """

    person: NDArray[np.int64]
    item: NDArray[np.int64]
    features: Floats
    source: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.item)


def feature_names(generators: Sequence[str]) -> list[str]:
    """The columns of Candidates.features, in order."""
    said = [f"{name}_{kind}" for name in generators for kind in ("score", "z", "rank")]
    popular = [f"chosen_{_told(days)}" for days in WINDOWS] + [f"share_{_told(days)}" for days in WINDOWS[:-1]]
    item = ["growth", "item_age", "price", "text_last", "text_near"]
    own = ["own_count", "own_days_since", "own_gap"]
    person = ["events", "items", "days_since_last", "active_days", "price_gap"]
    return [*said, "generators", *popular, *item, *own, *person]


def _told(days: float) -> str:
    return "always" if days >= ALWAYS else f"{days:.0f}d"


def nominate(surveys: Sequence[Survey], items: int, depth: int) -> tuple[NDArray, NDArray, NDArray]:
    """person, item, ranks (n, generators): everything that a generator has among its `depth` best.

    A rank is from 0, `depth` where beyond or silent.
    """
    none = np.zeros(0, dtype=np.int64)
    pairs = np.concatenate([none, *(each.person * items + each.item for each in surveys)])
    named, which = np.unique(pairs, return_inverse=True)
    ranks = np.full((len(named), len(surveys)), depth, dtype=np.int16)
    by = np.repeat(np.arange(len(surveys)), np.array([len(each.rank) for each in surveys], dtype=np.int64))
    ranks[which, by] = np.concatenate([none, *(each.rank for each in surveys)])
    person, item = np.divmod(named, max(items, 1))
    return person, item, ranks


def candidates(
    scores: Mapping[str, Scores],
    histories: Histories,
    allowed: Allowed,
    shelf: Shelf,
    stock: Stock,
    depth: int,
) -> Candidates:
    """Everything the generators nominate for these people, with the features of `feature_names`."""
    depth = min(depth, histories.n_items)
    surveys = [score.survey(allowed, depth) for score in scores.values()] if depth else []
    person, item, ranks = nominate(surveys, histories.n_items, depth)
    if not len(person):
        return Candidates(person, item, np.zeros((0, len(feature_names(list(scores)))), dtype=np.float32), person)
    said = []
    for place, (score, survey) in enumerate(zip(scores.values(), surveys, strict=True)):
        value = score.at(person, item)
        z = (value - survey.mean[person]) / np.maximum(survey.std[person], 1e-9)
        said += [value, z, np.log1p(ranks[:, place])]
    agree = (ranks < depth).sum(axis=1)
    columns = [*said, agree, *_popularity(histories, item, person, stock)]
    columns += _item(histories, person, item, shelf, stock)
    columns += _own(histories, person, item) + _person(histories, person, item, stock)
    # Columns stay together in memory: a table of rows would take longer to write than all else here.
    table = np.stack([np.asarray(column, dtype=np.float32) for column in columns]).T
    return Candidates(person, item, table, ranks.argmin(axis=1))


def _popularity(histories: Histories, item: NDArray, person: NDArray, stock: Stock) -> list[NDArray]:
    """log1p of choices in each window, and the share of the next longer window that falls into it."""
    counts = chosen(histories, person, item, stock, WINDOWS)
    shares = [counts[:, i] / np.maximum(counts[:, i + 1], 1) for i in range(len(WINDOWS) - 1)]
    return [*np.log1p(counts).T, *shares]


def _item(histories: Histories, person: NDArray, item: NDArray, shelf: Shelf, stock: Stock) -> list[NDArray]:
    """Growth (30 days against 90 before), age in days, price, likeness to the last and the nearest of the last 10."""
    month, both = chosen(histories, person, item, stock, (30.0, 120.0)).T
    growth = np.log1p(month) - np.log1p((both - month) / 3)
    last, near = _likeness(histories, person, item, shelf.centred)
    return [growth, histories.at[person] - stock.first_seen[item], stock.sound_price[item], last, near]


def chosen(histories: Histories, person: NDArray, item: NDArray, stock: Stock, windows: Sequence[float]) -> NDArray:
    """(n, windows) choices of each candidate in the windows up to its person's day; (items,) of one at a time."""
    days, which = np.unique(np.floor(histories.at), return_inverse=True)
    found, place = np.empty((len(item), len(windows)), dtype=np.float64), which[person]
    for number, day in enumerate(days):
        mine = np.flatnonzero(place == number)
        for column, window in enumerate(windows):
            found[mine, column] = stock.daily.within(day, window)[item[mine]]
    return found


def _likeness(histories: Histories, person: NDArray, item: NDArray, vectors: Floats) -> tuple[NDArray, NDArray]:
    """Cosine of each candidate with the person's last choice, and the largest with one of the last 10."""
    recent = histories.chosen().last(10)
    last, near = np.zeros(len(item), dtype=np.float32), np.zeros(len(item), dtype=np.float32)
    bounds = np.searchsorted(person, np.arange(len(histories) + 1))
    for row in range(len(histories)):
        mine = recent.items[recent.starts[row] : recent.starts[row + 1]]
        span = slice(bounds[row], bounds[row + 1])
        if len(mine) and span.stop > span.start:
            cosine = vectors[item[span]] @ vectors[mine].T
            last[span], near[span] = cosine[:, -1], cosine.max(axis=1)
    return last, near


def _own(histories: Histories, person: NDArray, item: NDArray) -> list[NDArray]:
    """How often the person chose the item, days since the last time, and the mean days between times."""
    chosen = histories.chosen()
    age = np.repeat(chosen.at, chosen.lengths) - chosen.times
    counts = chosen.matrix(np.ones(len(age)))
    newest = largest(chosen, -age)
    oldest = largest(chosen, age)
    count = np.asarray(counts[person, item]).ravel()
    last = -np.asarray(newest[person, item]).ravel()
    first = np.asarray(oldest[person, item]).ravel()
    never = count == 0
    gap = np.where(count > 1, (first - last) / np.maximum(count - 1, 1), np.nan)
    return [count, np.where(never, np.nan, last), gap]


def _person(histories: Histories, person: NDArray, item: NDArray, stock: Stock) -> list[NDArray]:
    """Events, different items, days since the last event, active days, and the price against what the person pays."""
    kinds = np.asarray((histories.matrix() != 0).sum(axis=1)).ravel()
    days = np.unique(np.stack([histories.users, np.floor(histories.times)]), axis=1)[0].astype(int)
    active = np.bincount(days, minlength=len(histories))
    gap = np.log1p(stock.sound_price[item]) - _paid(histories, stock)[person]
    counts = [np.log1p(count)[person] for count in (histories.lengths, kinds, active)]
    return [counts[0], counts[1], _days_since(histories)[person], counts[2], gap]


def _days_since(histories: Histories) -> NDArray[np.float64]:
    """(users,) days since the last event, nan without any."""
    since = np.full(len(histories), np.nan)
    some = histories.lengths > 0
    since[some] = histories.at[some] - histories.times[histories.starts[1:][some] - 1]
    return since


def _paid(histories: Histories, stock: Stock) -> NDArray[np.float64]:
    """(users,) mean log1p price of the person's events, nan without any."""
    price = np.log1p(stock.sound_price[histories.items])
    known = np.isfinite(price)
    users = histories.users[known]
    count = np.bincount(users, minlength=len(histories))
    total = np.bincount(users, weights=price[known], minlength=len(histories))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
