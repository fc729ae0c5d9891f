"""The final order where a language model reads the best candidates: it begins at the ranker's and corrects it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lakerec import metrics
from lakerec.config import Ranker as Settings
from lakerec.errors import ModelError
from lakerec.features import Stock, chosen
from lakerec.generators.popularity import ALWAYS
from lakerec.histories import Floats, Histories
from lakerec.scorer.calibration import Calibration
from lakerec.scorer.prediction import Predictor
from lakerec.scorer.ranker import Lessons, Ranker
from lakerec.scorer.recommender import Ranked
from lakerec.scorer.slates import Slate
from lakerec.slices import PAIRED, Slices

READ = ("language_model", "language_model_z", "language_model_place")
FEATURES = ("ranker", "ranker_z", "ranker_place", "events", "item_age", "chosen", *READ)
ORDER, UNREAD = "final", "unread"  # names of files: with what the language model read, and without
# Few people and few events, so that a gain over all hides a loss there.
GUARDED = ("tail items", "new items", "new users", "short histories")
TOLD = (*GUARDED, "explore items")
# It corrects a good order by what some thousand slates tell: boosters of the ranker's size learn these by heart (on the
# validation month of Online Retail 15 leaves gained .005 over the ranker, 4 leaves .007, and the language model's part
# of it showed with 4 alone).
SMALL = {"leaves": 4, "learning_rate": 0.02, "min_leaf": 200}
LEAST = np.float32(1e-30)  # float32 still falls from here; what fills a list up has less


@dataclass(frozen=True)
class Shortlist:
    """The ranker's best of each person: items and scores (people, k), best first, -1 and nan behind the last."""

    items: NDArray[np.int64]
    scores: Floats

    @classmethod
    def of(cls, ranked: Ranked, people: int, k: int) -> Shortlist:
        """The `k` best of each."""
        return cls.at(ranked, *ranked.tops(people, k))

    @classmethod
    def at(cls, ranked: Ranked, items: NDArray[np.int64], places: NDArray[np.int64]) -> Shortlist:
        """Of what `ranked.tops` gave."""
        scores = np.where(places >= 0, ranked.score[np.maximum(places, 0)] if len(ranked.score) else 0.0, np.nan)
        return cls(items, scores.astype(np.float32))

    @classmethod
    def joined(cls, parts: Sequence[Shortlist]) -> Shortlist:
        """Those of several blocks of people as one."""
        return cls(np.concatenate([part.items for part in parts]), np.concatenate([part.scores for part in parts]))

    @property
    def kept(self) -> NDArray[np.bool_]:
        """(people, k): where there is a candidate; their n, row by row, are the candidates of `table`."""
        return self.items >= 0

    @property
    def person(self) -> NDArray[np.int64]:
        """The person of each candidate, (n,)."""
        return np.nonzero(self.kept)[0]

    def table(self, told: Sequence[Floats], histories: Histories, stock: Stock) -> Floats:
        """(n, f) as in FEATURES; told: what the language model adds to each candidate's logit, by person."""
        kept, person, item = self.kept, self.person, self.items[self.kept]
        read = np.full(self.items.shape, np.nan, dtype=np.float32)
        read[kept] = np.concatenate([np.zeros(0, dtype=np.float32), *told])
        at = histories.at[person]
        columns = [*(each[kept] for each in _standing(self.scores)), np.log1p(histories.lengths)[person]]
        columns += [at - stock.first_seen[item]]
        columns += [np.log1p(chosen(histories, person, item, stock, (ALWAYS,))[:, 0])]
        columns += [each[kept] for each in _standing(read)]
        return np.stack([np.asarray(column, dtype=np.float32) for column in columns], axis=1)

    def split(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """What is told of the candidates (n,), by person."""
        return np.split(values, np.cumsum(self.kept.sum(axis=1))[:-1])

    def order(self, scores: Floats) -> NDArray[np.int64]:
        """Columns (people, k) by other scores (n,), best first, ties by item, what is no candidate last."""
        found = np.full(self.items.shape, -np.inf)
        found[self.kept] = scores
        return np.lexsort((self.items, -found), axis=1)

    def ordered(self, scores: Floats) -> Shortlist:
        """The same candidates by other scores (n,)."""
        found, order = np.full(self.items.shape, np.nan, dtype=np.float32), self.order(scores)
        found[self.kept] = scores
        return Shortlist(np.take_along_axis(self.items, order, axis=1), np.take_along_axis(found, order, axis=1))

    def ranks(self, scores: Floats, targets: Sequence[NDArray[np.int32]]) -> NDArray[np.float64]:
        """The rank of each target (t,) by scores (n,); +inf for one that is no candidate."""
        ranks = list[float]()
        for row, wanted in zip(self.ordered(scores).items, targets, strict=True):
            place = {item: float(rank) for rank, item in enumerate(row.tolist(), 1) if item >= 0}
            ranks += [place.get(int(item), np.inf) for item in wanted]
        return np.array(ranks)


def _ndcg(ranks: NDArray[np.float64], targets: Sequence[NDArray[np.int32]]) -> NDArray[np.float64]:
    """NDCG@10 (people,) by the rank of each of their targets (t,)."""
    starts = np.append(0, np.cumsum([len(wanted) for wanted in targets])).astype(np.int64)
    return metrics.by_user(ranks, starts)[PAIRED]


def _standing(scores: Floats) -> tuple[NDArray, NDArray, NDArray]:
    """Scores (people, k) as they are, in standard deviations within each person's list, and as log1p of their rank."""
    some = np.isfinite(scores).any(axis=1, keepdims=True)
    safe = np.where(some, scores, 0.0)
    mean, std = np.nanmean(safe, axis=1, keepdims=True), np.nanstd(safe, axis=1, keepdims=True)
    order = np.argsort(np.argsort(-np.where(np.isnan(scores), -np.inf, scores), axis=1, kind="stable"), axis=1)
    return scores, (scores - mean) / np.maximum(std, 1e-6), np.log1p(order)


@dataclass(frozen=True)
class Final:
    """Boosters on top of the ranker's scores, and the probability of a place in the final order.

    Those that know nothing of what was read take the first columns of a table.
    """

    ranker: Ranker
    calibration: Calibration

    def score(self, table: Floats) -> Floats:
        """(n,) from `Shortlist.table`."""
        return table[:, 0] + self.ranker.score(table[:, : len(self.ranker.names)])

    def chances(
        self, told: Sequence[Floats], shortlist: Shortlist, histories: Histories, stock: Stock
    ) -> list[NDArray[np.float32]]:
        """P(positive) of each candidate by person, (n,) each; told: what the language model adds, shaped so."""
        scores = self.score(shortlist.table(told, histories, stock))
        places = _places(shortlist, scores)
        found = self.calibration.probabilities(scores, places)
        pairs = zip(shortlist.split(found), shortlist.split(places), strict=True)
        return [_falling(chance, place) for chance, place in pairs]

    def save(self, folder: Path, name: str = ORDER) -> None:
        """Write into a folder that is there."""
        self.ranker.save(folder, name)
        (folder / f"{name}.json").write_text(json.dumps(self.calibration.weights), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, name: str = ORDER) -> Final | None:
        """What `save` wrote; None where nothing was."""
        if not (file := folder / f"{name}.json").exists():
            return None
        try:
            return cls(Ranker.load(folder, name), Calibration(json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError, IndexError) as error:
            raise ModelError(f"{file}: no final order ({error}); train again") from error


@dataclass(frozen=True)
class Verdict:
    """A final order, and what the language model brings it: the paired gain in NDCG@10 on people it did not learn.

    `unread` is the order that does not know what was read; `slices`: the gain in those of TOLD with people enough, of
    which GUARDED may leave it out.
    """

    final: Final
    unread: Final
    gain: metrics.Comparison
    slices: Mapping[str, metrics.Comparison] = field(default_factory=dict)

    @property
    def orders(self) -> dict[str, Final]:
        """Both, as they are named in an artefact."""
        return {ORDER: self.final, UNREAD: self.unread}

    @property
    def doubt(self) -> str:
        """Why the language model does not pay, empty where it does: no gain beyond chance, or a slice surely worse.

        Each slice has its own 95 % interval, as at the gate of a promotion. Four of them raise a false alarm in up to
        10 % of the nights on which nothing changes there; that costs a night's small gain. Intervals as wide as
        Bonferroni's would let losses pass that the promotion may then refuse, the whole model with them.
        """
        if not self.gain.low > 0:
            return f"its gain is not above zero beyond chance: {self.gain.told}"
        worse = [f"{name} {gain.told}" for name, gain in self.slices.items() if name in GUARDED and gain.high < 0]
        return f"surely worse in {', '.join(worse)}" if worse else ""

    @property
    def pays(self) -> bool:
        """Whether the gain is above zero beyond chance, and no guarded slice surely worse."""
        return not self.doubt

    @property
    def told(self) -> dict[str, Any]:
        """The gain, that of each slice, and the doubt, as the model's recipe keeps them."""
        slices = {name: gain._asdict() for name, gain in self.slices.items()}
        return {**self.gain._asdict(), "slices": slices, "doubt": self.doubt}


def learn(
    shortlist: Shortlist,
    table: Floats,
    targets: Sequence[NDArray[np.int32]],
    people: NDArray[np.int64],
    settings: Settings,
    threads: int,
    slices: Slices | None = None,
    min_users: int = 1,
) -> Verdict:
    """From slates that neither ranker nor language model learned; beside it one that does not know what was read.

    people (people,) identify the persons across folds; slices of fewer than `min_users` of them are not looked at.
    NotEnoughDataError as Ranker.fit.
    """
    person, settings = shortlist.person, settings.model_copy(update=SMALL)
    labels = np.concatenate(
        [np.isin(row[row >= 0], wanted) for row, wanted in zip(shortlist.items, targets, strict=True)]
    )
    holds = np.bincount(person, weights=labels, minlength=len(people)) > 0
    inside = holds[person]
    query = np.unique(person[inside], return_inverse=True)[1]
    whole = Lessons(table[inside], labels[inside].astype(np.int8), query, people[person][inside], table[inside, 0])
    orders, found = list[Final](), list[NDArray[np.float64]]()
    for names in (FEATURES, FEATURES[: -len(READ)]):
        ranker, scores = _fit(whole, table, people[person], names, settings, threads)
        calibration = Calibration.fit(scores, _places(shortlist, scores), labels.astype(np.float32))
        orders.append(Final(ranker, calibration))
        found.append(shortlist.ranks(scores, targets))
    gain = metrics.paired(_ndcg(found[0], targets), _ndcg(found[1], targets), settings.seed)
    parts = {} if slices is None else slices.paired(found[0], found[1], settings.seed, TOLD)
    enough = {name: each for name, each in parts.items() if each.users >= min_users}
    return Verdict(orders[0], orders[1], gain, enough)


def chances(
    final: Final | None,
    predictor: Predictor,
    slates: Sequence[Slate],
    shortlist: Shortlist,
    histories: Histories,
    stock: Stock,
) -> list[NDArray[np.float32]]:
    """P(positive) of each candidate by person, (n,) each; sorted by it a list is in its final order."""
    if final is not None:
        return final.chances(predictor.corrections(slates), shortlist, histories, stock)
    found = predictor.score(slates)
    return as_ranked(found) if predictor.model is None else found


def as_ranked(chances: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """The features' own probabilities of each list, best first, where none is equal to the one before it.

    Weights of 0, and features beyond their limit, leave them equal, and a list would be sorted by its items' names.
    """
    return [_falling(chance, np.arange(len(chance))) for chance in chances]


def _falling(chances: NDArray[np.float32], places: NDArray[np.int64]) -> NDArray[np.float32]:
    """Probabilities (n,) that fall from place to place, by the least there is where float32 has them equal."""
    order, found = np.argsort(places), np.maximum(chances, LEAST)
    for before, place in pairwise(order):
        if found[place] >= found[before]:
            found[place] = np.nextafter(found[before], np.float32(0))
    return found


def _fit(
    lessons: Lessons, table: Floats, people: NDArray[np.int64], names: Sequence[str], settings: Settings, threads: int
) -> tuple[Ranker, Floats]:
    """Boosters over some of the columns, and the scores (n,) of each person by those that did not learn from them."""
    width = len(names)
    few = Lessons(lessons.features[:, :width], lessons.labels, lessons.query, lessons.person, lessons.start)
    ranker = Ranker.fit(few, names, settings, threads)
    return ranker, table[:, 0] + ranker.unseen(table[:, :width], people)


def _places(shortlist: Shortlist, scores: Floats) -> NDArray[np.int64]:
    """The rank from 1 of each candidate (n,) in the order of `scores`."""
    return shortlist.order(scores).argsort(axis=1)[shortlist.kept] + 1
