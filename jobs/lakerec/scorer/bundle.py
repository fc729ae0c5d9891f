"""A recommender as files: the catalogue's order, fitted generators, retrievers, boosters, and how they were made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from lakerec import generators
from lakerec.errors import ContractError, ModelError
from lakerec.features import Stock
from lakerec.generators.base import Generator, Shelf
from lakerec.generators.popularity import PATTERN_DAYS, New, PatternPopular, Popular, Rising
from lakerec.generators.scores import Index, Products, Scores
from lakerec.histories import Floats, Histories
from lakerec.scorer.final import ORDER, Final
from lakerec.scorer.ranker import Ranker
from lakerec.scorer.recommender import FirstStage, Recommender, Source
from lakerec.scorer.retriever import Catalogue, ItemSide, Retriever

RECIPE, ITEMS, NODES = "recipe.json", "items.json", "nodes.json"
FOLDER, BOOSTERS = "recommender", "booster"
ROLES = ("learned", "evaluated", "serving")  # known before the ranker's cuts, before the test cut, everything


@dataclass(frozen=True)
class Recipe:
    """How a recommender is put together: generators with their settings, candidates of each, what is hidden.

    `days` says what each role knows: the last day, ISO; `text_model` whose text vectors it was trained on.
    """

    settings: dict[str, generators.Settings]
    depth: int
    repeats: bool
    hidden: list[int]
    kinds: list[str]
    days: dict[str, str]
    retriever: bool
    text_model: str = ""
    report: dict[str, Any] = field(default_factory=dict)

    def has_seen(self, role: str, day: date) -> bool:
        """Whether what it learned for a role lies behind a day, as far as it says."""
        return self.days.get(role, "9999") > day.isoformat()

    @property
    def pattern_days(self) -> float:
        """How far back it counts what a behaviour pattern chooses."""
        return float(self.settings.get("pattern", {}).get("days", PATTERN_DAYS))

    @property
    def blend(self) -> dict[str, float]:
        """Each generator's weight in their blend; none of an artefact that was made without."""
        found: dict[str, float] = self.report.get("blend", {})
        return found


@dataclass(frozen=True)
class RetrieverSource:
    """Retrievers as one source over a catalogue that may have grown."""

    models: Sequence[Retriever]
    side: ItemSide

    @cached_property
    def catalogues(self) -> list[Catalogue]:
        """Each model's, made once: a block of people is 64 at most."""
        return [model.catalogue(self.side) for model in self.models]

    def score(self, histories: Histories) -> Floats:
        """(users, items) the mean of their log-probabilities."""
        pairs = zip(self.models, self.catalogues, strict=True)
        return averaged(model.score(histories, made, histories.profiles) for model, made in pairs)

    @cached_property
    def indexes(self) -> list[Index]:
        """Each model's items."""
        pairs = zip(self.models, self.catalogues, strict=True)
        return [Index(model.item_vectors(made), model.item_biases(made)) for model, made in pairs]

    @cached_property
    def index(self) -> Index:
        """All models' items side by side, so that one product is the sum of theirs."""
        if len(self.indexes) == 1:
            return self.indexes[0]
        vectors = np.concatenate([each.vectors for each in self.indexes], axis=1)
        return Index(vectors, averaged(each.biases for each in self.indexes if each.biases is not None))

    def said(self, histories: Histories) -> Scores:
        """The same, of a catalogue that is large."""
        pairs = zip(self.models, self.catalogues, strict=True)
        people = [model.user_vectors(histories, made, histories.profiles) for model, made in pairs]
        totals = [index.normaliser(mine) for index, mine in zip(self.indexes, people, strict=True)]
        return Products(np.concatenate(people, axis=1) / np.float32(len(people)), self.index, np.mean(totals, axis=0))


def averaged(scores: Iterable[Floats]) -> Floats:
    """The mean of several (users, items), one in memory beside it at a time."""
    total, count = None, 0
    for score in scores:
        total, count = score if total is None else total + score, count + 1
    if total is None:
        raise ContractError("no retriever to average")
    return total if count == 1 else total / np.float32(count)


def side(shelf: Shelf) -> ItemSide:
    """The shelf as the retriever takes it."""
    return ItemSide(shelf.text, shelf.graph)


def save(
    out: Path,
    recipe: Recipe,
    items: Sequence[str],
    nodes: Sequence[str],
    stages: Mapping[str, FirstStage],
    retrievers: Mapping[str, Sequence[Retriever]],
    ranker: Ranker,
    orders: Mapping[str, Final] | None = None,
) -> None:
    """Write everything below `out`/recommender."""
    folder = out / FOLDER
    folder.mkdir(parents=True)
    for name, content in ((RECIPE, asdict(recipe)), (ITEMS, list(items)), (NODES, list(nodes))):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    for role, stage in stages.items():
        (folder / role).mkdir()
        for name, member in stage.members.items():
            if not member.fresh:
                np.savez(folder / role / f"{name}.npz", **member.state())  # type: ignore[arg-type]
    for role, models in retrievers.items():
        for place, model in enumerate(models):
            model.save(folder / f"retriever-{role}-{place}")
    ranker.save(folder, BOOSTERS)
    for name, order in (orders or {}).items():
        order.save(folder, name)


@dataclass(frozen=True)
class Bundle:
    """A saved recommender, read as far as it is asked for."""

    folder: Path
    recipe: Recipe

    @classmethod
    def open(cls, artefact: Path) -> Bundle:
        """Read the recipe; ModelError where there is none."""
        try:
            content = json.loads((artefact / FOLDER / RECIPE).read_text(encoding="utf-8"))
            return cls(artefact / FOLDER, Recipe(**content))
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"{artefact / FOLDER / RECIPE}: no recommender ({error}); train again") from error

    def check_text_model(self, wanted: str) -> None:
        """ModelError where the recommender was trained on other text vectors than `wanted`, as model_id names them."""
        if self.recipe.text_model not in ("", wanted):
            raise ModelError(
                f"{self.folder.parent.name} was trained on text vectors of {self.recipe.text_model}, the configuration "
                f"has {wanted}: train and promote a model on them (embed_items, then scorer_nightly), or set "
                "scorer.model back until then"
            )

    @property
    def items(self) -> list[str]:
        """The catalogue in the order of the codes."""
        found: list[str] = json.loads((self.folder / ITEMS).read_text(encoding="utf-8"))
        return found

    @property
    def nodes(self) -> list[str]:
        """The graph's nodes in the order of the codes."""
        found: list[str] = json.loads((self.folder / NODES).read_text(encoding="utf-8"))
        return found

    def retrievers(self, role: str) -> list[Retriever]:
        """A role's retrievers; none where the recipe has none."""
        folders = sorted(self.folder.glob(f"retriever-{role}-*"), key=lambda each: int(each.name.split("-")[-1]))
        if self.recipe.retriever and not folders:
            raise ModelError(f"{self.folder / f'retriever-{role}-0'}: no retriever; train again")
        return [Retriever.load(folder) for folder in folders]

    def ranker(self) -> Ranker:
        """The boosters."""
        try:
            return Ranker.load(self.folder, BOOSTERS)
        except (OSError, ValueError, IndexError) as error:
            raise ModelError(f"{self.folder}/{BOOSTERS}-*.txt: no final ranker ({error}); train again") from error

    def final(self, name: str = ORDER) -> Final | None:
        """The final order, or the one that knows nothing of what was read; None where no language model reads."""
        return Final.load(self.folder, name)

    def recommender(self, role: str, shelf: Shelf, stock: Stock, patterns: Floats | None = None) -> Recommender:
        """The recommender of a role over today's shelf and stock; patterns (patterns, items) shares of each."""
        settings = self.recipe.settings
        members = {name: self._member(role, name, shelf, stock, patterns) for name in settings}
        models = self.retrievers(role)
        source: Source | None = RetrieverSource(models, side(shelf)) if models else None
        stage = FirstStage(
            members, source, shelf, stock, self.recipe.depth, self.recipe.repeats, tuple(self.recipe.hidden)
        )
        return Recommender(stage, self.ranker())

    def _member(self, role: str, name: str, shelf: Shelf, stock: Stock, patterns: Floats | None) -> Generator:
        kind, settings = generators.MEMBERS[name].kind, self.recipe.settings[name]
        if not kind.fresh:
            return generators.restore(name, arrays(self.folder / role / f"{name}.npz"), len(shelf))
        return fresh(name, settings, shelf, stock, patterns)


def arrays(file: Path) -> dict[str, Any]:
    """The arrays of a file of numpy's by name; ModelError where it is missing, damaged, or holds pickled objects."""
    try:
        with np.load(file, allow_pickle=False) as state:
            return dict(state)
    except (OSError, ValueError, BadZipFile) as error:
        raise ModelError(f"{file}: no arrays that may be read ({error}); copy the artefact again") from None


def fresh(name: str, settings: generators.Settings, shelf: Shelf, stock: Stock, patterns: Floats | None) -> Generator:
    """A generator that is made of the day's counts, texts and graph; `settings` as for its fit."""
    kind = generators.MEMBERS[name].kind
    nothing = np.zeros(0, dtype=np.int64)
    nobody = Histories.of_events(nothing, nothing, np.zeros(0), n_users=0, n_items=len(shelf))
    made = kind.fit(nobody, shelf, **settings)
    if isinstance(made, Popular | Rising):
        return replace(made, daily=stock.daily)
    if isinstance(made, New) and shelf.first_seen is None:  # an item is as old as its first choice
        return replace(made, first_seen=stock.first_seen)
    if isinstance(made, PatternPopular) and patterns is not None:
        return PatternPopular(patterns)
    return made
