"""The whole quality table: `make bench-quality`, or of one data set: `make bench-quality DATA=ml_latest_small`.

Writes results/<data>.json (a row for each model, metric and slice), a picture, and every target's rank as parquet.
With --validation everything is a step earlier and nothing is written: settings are chosen so, never on the test.
What takes long is kept in .lakerec/bench/<data>: a run that was killed goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from benchmarks.quality import models, report
from benchmarks.quality.courses import Course, course, pooled
from benchmarks.quality.data import CACHE, Dataset, load
from benchmarks.quality.models import Fitted, Outcome, Trainer, say
from benchmarks.quality.picture import draw
from benchmarks.quality.plans import AGAIN, PLANS, PUBLISHED, WITHOUT, Pair, Plan, Table
from benchmarks.record import ROOT

from lakerec.features import feature_names
from lakerec.scorer.ranker import Lessons
from lakerec.scorer.recommender import FirstStage, Recommender, Scorer, blend_weights, without_each

RESULTS = ROOT / "benchmarks" / "quality" / "results"
EACH = 2000  # people that the table without each source is made on
OF_TEXT = ("text", "text_last", "profile")  # people's profiles are encoded, too
NO_TEXT = "ranker without text"


@dataclass
class Bench:
    """One table of a data set while it is made."""

    plan: Plan
    table: Table
    dataset: Dataset
    course: Course
    place: Path
    spark: bool = True

    def prepare(self) -> None:
        """What every run begins with: settings, and a report without outcomes."""
        self.part = pooled(self.course.judged.parts)
        self.settings = self._settings()
        self.fitted: dict[str, Fitted] = {}
        self.plain: list[Lessons] | None = None
        self.report = self._report()

    def run(self) -> report.Report:
        """Every model's outcome."""
        self.prepare()
        if not self.table.paired:
            self._classical()
            self._arms()
        self._rankers()
        return self.report

    def _settings(self) -> dict[str, dict[str, Any]]:
        """Those of the table or the plan; what they do not say is tuned on validation."""
        given = self.plan.settings if self.table.settings is None else self.table.settings
        # What a person had is masked without repeats: these would have nothing to say.
        names = [name for name in self.plan.generators if self.course.repeats or name not in AGAIN]
        missing = [name for name in names if name not in given]
        found = models.chosen_settings(self.course, self.dataset, missing, self.place) if missing else {}
        settings = {name: dict(given[name] if name in given else found[name]) for name in names}
        for name in missing:
            say(f"{name}: {settings[name]}")
        return settings

    def _report(self) -> report.Report:
        """An empty one: popularity counts the people who chose an item before the cut."""
        ground = self.course.judged.ground
        counts = np.asarray(ground.chosen().matrix().sum(axis=0)).ravel().astype(np.float64)
        people = int((ground.chosen().lengths > 0).sum())
        return report.Report(self.course.name, self.dataset, self.part, counts, people)

    def _stage(self, name: str) -> FirstStage:
        """The generators at the cut of a name, fitted once."""
        if name not in self.fitted:
            cut = next(cut for cut in self._cuts() if cut.name == name)
            self.fitted[name] = models.fitted(cut, self.dataset, self.settings, self.plan.ranker, self.course.repeats)
        return self.fitted[name].stage

    def _cuts(self) -> list[models.Cut]:
        return [*self.course.lessons, self.course.tuning, self.course.judged]

    def _classical(self) -> None:
        """Every generator alone, their blend, and Spark's ALS."""
        judged, blending = self._stage(self.course.judged.name), self.course.blending
        began = time.perf_counter()
        everything = np.ones(blending.ground.n_items, dtype=np.bool_)
        weights = blend_weights(self._stage(blending.name), blending.parts[0], self.plan.seeds[0], everything)
        seconds = {"blend": time.perf_counter() - began, **self.fitted[self.course.judged.name].seconds}
        say("blend: " + ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items() if weight > 0.005))
        found = models.catalogue_outcomes(judged.members, self.part, self.course.repeats, weights)
        for name, outcome in found.items():
            self.report.add(name, None, replace(outcome, seconds=outcome.seconds + seconds[name]))
        if self.spark and "als" in self.settings:
            began = time.perf_counter()
            als = models.spark_als(self.course.judged.ground, self.settings["als"], self.plan.seeds[0])
            self._alone("spark_als", None, als, time.perf_counter() - began)

    def _alone(self, name: str, seed: int | None, source: Scorer, seconds: float) -> None:
        """One source over the whole catalogue."""
        found = models.catalogue_outcomes({name: source}, self.part, self.course.repeats, {})[name]
        self.report.add(name, seed, replace(found, seconds=found.seconds + seconds))

    def trainer(self, arm: models.Arm) -> Trainer:
        """Retrievers of an arm at the cuts of this table."""
        settings = self.plan.retriever.model_copy(update={"target_gap": self.table.timed})
        return Trainer(arm, self.course, self.dataset, settings, self.place, self.plan.warm)

    def _arms(self) -> None:
        """Further retrievers, alone."""
        for arm in self.plan.arms:
            trainer = self.trainer(arm)
            for seed in self.plan.seeds:
                self._alone(arm.name, seed, *trainer.at(self.course.judged, seed))

    def _rankers(self) -> None:
        """For each seed the retriever and the rankers without and with it."""
        trainer = self.trainer(self.plan.arm)
        for seed in self.plan.seeds:
            self._ranker(WITHOUT, seed, None)
            retriever, seconds = trainer.at(self.course.judged, seed)
            if not self.table.paired:
                self._alone("retriever", seed, retriever, seconds)
            self._ranker("ranker", seed, trainer)

    def _ranker(self, name: str, seed: int, trainer: Trainer | None) -> None:
        """A ranker over the judged cut's sources; with a retriever also one that learned the tuning targets, too."""
        began = time.perf_counter()
        settings = self.plan.ranker.model_copy(update={"seed": seed})
        judged = self.sources(self.course.judged, seed, trainer)
        known = trainer is None and self.plain is not None  # those without a retriever are the same for every seed
        taught = [] if known else [(self.sources(cut, seed, trainer), cut.parts) for cut in self.course.lessons]
        names = feature_names(judged.names)
        ranker, made = models.learned(taught, names, settings, self.plain if trainer is None else None)
        self._judge(name, seed, Recommender(judged, ranker), began)
        self.plain = made if trainer is None else self.plain
        if trainer is not None and self.table.refit and self.course.refit:
            began = time.perf_counter()
            more = [(self.sources(self.course.tuning, seed, trainer), self.course.tuning.parts)]
            self._judge(
                "ranker refit", seed, Recommender(judged, models.learned(more, names, settings, made)[0]), began
            )

    def sources(self, cut: models.Cut, seed: int, trainer: Trainer | None) -> FirstStage:
        """The sources at a cut, with the retriever trained there."""
        stage = self._stage(cut.name)
        return stage if trainer is None else replace(stage, retriever=trainer.at(cut, seed)[0])

    def _judge(self, name: str, seed: int, recommender: Recommender, began: float) -> None:
        found = models.ranked(recommender, self.part)
        self.report.add(name, seed, replace(found, seconds=time.perf_counter() - began))
        gains = list(recommender.ranker.gains().items())[:8]
        say(f"{name}, seed {seed}: " + ", ".join(f"{feature} {gain:.2f}" for feature, gain in gains))

    def without_text(self) -> report.Report:
        """The ranker, and one to which no item has a text: what a language model tells by its vectors, in all."""
        self.prepare()
        self.report.name += ", without text"
        arm = replace(self.plan.arm, name="retriever without text", text="none", profile=False)
        shelf = replace(self.dataset.shelf, text=np.zeros_like(self.dataset.shelf.text))
        self.table = replace(self.table, refit=False)
        bare = replace(self, plan=replace(self.plan, arm=arm), dataset=replace(self.dataset, shelf=shelf))
        bare.part, bare.report, bare.fitted, bare.plain = self.part, self.report, {}, None
        bare.settings = {name: chosen for name, chosen in self.settings.items() if name not in OF_TEXT}
        for made, name in ((self, "ranker"), (bare, NO_TEXT)):
            trainer = made.trainer(made.plan.arm)
            for seed in self.plan.seeds:
                made._ranker(name, seed, trainer)
        return self.report

    def without_each(self) -> report.Report:
        """The ranker refitted without the features of each source in turn."""
        self.part = pooled(self.course.judged.parts).some(EACH, self.plan.seeds[0])
        self.settings, self.fitted = self._settings(), {}
        self.report = self._report()
        seed, trainer = self.plan.seeds[0], self.trainer(self.plan.arm)
        settings = self.plan.ranker.model_copy(update={"seed": seed})
        taught = [(self.sources(cut, seed, trainer), cut.parts) for cut in self.course.lessons]
        judged = self.sources(self.course.judged, seed, trainer)
        _, made = models.learned(taught, feature_names(judged.names), settings)
        nothing = np.full((len(self.part), models.K), -1, dtype=np.int64)
        whole = Lessons.joined(made)
        for source, ranks in without_each(judged, whole, self.part, settings, models.THREADS).items():
            self.report.add(f"ranker without {source}" if source else "ranker", seed, Outcome(ranks, nothing, 0.0))
        return self.report


def bench(data: str, plan: Plan, table: Table, dataset: Dataset, validation: bool, spark: bool) -> Bench:
    """A table's bench; its models are kept under the names of data and protocol."""
    histories = dataset.records.histories
    made = course(table.protocol, histories, table.lessons, table.tests, table.timed, validation, table.cuts)
    slug = made.name.removesuffix(" validation").replace(" ", "_").replace("=", "-")
    return Bench(plan, table, dataset, made, CACHE / data / slug, spark)


def run(data: str, plan: Plan, options: argparse.Namespace) -> None:
    """All tables of a data set, or the table without each source; printed, and kept unless it is a validation."""
    dataset = load(data)
    tables = plan.tables if options.table is None else [plan.tables[options.table]]
    validation = options.validation or options.without_each
    for table in tables[:1] if options.without_each else tables:
        made = bench(data, plan, table, dataset, validation, options.spark)
        say(f"{data}: {made.course.name}")
        found, pairs, suffix = outcomes(made, options)
        mine = found.rows(pairs)
        others = PUBLISHED.get(data, {}) if table.comparable and not validation else {}
        print(report.table(mine, others), flush=True)
        if not options.validation:
            keep(data + suffix, mine, ranks_of(found))


def outcomes(made: Bench, options: argparse.Namespace) -> tuple[report.Report, Sequence[Pair], str]:
    """What the command line asks for, the pairs that are compared, and what the result's name ends in."""
    if options.without_each:
        found = made.without_each()
        return found, [(name, "ranker") for name in found.outcomes if name != "ranker"], "_without_each"
    if options.without_text:
        return made.without_text(), [("ranker", NO_TEXT)], "_without_text"
    return made.run(), made.plan.pairs, ""


def ranks_of(found: report.Report) -> pd.DataFrame:
    """Each target's rank by each model; a person is a place in the data set."""
    part, ids = found.part, np.asarray(found.dataset.records.item_ids)
    who = {"protocol": found.name, "person": part.people[part.target_users], "item": ids[part.target_items]}
    told = [
        pd.DataFrame({"model": model, "seed": seed, **who, "rank": outcome.ranks})
        for model, by_seed in found.outcomes.items()
        for seed, outcome in by_seed.items()
    ]
    return pd.concat(told, ignore_index=True).astype({"seed": "Int64"})


def keep(name: str, rows: Sequence[report.Row], ranks: pd.DataFrame) -> None:
    """A table's rows into results/<name>.json (a row on each line) and .png, its ranks into a .parquet of its own."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    about = report.machine()
    mine = {row["protocol"] for row in rows}
    file = RESULTS / f"{name}.json"
    others = [row for row in json.loads(file.read_text()) if row["protocol"] not in mine] if file.exists() else []
    kept = [*others, *({**row, **about} for row in rows)]
    file.write_text("[\n" + ",\n".join(json.dumps(row) for row in kept) + "\n]\n")
    slug = rows[0]["protocol"].replace(" ", "_").replace("=", "-")
    ranks.to_parquet(RESULTS / f"{name}-{slug}.parquet", index=False)
    draw(kept, PUBLISHED.get(rows[0]["data"], {}), RESULTS / f"{name}.png")
    say(f"{RESULTS / name}.json: {len(rows)} rows")


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what makes a run smaller is for validation alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help="ml_latest_small, ml_1m, ml_100k, online_retail; without: all")
    parser.add_argument("--validation", action="store_true", help="report on the validation part, write nothing")
    less_of = parser.add_mutually_exclusive_group()
    less_of.add_argument("--without-each", action="store_true", help="on validation: the ranker without each source")
    less_of.add_argument("--without-text", action="store_true", help="the ranker beside one without any text")
    parser.add_argument("--no-spark", dest="spark", action="store_false", help="leave out Spark's ALS")
    parser.add_argument(
        "--table", type=int, help="only this table of the plan, from 0; what is kept of the others stays"
    )
    parser.add_argument("--seeds", type=int, help="only so many seeds (validation)")
    parser.add_argument("--epochs", type=int, help="at most so many epochs of a retriever (validation)")
    parser.add_argument("--generators", help="only these, by comma (validation)")
    options = parser.parse_args(given)
    if unknown := set(options.data) - set(PLANS):
        parser.error(f"no plan for {', '.join(sorted(unknown))}; there are {', '.join(PLANS)}")
    less = [name for name in ("seeds", "epochs", "generators") if getattr(options, name) is not None]
    if less and not options.validation:
        parser.error(f"--{less[0]} makes another table than the plan's: only with --validation")
    return options


def smaller(plan: Plan, options: argparse.Namespace) -> Plan:
    """The plan under the command line's limits."""
    if options.seeds is not None:
        plan = replace(plan, seeds=plan.seeds[: options.seeds])
    if options.generators is not None:
        plan = replace(plan, generators=options.generators.split(","))
    if options.epochs is not None:
        plan = replace(plan, retriever=plan.retriever.model_copy(update={"epochs": options.epochs}))
    return plan


def main() -> None:
    """Each data set that was named, or all."""
    options = arguments()
    for data in options.data or PLANS:
        run(data, smaller(PLANS[data], options), options)


if __name__ == "__main__":
    main()
