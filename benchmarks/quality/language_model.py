"""What the language model adds to the final ranker: `make bench-language-model DATA=ml_1m`.

It learns from slates of the cuts that teach the ranker, each person's scored by boosters that did not see them, stops
by the slates of the tuning cut, and the final order, with it and without, is learned on these. Four forms are read:
words alone, the history as item vectors, both history and candidates as item vectors, and these with the retriever's
vectors behind the texts'; and two students that learn from the form of words alone. Everything is judged once, on the
test targets. With --validation nothing is: the gain on the tuning cut is told, by boosters on people out of fold; it is
a little hopeful, for the language model stopped by these slates. What takes long is kept in .lakerec/bench.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from benchmarks.quality import run
from benchmarks.quality.courses import Cut, pooled
from benchmarks.quality.data import load
from benchmarks.quality.models import THREADS, K, Outcome, learned, say
from benchmarks.quality.plans import PLANS
from benchmarks.quality.report import Row, table
from matplotlib import pyplot
from numpy.typing import NDArray

from lakerec.config import Promotion, Scorer
from lakerec.features import Stock, feature_names
from lakerec.histories import Floats, Histories
from lakerec.protocols import Part
from lakerec.scorer import training
from lakerec.scorer.base_model import folder
from lakerec.scorer.final import Shortlist, Verdict, learn
from lakerec.scorer.language_model import load_encoder
from lakerec.scorer.nightly import FEATURES as READ_WITH
from lakerec.scorer.nightly import ranker_features, shortlisted
from lakerec.scorer.prediction import Predictor
from lakerec.scorer.slates import Form, Packer, Slate
from lakerec.slices import Slices

matplotlib.use("Agg")
DEPTH = 50  # candidates of a slate
MOST = 20_000  # slates to learn from
EVENTS = 60  # of a history that is told in words: more than its tokens hold
FORMS = {
    "text": ("text", "text"),
    "history vectors": ("vectors", "text"),
    "vectors": ("vectors", "vectors"),
    "vectors and ids": ("vectors", "vectors"),
    "history vectors taught": ("vectors", "text"),
    "vectors taught": ("vectors", "vectors"),
}
WITH_IDS = ("vectors and ids",)
TEACHER, STUDENTS = "text", {"history vectors taught": "history vectors", "vectors taught": "vectors"}
TOKENS, TUNED, SHOWN = "tokens", "gain on the tuning cut", 200
TABLES = {"ml_latest_small": 1, "ml_1m": 0, "online_retail": 1}  # of the plan; of Online Retail explore-only
VERBS = {"online_retail": ("bought", "returned")}
WATCHED = ("watched",)
TRAINING = {
    "freeze": "full",
    "loss": "softmax",
    "learning_rate": 5e-5,
    "epochs": 4,
    "patience": 1,
    "token_budget": 16384,
    "max_slates": MOST,
}
RANKER, DEAF = "ranker", "final order without language model"


@dataclass(frozen=True)
class Slated:
    """The ranker's best of everybody with a target behind a cut; ids (items, d): the retriever's vectors, length 1."""

    cut: str
    part: Part
    shortlist: Shortlist
    ids: Floats


def settings_of(form: str, teacher: str = "ranker") -> Scorer:
    """How a form is trained; `teacher`: the version of the model that a student learns from."""
    history, candidate = FORMS[form]
    learns = {"loss": "distill", "teacher": teacher} if form in STUDENTS else {}
    return Scorer.model_validate(
        {"history": history, "candidate": candidate, "language_model": "always", "training": TRAINING | learns}
    )


class Bench:
    """One data set and seed."""

    def __init__(self, data: str, seed: int, validation: bool) -> None:
        plan = PLANS[data]
        self.data, self.seed, self.validation = data, seed, validation
        self.dataset = load(data)
        self.bench = run.bench(data, plan, plan.tables[TABLES[data]], self.dataset, False, False)
        self.course, self.settings = self.bench.course, plan.ranker.model_copy(update={"seed": seed})
        # Where windows teach, the tuning cut is one of them: the language model is judged there and learns elsewhere.
        self.lessons = [cut for cut in self.course.lessons if cut.name != self.course.tuning.name]
        self.cuts = [*self.lessons, self.course.tuning, self.course.judged]
        about = f"{plan} {DEPTH} {MOST} {EVENTS} {len(self.lessons)} all cuts before the test teach the ranker"
        digest = hashlib.sha256(about.encode()).hexdigest()[:12]
        self.file = self.bench.place / f"shortlists-{seed}-{digest}.npz"

    def slated(self) -> list[Slated]:
        """Of the lessons, the tuning cut and the test; kept, for the ranker takes minutes to learn."""
        if not self.file.exists():
            self._nominate()
        with np.load(self.file) as found:
            names = [cut.name for cut in self.cuts]
            lists = [Shortlist(found[f"items {name}"], found[f"scores {name}"]) for name in names]
            ids = [found[f"ids {name}"] for name in names]
        return [Slated(cut.name, self._part(cut), lists[n], ids[n]) for n, cut in enumerate(self.cuts)]

    def _part(self, cut: Cut) -> Part:
        """The people behind a cut; of the lessons so many that all together make MOST slates."""
        whole = pooled(cut.parts)
        return whole.some(MOST // len(self.lessons), self.seed) if self._teaches(cut) else whole

    def _teaches(self, cut: Cut) -> bool:
        return cut.name in {lesson.name for lesson in self.lessons}

    def _nominate(self) -> None:
        bench, trainer = self.bench, self.bench.trainer(PLANS[self.data].arm)
        bench.prepare()
        taught = [(bench.sources(cut, self.seed, trainer), cut.parts) for cut in self.cuts[:-1]]
        ranker, _ = learned(taught, feature_names(taught[0][0].names), self.settings)
        made: dict[str, NDArray[Any]] = {}
        for cut in self.cuts:
            stage = bench.sources(cut, self.seed, trainer)
            lists = shortlisted(stage, ranker, self._part(cut), DEPTH, unseen=cut is not self.course.judged)
            ids = trainer.at(cut, self.seed)[0].members[0].item_vectors()
            ids = ids / np.maximum(np.linalg.norm(ids, axis=1, keepdims=True), 1e-9)
            made |= {f"items {cut.name}": lists.items, f"scores {cut.name}": lists.scores, f"ids {cut.name}": ids}
            say(f"{cut.name}: {len(lists.items)} slates")
        draft = self.file.with_suffix(".draft.npz")
        np.savez(draft, **made)  # type: ignore[arg-type]
        draft.rename(self.file)

    def slates(self, made: Slated, form: Form, ids: bool) -> list[Slate]:
        """As the language model reads them; `ids`: behind each text vector the retriever's vector of the item."""
        verbs, texts, vectors = VERBS.get(self.data, WATCHED), self.dataset.records.texts, self.dataset.shelf.text
        vectors, found = np.concatenate([vectors, made.ids], axis=1) if ids else vectors, []
        part, lists = made.part, made.shortlist
        for row, (items, scores, targets) in enumerate(zip(lists.items, lists.scores, part.targets, strict=True)):
            kept = items[items >= 0]
            told = [texts[item] for item in kept]
            features, labels = ranker_features(scores[: len(kept)]), np.isin(kept, targets).astype(np.float32)
            history = "" if form.history == "vectors" else in_words(part.histories, row, texts, verbs)
            more = form.told(part.histories, row, kept, vectors)
            found.append(Slate(f"{made.cut} {row}", history, told, features, labels, len(targets), **more))
        return found

    def read(self, form: str) -> tuple[list[Floats], list[Floats]]:
        """What a language model of a form adds to the logits of the tuning cut's and the test's candidates; kept."""
        teacher = self._version(TEACHER) if form in STUDENTS else "ranker"
        file = self.bench.place / f"read-{self._version(form, teacher)}.npz"
        if not file.exists():
            self._teach(form, teacher, file)
        *_, tuning, judged = self.slated()
        with np.load(file) as found:
            return tuning.shortlist.split(found["valid"]), judged.shortlist.split(found["test"])

    def _version(self, form: str, teacher: str = "ranker") -> str:
        """The name of a trained form, by all that decides its training."""
        about = f"{self.file.name} {form} {settings_of(form, teacher).model_dump_json()}"
        slug = form.replace(" ", "-")
        return f"{slug}-{self.seed}-{hashlib.sha256(about.encode()).hexdigest()[:12]}"

    def _teach(self, form: str, teacher: str, file: Path) -> None:
        """Train a form and keep what it reads; of the teacher the weights, too."""
        models = self.bench.place / "models"
        if form in STUDENTS:
            if not (models / teacher).is_dir():
                self._teach(TEACHER, "ranker", self.bench.place / f"read-{teacher}.npz")
            if silent(self.read(TEACHER)[0]):
                say(f"{form}: the teacher adds nothing to the ranker, which teaches in its place")
                teacher = "ranker"
        scorer = settings_of(form, teacher)
        *lessons, tuning, judged = self.slated()
        told, ids = Form.of(scorer.model_dump()), form in WITH_IDS
        train = [slate for made in lessons for slate in self.slates(made, told, ids)]
        valid, test = (self.slates(made, told, ids) for made in (tuning, judged))
        began, out = time.perf_counter(), models / file.stem.removeprefix("read-")
        report = training.train(train, valid, scorer, READ_WITH, out, lambda line: say(f"{form}: {line}"))
        predictor = Predictor.load(out, THREADS)
        both = [np.concatenate(predictor.corrections(slates)) for slates in (valid, test)]
        say(f"{form}: {time.perf_counter() - began:.0f} s, best epoch {report.best_epoch}")
        np.savez(file, valid=both[0], test=both[1])
        if form != TEACHER:
            shutil.rmtree(out)

    def verdict(self, told: Sequence[Floats], tuning: Slated) -> Verdict:
        """The final order learned on the tuning cut, and the gain there on people out of fold."""
        stock = self._stock(self.course.tuning)
        features = tuning.shortlist.table(told, tuning.part.histories, stock)
        people = tuning.part.people
        slices = Slices.of(tuning.part, stock)
        least = Promotion().min_users
        return learn(tuning.shortlist, features, tuning.part.targets, people, self.settings, THREADS, slices, least)

    def _stock(self, cut: Cut) -> Stock:
        return Stock.of(cut.ground, self.dataset.records.price)

    def outcomes(self, forms: Sequence[str]) -> None:
        """Each form's gain on the tuning cut; without --validation the outcomes on the test targets, kept."""
        *_, tuning, judged = self.slated()
        self.bench.prepare()
        verdicts = dict[str, Verdict]()
        report = self.bench.report
        report.name += ", language model"
        stock = self._stock(self.course.judged)
        report.add(RANKER, self.seed, outcome(judged, judged.shortlist))
        for form in forms:
            valid, test = self.read(form)
            found = self.verdict(valid, tuning)
            if silent(valid):
                say(f"{self.data}, {form}: no epoch was better than the ranker alone; the order is the one without")
            else:
                verdicts[form] = found
                say(
                    f"{self.data}, {form}: gain on the tuning cut, {found.gain.users} people out of fold: "
                    f"{found.gain.told}, detectable {found.gain.detectable:.4f}; {found.doubt or 'it pays'}"
                )
            if self.validation:
                continue
            features = judged.shortlist.table(test, judged.part.histories, stock)
            scores = {ordered_by(form): (found.unread if silent(test) else found.final).score(features)}
            if DEAF not in report.outcomes:
                scores[DEAF] = found.unread.score(features)
            for name, score in scores.items():
                report.add(name, self.seed, outcome(judged, judged.shortlist.ordered(score)))
        if not self.validation:
            named = [ordered_by(form) for form in forms]
            pairs = [(name, other) for name in named for other in (DEAF, RANKER)] + [(DEAF, RANKER)]
            taught = [(form, other) for form, plain in STUDENTS.items() for other in (TEACHER, plain)]
            pairs += [(ordered_by(form), ordered_by(other)) for form, other in taught if {form, other} <= {*forms}]
            rows = report.rows(pairs)
            print(table(rows, {}), flush=True)
            rows += [self._tokens(form, rows[0]) for form in forms]
            rows += [self._tuned(form, rows[0], found) for form, found in verdicts.items()]
            run.keep(f"{self.data}_language_model", rows, run.ranks_of(report))
            costs(sorted(run.RESULTS.glob("*_language_model.json")), run.RESULTS / "language_model_cost.png")

    def _tuned(self, form: str, like: Row, found: Verdict) -> Row:
        """A row with a form's gain over the final order without it on the tuning cut, of people out of fold, and why
        the gate of the nightly training would leave it out, if it would.
        """
        gain = found.gain
        kept = {key: like[key] for key in ("data", "protocol", "slice")}
        told = {"value": gain.gain, "low": gain.low, "high": gain.high, "detectable": gain.detectable}
        figures = {name: round(float(value), 6) for name, value in told.items()}
        about = {"model": ordered_by(form), "metric": TUNED, "users": gain.users, "seed": self.seed}
        return {**kept, **about, **figures, "doubt": found.doubt, "seconds": None}

    def _tokens(self, form: str, like: Row) -> Row:
        """A row with the mean tokens of a slate of a form, of the first SHOWN people of the test."""
        scorer, judged = settings_of(form), self.slated()[-1]
        told = Form.of(scorer.model_dump())
        packer = Packer.of(load_encoder(folder(scorer.model))[1], told)
        packs = packer.pack(self.slates(judged, told, form in WITH_IDS)[:SHOWN])
        mean = sum(len(pack) for pack in packs) / min(SHOWN, len(judged.part))
        kept = {key: like[key] for key in ("data", "protocol", "slice")}
        about = {"model": ordered_by(form), "metric": TOKENS, "value": round(mean, 1), "users": SHOWN}
        return {**kept, **about, "seed": self.seed, "seconds": None}


def silent(told: Sequence[Floats]) -> bool:
    """Whether a language model adds nothing to any candidate, as one does that no epoch has made better."""
    return not any(added.any() for added in told)


def ordered_by(form: str) -> str:
    """The model's name in the table."""
    return f"final order, {form}"


def costs(files: Sequence[Path], out: Path) -> None:
    """A picture: each form's gain over the same final order without it, by the tokens of a slate."""
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for place, file in enumerate(files):
        rows = [row for row in json.loads(file.read_text()) if row["slice"] == "all"]
        tokens = {row["model"]: row["value"] for row in rows if row["metric"] == TOKENS}
        gains = {row["model"]: row for row in rows if row["metric"] == "ndcg@10"}
        pairs = [(tokens[name], gains[f"{name} - {DEAF}"]) for name in tokens]
        x = [count * (1 + 0.03 * place) for count, _ in pairs]
        y = [row["value"] for _, row in pairs]
        bars = [[row["value"] - row["low"] for _, row in pairs], [row["high"] - row["value"] for _, row in pairs]]
        axes.errorbar(x, y, yerr=bars, fmt="o", capsize=3, label=rows[0]["data"])
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel(f"tokens of a slate of {DEPTH} candidates")
    axes.set_ylabel("gain in NDCG@10, 95 % interval")
    axes.legend()
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def in_words(histories: Histories, person: int, texts: Sequence[str], verbs: Sequence[str]) -> str:
    """A history as production tells it (lakerec.prompts): a day where it begins, verb and title of each event."""
    stop = histories.starts[person + 1]
    span = slice(max(histories.starts[person], stop - EVENTS), stop)
    told, before = [], None
    for item, kind, time_ in zip(histories.items[span], histories.types[span], histories.times[span], strict=True):
        day = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=float(time_))).date().isoformat()
        told.append(f"{day} " * (day != before) + f"{verbs[kind]} {texts[item]}")
        before = day
    return "; ".join(told)


def outcome(made: Slated, lists: Shortlist) -> Outcome:
    """Ranks of the targets in the order of a shortlist, infinite beyond it."""
    places = [
        np.flatnonzero(row == target)
        for row, targets in zip(lists.items, made.part.targets, strict=True)
        for target in targets
    ]
    ranks = np.array([place[0] + 1.0 if len(place) else np.inf for place in places])
    return Outcome(ranks, lists.items[:, :K], 0.0, float(lists.kept.sum(axis=1).mean()))


def main() -> None:
    """Each data set that was named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help=f"{', '.join(TABLES)}; without: all")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--forms", default=",".join(FORMS), help="by comma")
    parser.add_argument("--validation", action="store_true", help="tell the gain on the tuning cut, write nothing")
    parser.add_argument("--slates", action="store_true", help="only the ranker and its shortlists")
    options = parser.parse_args()
    forms = options.forms.split(",")
    if unknown := ({*forms} - {*FORMS}) or ({*options.data} - {*TABLES}):
        parser.error(f"there is no {', '.join(sorted(unknown))}; forms are {', '.join(FORMS)}")
    for data in options.data or TABLES:
        made = Bench(data, options.seed, options.validation)
        if options.slates:
            made.slated()
        else:
            made.outcomes(forms)


if __name__ == "__main__":
    main()
