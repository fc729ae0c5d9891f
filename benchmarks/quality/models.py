"""Every model of the table at a cut: sources, their blend, Spark's ALS, the retriever and the rankers."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from benchmarks.quality.courses import Course, Cut
from benchmarks.quality.data import Dataset
from benchmarks.record import ROOT
from numpy.typing import NDArray

from lakerec import generators
from lakerec.config import Ranker as RankerSettings
from lakerec.features import Stock
from lakerec.generators.base import Shelf
from lakerec.generators.blend import blended, standardised
from lakerec.generators.factors import Als
from lakerec.generators.scores import Scores, Whole, best
from lakerec.histories import Floats, Histories
from lakerec.metrics import mean_ranks
from lakerec.protocols import Part
from lakerec.scorer.bundle import averaged
from lakerec.scorer.nightly import SEEDS_APART
from lakerec.scorer.ranker import Lessons, Ranker
from lakerec.scorer.recommender import SCORES, FirstStage, Recommender, Scorer, allowed, lessons, tuned
from lakerec.scorer.retriever import ItemSide, Retriever, RetrieverSettings, fit

K = 10  # length of the lists
THREADS = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))  # of LightGBM
LOG = ROOT / "jobs" / "lakerec" / "log4j2.properties"
Tuned = Mapping[str, generators.Settings]


def say(text: str) -> None:
    """One line of progress, at once."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


@dataclass(frozen=True)
class Outcome:
    """What a model did: ranks (t,) of the targets, infinite where it had no such candidate; lists (users, K).

    seconds: its fit and its scores, those of the sources under it left out; candidates: how many a person has.
    """

    ranks: NDArray[np.float64]
    lists: NDArray[np.int64]
    seconds: float
    candidates: float = np.nan


@dataclass(frozen=True)
class Arm:
    """What a retriever knows of the items and people beside the events."""

    name: str = "retriever"
    text: Literal["own", "none", "permuted"] = "own"
    graph: bool = False
    profile: bool = False

    def side(self, shelf: Shelf) -> ItemSide:
        """Its ItemSide; `permuted` deals the text vectors out anew among the items, as a control."""
        graph = shelf.graph if self.graph else None
        if self.text == "none":
            return ItemSide(np.zeros_like(shelf.text), graph)
        places = np.arange(len(shelf))
        return ItemSide(
            shelf.text[np.random.default_rng(0).permutation(places) if self.text == "permuted" else places], graph
        )


@dataclass(frozen=True)
class Ensemble:
    """Retrievers whose log-probabilities are averaged; with `told` they read each person's profile."""

    members: Sequence[Retriever]
    told: bool

    def score(self, histories: Histories) -> Floats:
        """(users, items)."""
        profile = histories.profiles if self.told else None
        return averaged(member.score(histories, profile=profile) for member in self.members)

    def said(self, histories: Histories) -> Scores:
        """The same."""
        return Whole(self.score(histories))


@dataclass
class Trainer:
    """Retrievers of one arm at any cut: the first lesson's from nothing, each later cut's from the one before it.

    The first is stopped where the events up to the next cut are likeliest; the others go on for `warm` epochs over
    all that was known at their cut. A run that was killed goes on from the checkpoints in `place`.
    """

    arm: Arm
    course: Course
    dataset: Dataset
    settings: RetrieverSettings
    place: Path
    warm: int
    made: dict[tuple[str, int], tuple[Retriever, float]] = field(default_factory=dict)

    def at(self, cut: Cut, seed: int) -> tuple[Ensemble, float]:
        """The retriever of a cut, all its members, and the seconds of all its training."""
        seeds = [seed + SEEDS_APART * place for place in range(self.settings.members)]
        made = [self._trained(cut, each) for each in seeds]
        return Ensemble([model for model, _ in made], self.arm.profile), sum(seconds for _, seconds in made)

    def _trained(self, cut: Cut, seed: int) -> tuple[Retriever, float]:
        if (cut.name, seed) not in self.made:
            before = self._before(cut)
            self.made[cut.name, seed] = self._first(cut, seed) if before is None else self._on(before, cut, seed)
        return self.made[cut.name, seed]

    def _before(self, cut: Cut) -> Cut | None:
        """The lesson to go on from: the newest that knows less."""
        known = cut.ground.lengths.sum()
        return next((each for each in reversed(self.course.lessons) if each.ground.lengths.sum() < known), None)

    def _first(self, cut: Cut, seed: int) -> tuple[Retriever, float]:
        later = [each.ground for each in self.course.lessons if each.ground.lengths.sum() > cut.ground.lengths.sum()]
        known = later[0] if later else self.course.stop
        return self._fit(known, known.lengths - cut.ground.lengths, cut.name, seed, None, None)

    def _on(self, before: Cut, cut: Cut, seed: int) -> tuple[Retriever, float]:
        model, spent = self._trained(before, seed)
        none = np.zeros(len(cut.ground), dtype=np.int64)
        further, seconds = self._fit(cut.ground, none, cut.name, seed, model, self.warm)
        return further, spent + seconds

    def _fit(
        self,
        ground: Histories,
        held: NDArray[np.int64],
        name: str,
        seed: int,
        warm: Retriever | None,
        epochs: int | None,
    ) -> tuple[Retriever, float]:
        settings = self.settings.model_copy(update={"seed": seed})
        label = self.arm.name.replace(" ", "_")
        checkpoint = self.place / f"{label}-{name}-{seed}.safetensors"
        profile = ground.profiles if self.arm.profile else None
        told = f"{self.arm.name}, {name}, seed {seed}: "
        given = (self.arm.side(self.dataset.shelf), settings, checkpoint, warm, profile, epochs)
        model, report = fit(ground, held, *given, progress=lambda line: say(told + line))
        return model, report.seconds


@dataclass(frozen=True)
class Fitted:
    """The generators at a cut, and the seconds that each took to fit."""

    stage: FirstStage
    seconds: dict[str, float]


def fitted(cut: Cut, dataset: Dataset, settings: Tuned, ranker: RankerSettings, repeats: bool) -> Fitted:
    """Fit each generator on a cut's ground; an item that was first seen later has no age."""
    members, seconds = {}, {}
    for name, chosen in settings.items():
        began = time.perf_counter()
        members[name] = generators.fit(name, cut.ground, dataset.shelf, chosen)
        seconds[name] = time.perf_counter() - began
    stock = Stock.of(cut.ground, dataset.records.price)
    say(f"{cut.name}: {len(members)} generators fitted in {sum(seconds.values()):.0f} s")
    return Fitted(FirstStage(members, None, dataset.shelf, stock, ranker.depth, repeats), seconds)


def chosen_settings(course: Course, dataset: Dataset, names: Sequence[str], place: Path) -> dict[str, dict[str, Any]]:
    """The generators' settings by NDCG@20 at the tuning cut; kept in `place` for a run that goes on."""
    cut = course.tuning
    digest = hashlib.sha256(str([(name, generators.MEMBERS[name].grid) for name in names]).encode())
    for array in (cut.ground.items, cut.ground.starts, cut.parts[0].target_items):
        digest.update(np.ascontiguousarray(array).tobytes())
    file = place / f"settings-{digest.hexdigest()[:16]}.json"
    if not file.exists():
        say(f"{cut.name}: tuning {len(names)} generators")
        found = tuned(cut.ground, dataset.shelf, cut.parts[0], names, course.repeats)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found))
    read: dict[str, dict[str, Any]] = json.loads(file.read_text())
    return read


def catalogue_outcomes(
    sources: Mapping[str, Scorer], part: Part, repeats: bool, weights: Mapping[str, float], blend: str = "blend"
) -> dict[str, Outcome]:
    """Each source's ranks in the whole catalogue and its lists; with `weights` those of the blend."""
    names = [*sources, *([blend] if weights else [])]
    ranks = {name: np.empty(len(part.target_items)) for name in names}
    lists = {name: np.full((len(part), K), -1, dtype=np.int64) for name in names}
    seconds = dict.fromkeys(names, 0.0)
    for people in part.histories.blocks(max(1, SCORES // max(part.histories.n_items, 1))):
        mine = part.histories.select(people)
        mask = allowed(mine, repeats).mask
        span = slice(part.target_starts[people[0]], part.target_starts[people[-1] + 1])
        targets = part.target_users[span] - people[0], part.target_items[span]
        sofar: dict[str, Floats] = {}
        for name in names:
            began = time.perf_counter()
            score = (
                sources[name].score(mine) if name in sources else blended(list(sofar.values()), _shares(sofar, weights))
            )
            if name in weights:
                sofar[name] = standardised(score)
            ranks[name][span] = mean_ranks(np.where(mask, score, -np.inf).astype(np.float32), *targets)
            person, item, place = best(score, mask, K)
            lists[name][people[person], place] = item
            seconds[name] += time.perf_counter() - began
    return {name: Outcome(ranks[name], lists[name], seconds[name]) for name in names}


def _shares(scores: Mapping[str, Floats], weights: Mapping[str, float]) -> NDArray[np.float64]:
    return np.array([weights[name] for name in scores])


def learned(
    stages: Sequence[tuple[FirstStage, Sequence[Part]]],
    names: Sequence[str],
    settings: RankerSettings,
    kept: list[Lessons] | None = None,
) -> tuple[Ranker, list[Lessons]]:
    """The ranker from several cuts, and what it learned from; `kept` are lessons that need not be made again."""
    made = list(kept or []) + [lessons(stage, part, settings) for stage, parts in stages for part in parts]
    whole = Lessons.joined(made)
    say(f"ranker: {whole.queries} queries, {len(whole.labels)} candidates, {whole.features.shape[1]} features")
    return Ranker.fit(whole, names, settings, THREADS), made


def ranked(recommender: Recommender, part: Part) -> Outcome:
    """The ranks and lists of a recommender; `seconds` those of the ranking."""
    began = time.perf_counter()
    found = recommender.rank(part.histories)
    lists = found.lists(len(part), K)
    ranks = found.ranks(part)
    return Outcome(ranks, lists, time.perf_counter() - began, len(found.found) / len(part))


def spark_als(ground: Histories, settings: generators.Settings, seed: int) -> Als:
    """Item factors of Spark's implicit ALS under the settings of `als`; people are folded in as they are there."""
    import pandas as pd
    from pyspark.ml.recommendation import ALS
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    options: dict[str, Any] = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={LOG}",
        "spark.driver.memory": "2g",
        "spark.sql.shuffle.partitions": "4",
    }
    builder = SparkSession.builder.master("local[2]").appName("bench").config(map=options)
    spark = builder.config("spark.sql.execution.arrow.pyspark.enabled", "true").getOrCreate()
    try:
        pairs = ground.chosen().matrix().tocoo()
        rows = spark.createDataFrame(pd.DataFrame({"user": pairs.row, "item": pairs.col, "rating": pairs.data}))
        als = ALS(rank=settings["size"], regParam=settings["reg"], alpha=settings["alpha"], seed=seed)
        als = als.setImplicitPrefs(True).setMaxIter(settings.get("rounds", 8)).setUserCol("user").setItemCol("item")
        found = als.fit(rows).itemFactors.toPandas()
    finally:
        spark.stop()
    factors = np.zeros((ground.n_items, settings["size"]), dtype=np.float32)
    factors[found["id"].to_numpy()] = np.stack(found["features"].to_list())
    return Als(factors, settings["alpha"], settings["reg"])
