"""A day's shelf as a file for the workers, and the lists that a model makes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lakerec.features import FILL, Stock
from lakerec.generators.base import Shelf, pack, unpack
from lakerec.generators.nearest import Approximate
from lakerec.generators.popularity import ALWAYS, DailyCounts
from lakerec.generators.scores import Index, Products
from lakerec.histories import Floats, Histories
from lakerec.scorer.bundle import Bundle
from lakerec.scorer.final import LEAST, Final, Shortlist, chances
from lakerec.scorer.nightly import ranker_features
from lakerec.scorer.prediction import Predictor
from lakerec.scorer.recommender import Recommender
from lakerec.scorer.slates import Form, Slate

FILLS = LEAST / 100  # the score of the first item that fills a list up; a list is sorted by its scores
INVERTED = "inverted"  # the folder beside a day's file
READ = ("items", "types", "days", "pattern", "profile")  # what a person's events are made of


@dataclass(frozen=True)
class ShelfOfDay:
    """What the workers know of a day, in the model's order of the catalogue; patterns (patterns, items) are shares."""

    items: list[str]
    texts: list[str]
    shelf: Shelf
    stock: Stock
    on_shelf: NDArray[np.bool_]
    patterns: Floats
    weights: dict[str, float]
    kinds: list[str]
    at: float

    def save(self, file: Path) -> None:
        """One uncompressed file."""
        told = {"items": self.items, "texts": self.texts, "weights": self.weights, "kinds": self.kinds, "at": self.at}
        arrays = {
            "told": np.frombuffer(json.dumps(told).encode(), dtype=np.uint8),
            "text": self.shelf.text,
            "first_seen": self.stock.first_seen,
            "price": self.stock.price,
            "on_shelf": self.on_shelf,
            "patterns": self.patterns,
            "first_day": np.array(self.stock.daily.first),
            **({"listed": self.shelf.first_seen} if self.shelf.first_seen is not None else {}),
            **pack("counts", self.stock.daily.counts),
            **(pack("graph", self.shelf.graph) if self.shelf.graph is not None else {}),
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, file: Path) -> ShelfOfDay:
        """The file that `save` wrote."""
        with np.load(file) as found:
            told = json.loads(found["told"].tobytes())
            graph = unpack("graph", found) if "graph.data" in found else None
            daily = DailyCounts(unpack("counts", found), int(found["first_day"]))
            stock = Stock(daily, found["first_seen"], found["price"])
            listed = found.get("listed")
            shelf, on_shelf, patterns = Shelf(found["text"], graph, listed), found["on_shelf"], found["patterns"]
        return cls(shelf=shelf, stock=stock, on_shelf=on_shelf, patterns=patterns, **told)


@dataclass(frozen=True)
class ScoringDay:
    """A model over a day's shelf."""

    day: ShelfOfDay
    recommender: Recommender
    final: Final | None = None

    @classmethod
    def load(cls, artefact: Path, day: Path) -> ScoringDay:
        """From the model's folder and the day's file."""
        opened = Bundle.open(artefact)
        # A type keeps the code that the model learned, whatever the configuration has got since.
        shelf = replace(ShelfOfDay.load(day), kinds=opened.recipe.kinds)
        made = opened.recommender("serving", shelf.shelf, shelf.stock, shelf.patterns)
        found = cls(shelf, made, opened.final())
        found._take(day.with_name(INVERTED))
        return found

    @classmethod
    def invert(cls, artefact: Path, day: Path, frame: pd.DataFrame, say: Callable[[str], None] = print) -> None:
        """Build inverted files of a large catalogue beside the day's file, probed enough for a frame's users.

        What a run that ended amid it has left there is not read.
        """
        shutil.rmtree(place := day.with_name(INVERTED), ignore_errors=True)
        place.mkdir()
        cls.load(artefact, day)._invert(frame, place, say)

    def _invert(self, frame: pd.DataFrame, place: Path, say: Callable[[str], None]) -> None:
        done = list[Index]()
        for name, told in self._products(self.histories(frame)):
            sample = told.people[told.people.any(axis=1)].astype(np.float32)
            if any(told.index is each for each in done) or not len(sample):
                continue
            done.append(told.index)
            catalogue = told.index.catalogue(self.day.on_shelf)
            made, found = Approximate.built(catalogue, sample, self.recommender.stage.depth)
            say(f"{name}: {found}")
            made.save(place / f"{name}.faiss")

    def _products(self, histories: Histories) -> Iterator[tuple[str, Products]]:
        """The sources that compare vectors."""
        for name, source in self.recommender.stage.sources.items():
            if isinstance(told := source.said(histories), Products):
                yield name, told

    def _take(self, folder: Path) -> None:
        """Search by the inverted files of a folder that `invert` made."""
        if not folder.exists():
            return
        nobody = self.histories(pd.DataFrame({name: [] for name in READ}))
        nobody = replace(nobody, profiles=np.zeros((0, self.day.shelf.text.shape[1]), dtype=np.float32))
        for name, told in self._products(nobody):
            if (file := folder / f"{name}.faiss").exists():
                told.index.use(self.day.on_shelf, partial(Approximate.load, file))

    @cached_property
    def codes(self) -> dict[str, int]:
        """The code of each item."""
        return {item: code for code, item in enumerate(self.day.items)}

    def histories(self, frame: pd.DataFrame) -> Histories:
        """The events of a frame's users (items, types, days: arrays, oldest first) that concern a known item."""
        rows: list[tuple[int, int, str, float]] = [
            (place, self.codes[item], kind, day)
            for place, (items, types, days) in enumerate(
                zip(frame["items"], frame["types"], frame["days"], strict=True)
            )
            for item, kind, day in zip(*map(_list, (items, types, days)), strict=True)
            if item in self.codes
        ]
        kind_code = {kind: code for code, kind in enumerate(self.day.kinds)}
        users, items, types, days = ([row[n] for row in rows] for n in range(4))
        found = Histories.of_events(
            np.array(users, dtype=np.int64),
            np.array(items, dtype=np.int64),
            np.array(days, dtype=np.float64),
            len(frame),
            len(self.day.items),
            np.array([self.day.weights.get(str(kind), 0.0) for kind in types], dtype=np.float32),
            np.array([kind_code.get(str(kind), len(kind_code)) for kind in types], dtype=np.int64),
            at=self.day.at,
        )
        pattern = frame["pattern"].fillna(-1).to_numpy(dtype=np.int32)
        return replace(found, groups=pattern, profiles=self._profiles(frame))

    def _profiles(self, frame: pd.DataFrame) -> Floats | None:
        """(users, d) of a frame's column `profile`; None where nobody has one."""
        found = np.zeros((len(frame), self.day.shelf.text.shape[1]), dtype=np.float32)
        told = [(place, _list(vector)) for place, vector in enumerate(frame["profile"])]
        for place, vector in told:
            if vector:
                found[place] = vector
        return found if any(vector for _, vector in told) else None

    def lists(self, frame: pd.DataFrame, predictor: Predictor, per_user: int) -> pd.DataFrame:
        """user_id, item_id, score, source: the ranker's best `per_user` of each user with their probabilities.

        Where the sources name fewer, what is popular fills up, in its order, with scores below those of any candidate.
        """
        histories = self.histories(frame)
        taken = [(p, self.codes[i]) for p, items in enumerate(frame["taken"]) for i in _list(items) if i in self.codes]
        without = np.array(taken, dtype=np.int64).reshape(-1, 2).T
        ranked = self.recommender.rank(histories, self.day.on_shelf, (without[0], without[1]))
        items, places = ranked.tops(len(frame), per_user)
        shortlist = Shortlist.at(ranked, items, places)
        slates = self._slates(frame, histories, shortlist, Form.of(predictor.manifest.settings))
        found = chances(self.final, predictor, slates, shortlist, histories, self.day.stock)
        probabilities = np.concatenate([np.zeros(0, dtype=np.float32), *found])
        kept = items >= 0
        names = np.array(self.recommender.stage.names, dtype=object)
        person, code = np.nonzero(kept)[0], items[kept]
        fill = self._fill(histories, (without[0], without[1]), items)
        behind = np.arange(len(fill[0])) - np.searchsorted(fill[0], fill[0])
        return pd.DataFrame(
            {
                "user_id": frame["user_id"].to_numpy(dtype=object)[np.append(person, fill[0])],
                "item_id": np.array(self.day.items, dtype=object)[np.append(code, fill[1])],
                "score": np.append(probabilities, FILLS / (1 + behind)).astype(np.float32),
                "source": np.append(names[ranked.found.source[places[kept]]], [FILL] * len(fill[0])),
            }
        )

    def _fill(
        self, histories: Histories, without: tuple[NDArray[np.int64], NDArray[np.int64]], items: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """person, item: what fills the lists (users, k) that have -1 at their ends.

        By popularity, first among the people of the same behaviour pattern, then with everyone; ties by item.
        """
        short = np.flatnonzero((items < 0).any(axis=1))
        if not len(short):
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        popular = self.day.stock.daily.within(self.day.at, ALWAYS)
        nothing, groups = np.zeros(len(popular)), histories.groups
        person, code = [], []
        for row in short:
            known = groups is not None and 0 <= groups[row] < len(self.day.patterns)
            shares = self.day.patterns[groups[row]] if known else nothing  # type: ignore[index]
            order = np.lexsort((-popular, -shares))
            mine = histories.select(np.array([row]))
            free = self.recommender.stage.allowed(mine, self.day.on_shelf).mask[0]
            free[without[1][without[0] == row]] = False
            free[items[row][items[row] >= 0]] = False
            more = order[free[order]][: int((items[row] < 0).sum())]
            person += [int(row)] * len(more)
            code += more.tolist()
        return np.array(person, dtype=np.int64), np.array(code, dtype=np.int64)

    def _slates(self, frame: pd.DataFrame, histories: Histories, shortlist: Shortlist, form: Form) -> list[Slate]:
        found, scores = [], shortlist.scores
        for row, (user, history) in enumerate(zip(frame["user_id"], frame["history"], strict=True)):
            mine = shortlist.items[row][shortlist.items[row] >= 0]
            texts = [self.day.texts[item] for item in mine]
            told = history if isinstance(history, str) else ""
            features, more = (
                ranker_features(scores[row][: len(mine)]),
                form.told(histories, row, mine, self.day.shelf.text),
            )
            found.append(Slate(str(user), told, texts, features, None, 0, **more))
        return found


def _list(value: Any) -> list[Any]:
    """An array column's value: NULL arrives as None (or nan)."""
    return list(value) if isinstance(value, list | np.ndarray) else []


def pattern_shares(rows: Mapping[int, Mapping[str, float]], codes: Mapping[str, int], items: int) -> Floats:
    """(patterns, items) shares from the counts of each pattern's items, as PatternPopular is fitted."""
    shares = np.zeros((max(rows, default=-1) + 1, items), dtype=np.float32)
    for pattern, counts in rows.items():
        for item, count in counts.items():
            if item in codes:
                shares[pattern, codes[item]] = count
    return shares / np.maximum(shares.sum(axis=1, keepdims=True), np.float32(1))
