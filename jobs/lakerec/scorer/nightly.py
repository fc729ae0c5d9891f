"""The training of a night: generators at every cut, the retriever, the final ranker, the language model's correction.

What each part may know: the ranker learns from every cut before the test's, its sources knowing what was known there;
the retriever among them has seen nothing behind the first cut. The language model learns on the train cuts and is
judged on the validation's; on both the ranker's scores of a person are of the boosters that did not learn from that
person. What is evaluated knows what was known at the test cut, what serves knows everything. Nothing is ever judged by
a target that one of its parts has seen.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from lakerec import generators, metrics
from lakerec.config import Config
from lakerec.errors import ConfigError, NotEnoughDataError
from lakerec.features import Stock
from lakerec.generators.popularity import DailyCounts
from lakerec.histories import Floats, Histories
from lakerec.protocols import Part
from lakerec.scorer import bundle, final, training
from lakerec.scorer.base_model import model_id
from lakerec.scorer.final import Final, Shortlist, Verdict
from lakerec.scorer.ranker import Lessons, Ranker
from lakerec.scorer.reading import lacking
from lakerec.scorer.recommender import (
    FirstStage,
    Ranked,
    Recommender,
    blend_weights,
    first_stage,
    full_ranks,
    learn,
    lessons,
    tuned,
    without_each,
)
from lakerec.scorer.retriever import Retriever, fit, shape
from lakerec.scorer.slates import Form, Slate
from lakerec.slices import Slices
from lakerec.world import World

FEATURES = ["ranker", "ranker_reciprocal_rank"]
REPEATABLE = ("personal", "personal_decayed")
# Of the table without each source: queries and people, and how its rankers learn. Twenty must cost no more than one.
SMALL, COARSE = 300, {"folds": 2, "learning_rate": 0.1, "patience": 20}
SEEDS_APART = 1000  # of the members of an ensemble
PUT_IN = 4  # one place in so many of a training slate at most: the others must be what is served, the ranker's best
LOOKED_AT = 20  # slates' length of the ranker's order, in which they are looked for
WARM_EPOCHS = 3  # of a retriever that goes on from a trained one
Say = Callable[[str], None]


@dataclass(frozen=True)
class Cut:
    """A cut day: what was known then, its targets, and what was on the shelf.

    `passed_over`: the part's people, whose targets in it are what they were shown behind the cut and did not choose.
    """

    day: date
    split: str
    known: Histories
    part: Part
    on_shelf: NDArray[np.bool_]
    told: dict[str, str]
    passed_over: Part


def cuts_of(world: World, examples: pd.DataFrame) -> list[Cut]:
    """The cuts of a snapshot's rows (cut_date, split, user_id, history, targets, passed_over), oldest first."""
    found = []
    for day, split in sorted(set(zip(examples["cut_date"], examples["split"], strict=True))):
        rows = examples[examples["cut_date"] == day]
        known = world.known(day)
        told = {user: text or "" for user, text in zip(rows["user_id"], rows["history"], strict=True)}
        part, passed_over = (world.part(known, rows, column) for column in ("targets", "passed_over"))
        passed_over = replace(passed_over, histories=part.histories)  # one copy of them
        found.append(Cut(day, split, known, part, world.on_shelf(day), told, passed_over))
    return found


class Night:
    """One training and what it is made of."""

    def __init__(self, world: World, cuts: Sequence[Cut], last: date, config: Config, threads: int, say: Say) -> None:
        self.world, self.config, self.threads, self.say = world, config, threads, say
        self.cuts, self.last = cuts, last
        _check(cuts, last)
        self.train = [cut for cut in cuts if cut.split == "train"]
        self.valid, self.test = (next(cut for cut in cuts if cut.split == split) for split in ("valid", "test"))
        hidden = config.policy.filter_types
        self.repeats = True
        self.hidden = [place for place, kind in enumerate(world.kinds) if kind in hidden]
        self.settings = self._settings()

    def _settings(self) -> dict[str, generators.Settings]:
        """Which generators there are for this data, and their settings: given, tuned on the first cut, or default."""
        given = self.config.candidates.generators
        for name in given.keys() - generators.MEMBERS.keys():
            where = self.config.where("candidates", "generators", name)
            raise ConfigError(f"{where}: no such generator; known: {', '.join(generators.MEMBERS)}")
        for name, chosen in given.items():
            known = inspect.signature(generators.MEMBERS[name].kind.fit).parameters.keys() - {"histories", "shelf"}
            for key in chosen.keys() - known:
                where = self.config.where("candidates", "generators", name, key)
                raise ConfigError(f"{where}: no such setting; known: {', '.join(sorted(known)) or 'none'}")
        names = [name for name in given or generators.MEMBERS if self._makes_sense(name)]
        first = self.train[0]
        shelf = self.world.shelf(first.day)
        wishes = [name for name in names if not given.get(name)] if self.config.scorer.tune else []
        best = (
            tuned(first.known, shelf, first.part, wishes, self.repeats, first.on_shelf, self.hidden) if wishes else {}
        )
        default = {name: generators.MEMBERS[name].grid[0] for name in names}
        default |= {name: {"days": float(self.config.candidates.popular_days)} for name in names if name == "trending"}
        return {name: default[name] | dict(given.get(name) or best.get(name, {})) for name in names}

    def _makes_sense(self, name: str) -> bool:
        return {
            "graph": bool(len(self.world.edges)),
            "pattern": bool((self.world.groups(self.valid.day) >= 0).any()),  # else there is nothing to learn of it
            "profile": bool(len(self.world.people)),
            **dict.fromkeys(REPEATABLE, self._may_repeat()),
        }.get(name, True)

    def _may_repeat(self) -> bool:
        """Whether an item that was chosen can come up again: some type of event counts, and hides nothing."""
        hidden = self.config.policy.filter_types
        return any(weight > 0 and kind not in hidden for kind, weight in self.config.event_types.items())

    def stage(self, day: date, known: Histories, retrievers: Sequence[Retriever]) -> FirstStage:
        """Generators that know what was known on a day, with that day's texts, graph, prices and counts."""
        shelf = self.world.shelf(day)
        source = bundle.RetrieverSource(retrievers, bundle.side(shelf)) if retrievers else None
        stock = self.world.stock(day, DailyCounts.of(known))
        ranker = self.config.scorer.ranker
        return first_stage(known, shelf, self.settings, source, ranker, self.repeats, stock, self.hidden)

    def retrievers(self, checkpoints: Path, champion: bundle.Bundle | None) -> dict[str, list[Retriever]]:
        """Those of each role, each going on from the one before it, or from the champion's of the same role."""
        if not self.config.scorer.retriever.enabled:
            return {}
        found: dict[str, list[Retriever]] = {}
        for role, day in self._days().items():
            found[role] = []
            for place in range(self.config.scorer.retriever.members):
                warm = self._warm(role, place, found, champion)
                file = checkpoints / f"retriever-{role}-{place}.checkpoint"
                made = self._retriever(role, place, day, warm, file)
                if made is None:
                    return {}
                found[role].append(made)
        return found

    def _warm(
        self, role: str, place: int, found: dict[str, list[Retriever]], champion: bundle.Bundle | None
    ) -> Retriever | None:
        """The champion's of the same role knows no more than this one may: each role's day only moves on.

        One of another shape is no start: what cannot be taken over would have WARM_EPOCHS in place of a training.
        """
        if champion is not None and not champion.recipe.has_seen(role, self._days()[role]):
            theirs = champion.retrievers(role)
            if place < len(theirs) and shape(theirs[place].settings) == shape(self.config.scorer.retriever):
                return theirs[place]
        before = [models[place] for models in found.values() if place < len(models)]
        return before[-1] if before else None

    def _days(self) -> dict[str, date]:
        """The last day that each role knows."""
        return {"learned": self.train[0].day, "evaluated": self.test.day, "serving": self.last}

    def _retriever(
        self, role: str, place: int, day: date, warm: Retriever | None, checkpoint: Path
    ) -> Retriever | None:
        known = self.world.known(day)
        settings = self.config.scorer.retriever
        settings = settings.model_copy(update={"seed": settings.seed + SEEDS_APART * place})
        items = bundle.side(self.world.shelf(day))
        held = self._held(known) if warm is None else np.zeros(len(known), dtype=np.int64)
        epochs = None if warm is None else WARM_EPOCHS
        try:
            made = fit(known, held, items, settings, checkpoint, warm, known.profiles, epochs, self.say)[0]
        except NotEnoughDataError as error:
            self.say(f"no retriever ({role}): {error}")
            return None
        # The catalogue holds what came later, too: it must be new to the ranker's lessons as it is when it is served.
        made.forget(~self.world.known_items(day), items)
        return made

    def _held(self, known: Histories) -> NDArray[np.int64]:
        """The events of the last horizon, held out to stop by."""
        behind = known.times >= known.at[0] - self.config.scorer.training.horizon_days
        return np.bincount(known.users[behind], minlength=len(known)).astype(np.int64)

    def lessons(self, retrievers: Sequence[Retriever]) -> Taught:
        """The ranker, learned from the train cuts and the validation's."""
        cuts, settings = [*self.train, self.valid], self.config.scorer.ranker
        stages = [self.stage(cut.day, cut.known, retrievers) for cut in cuts]
        made = [lessons(stage, cut.part, settings, cut.on_shelf) for stage, cut in zip(stages, cuts, strict=True)]
        return Taught(stages, learn(made, stages[0].names, settings, self.threads, self.say), Lessons.joined(made[:-1]))

    def slates(self, stage: FirstStage, ranker: Ranker, cut: Cut, limit: int) -> Slated:
        """The best of each person, drawn by seed, as slates; by the boosters that did not learn from that person."""
        some = cut.part.some(limit, self.config.scorer.training.seed)
        shortlist = shortlisted(stage, ranker, some, self.config.slate_size, cut.on_shelf)
        return Slated(self._labelled(cut, shortlist, some), shortlist, some)

    def teaching(self, stage: FirstStage, ranker: Ranker, cut: Cut, limit: int) -> list[Slate]:
        """As `slates`, of a train cut, with what its people passed over further down in the ranker's order put in."""
        seed, size = self.config.scorer.training.seed, self.config.slate_size
        some, passed_over = (part.some(limit, seed) for part in (cut.part, cut.passed_over))
        if self.config.scorer.language_model == "never" or not len(passed_over.target_items):
            return self.slates(stage, ranker, cut, limit).slates
        nominated = min(len(stage.names) * stage.depth, some.histories.n_items, LOOKED_AT * size)
        whole = shortlisted(stage, ranker, some, max(size, nominated), cut.on_shelf)
        kept = with_passed_over(whole, size, some.targets, passed_over.targets)
        left = (kept.items != whole.items)[:, :size]
        made = zip(self._labelled(cut, kept, some), whole.scores[:, :size], left, strict=True)
        return [replace(slate, instead=ranker_features(scores)[gone]) for slate, scores, gone in made]

    def _labelled(self, cut: Cut, shortlist: Shortlist, part: Part) -> list[Slate]:
        return labelled_slates(self.world, cut, shortlist, part, Form.of(self.config.scorer.model_dump()))

    def verdict(self, stage: FirstStage, held: Slated, told: Sequence[Floats]) -> Verdict | None:
        """The final order learned on the validation's slates; None where there are too few people."""
        part = held.part
        table = held.shortlist.table(told, part.histories, stage.stock)
        ranker, enough = self.config.scorer.ranker, self.config.promotion.min_users
        slices = Slices.of(part, stage.stock)
        try:
            found = final.learn(held.shortlist, table, part.targets, part.people, ranker, self.threads, slices, enough)
        except NotEnoughDataError as error:
            self.say(f"what the language model brings cannot be judged: {error}")
            return None
        self.say(f"the language model's gain in ndcg@10: {found.gain.told}, detectable {found.gain.detectable:.4f}")
        for name, gain in found.slices.items():
            self.say(f"its gain in {name}: {gain.told}")
        if found.doubt:
            self.say(f"the language model does not pay: {found.doubt}")
        return found


@dataclass(frozen=True)
class Taught:
    """What the ranker's sources knew at each cut, the ranker, and what the train cuts alone have taught it."""

    stages: list[FirstStage]
    ranker: Ranker
    learned: Lessons


@dataclass(frozen=True)
class Slated:
    """The slates of a part's people, and where they come from."""

    slates: list[Slate]
    shortlist: Shortlist
    part: Part

    def scores(self, order: Final, told: Sequence[Floats], stock: Stock) -> list[Floats]:
        """(n,) by which a final order sorts the candidates of each of the first people; told: as in Shortlist.table."""
        few = Shortlist(self.shortlist.items[: len(told)], self.shortlist.scores[: len(told)])
        table = few.table(told, self.part.histories.select(np.arange(len(told))), stock)
        return few.split(order.score(table))


def shortlisted(
    stage: FirstStage,
    ranker: Ranker,
    part: Part,
    k: int,
    on_shelf: NDArray[np.bool_] | None = None,
    unseen: bool = True,
) -> Shortlist:
    """The ranker's `k` best of each person of a part; `unseen`: by the boosters that did not learn from that person."""
    found: list[Shortlist] = []
    for people, mine in stage.blocks(part.histories):
        made = stage.candidates(mine, stage.allowed(mine, on_shelf))
        who = part.people[people][made.person]
        score = ranker.unseen(made.features, who) if unseen else ranker.score(made.features)
        found.append(Shortlist.of(Ranked(made, score), len(people), k))
    return Shortlist.joined(found)


def with_passed_over(
    whole: Shortlist, size: int, targets: Sequence[NDArray[np.int32]], passed_over: Sequence[NDArray[np.int32]]
) -> Shortlist:
    """The `size` best of each, where the least may give way to the best of what was passed over behind them.

    Neither targets give way nor what was passed over itself. A positive is not put in either: with its low score it
    would teach that the ranker is to be read the other way round. A column is a place in the ranker's order as before;
    -1 and nan where what stands there is left out.
    """
    items = whole.items.copy()
    for row, chosen, shown in zip(items, targets, passed_over, strict=True):
        behind = size + np.flatnonzero(np.isin(row[size:], shown))
        least = np.flatnonzero(~np.isin(row[:size], [*chosen, *shown]))[::-1]
        count = min(size // PUT_IN, len(behind), len(least))
        row[np.setdiff1d(np.arange(size, len(row)), behind[:count])] = -1
        row[least[:count]] = -1
    return Shortlist(items, np.where(items >= 0, whole.scores, np.float32(np.nan)))


def labelled_slates(world: World, cut: Cut, shortlist: Shortlist, part: Part, form: Form) -> list[Slate]:
    """The ranker's best of each person of a part, as the language model reads them, labelled."""
    texts, vectors, found = world.texts(cut.day), world.shelf(cut.day).text, []
    rows = zip(part.people, shortlist.items, shortlist.scores, part.targets, strict=True)
    for place, (person, items, score, targets) in enumerate(rows):
        kept = items[items >= 0]
        user = str(world.users[person])
        told = [str(text) for text in texts[kept]]
        labels = np.isin(kept, targets).astype(np.float32)
        features = ranker_features(score)[items >= 0]
        more = form.told(part.histories, place, kept, vectors)
        name, history = f"{user}@{cut.day}", cut.told.get(user, "")
        found.append(Slate(name, history, told, features, labels, len(targets), **more))
    return found


def _check(cuts: Sequence[Cut], last: date) -> None:
    """NotEnoughDataError names the splits without examples."""
    found = {cut.split for cut in cuts if len(cut.part)}
    missing = [split for split in ("train", "valid", "test") if split not in found]
    if missing:
        raise NotEnoughDataError(f"no {', '.join(missing)} examples of known users as of {last}: load more days")


def ranker_features(scores: Floats) -> Floats:
    """(n, 2) as in FEATURES, of one list, best first and whole."""
    return np.stack([scores, 1 / np.arange(1, len(scores) + 1)], axis=1).astype(np.float32)


def train(
    world: World,
    examples: pd.DataFrame,
    last: date,
    config: Config,
    out: Path,
    threads: int,
    say: Say,
    champion: bundle.Bundle | None = None,
) -> training.TrainingReport:
    """Train everything and write the artefact to `out`, whose name is its version; a killed run goes on."""
    torch.set_num_threads(threads)  # the order of sums follows it: the same threads give the same weights
    night = Night(world, cuts_of(world, examples), last, config, threads, say)
    checkpoints = out.with_name(f".{out.name}.parts")
    retrievers = night.retrievers(checkpoints, champion)
    taught = night.lessons(retrievers.get("learned", []))
    *stages, valid = taught.stages
    report = _report(night, taught)
    settings, ranker = config.scorer.training, taught.ranker
    each = max(1, settings.max_slates // len(stages))
    parts = zip(stages, night.train, strict=True)
    # Also those without a positive: the probabilities would be too high else.
    slates = [slate for stage, cut in parts for slate in night.teaching(stage, ranker, cut, each)]
    if put_in := sum(slate.put_in for slate in slates):
        say(f"{put_in} items that were shown and passed over stand in {len(slates)} training slates, put in from below")
    held = night.slates(valid, ranker, night.valid, settings.valid_slates)
    evaluated = night.stage(night.test.day, night.test.known, retrievers.get("evaluated", []))
    serving = night.stage(night.last, world.known(night.last), retrievers.get("serving", []))
    if doubt := lacking(slates, held.slates):
        report["language_model"] = {"doubt": doubt}
    recipe = _recipe(night, bool(retrievers), report)
    verdict: Verdict | None = None

    def pays(told: Sequence[Floats]) -> bool:
        nonlocal verdict
        verdict = night.verdict(valid, held, told)
        report["language_model"] = None if verdict is None else verdict.told
        return verdict is not None and verdict.pays

    def served(told: Sequence[Floats]) -> list[Floats] | None:
        """By the final order, which is what cheaper arithmetic may not change."""
        return None if verdict is None else held.scores(verdict.final, told, valid.stock)

    def beside(folder: Path, language_model: bool) -> None:
        kept = {"evaluated": evaluated, "serving": serving}
        orders = verdict.orders if verdict is not None and language_model else {}
        bundle.save(folder, recipe, list(world.items), world.nodes, kept, retrievers, ranker, orders)

    made = training.train(slates, held.slates, config.scorer, FEATURES, out, say, beside, pays, served)
    for left in out.parent.glob(f".{out.name}.*"):  # checkpoints, and drafts of runs that were killed as they wrote
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return made


def _recipe(night: Night, retriever: bool, report: dict[str, Any]) -> bundle.Recipe:
    days = {role: day.isoformat() for role, day in night._days().items()}
    depth = night.config.scorer.ranker.depth
    hidden, kinds = night.hidden, night.world.kinds
    told = model_id(night.config.scorer.model)
    return bundle.Recipe(night.settings, depth, night.repeats, hidden, kinds, days, retriever, told, report)


def _report(night: Night, taught: Taught) -> dict[str, Any]:
    """What the model's page shows: gains by feature, the blend; NDCG@10 on validation: all, sources, without each."""
    part, shelf, stage, learned = night.valid.part, night.valid.on_shelf, taught.stages[-1], taught.learned
    whole = _ndcg(Recommender(stage, taught.ranker).rank(part.histories, shelf, unseen=part.people).ranks(part), part)
    sources = {
        name: _ndcg(full_ranks(member, part, night.repeats, shelf, night.hidden), part)
        for name, member in stage.members.items()
    }
    night.say(f"validation ndcg@10: final ranker {whole:.4f}, best source {max(sources.values()):.4f}")
    told = {"gains": taught.ranker.gains(), "valid_ndcg@10": whole, "sources": sources, "queries": learned.queries}
    told |= {"blend": blend_weights(stage, part, night.config.scorer.training.seed, shelf)}
    return told | {"without": _without_each(night, stage, learned)}


def _without_each(night: Night, stage: FirstStage, learned: Lessons) -> dict[str, float]:
    """NDCG@10 on validation of a small ranker (under "") and of those without each source; of some people, by seed."""
    settings = night.config.scorer.ranker.model_copy(update=COARSE)
    some = np.flatnonzero(np.arange(learned.queries) % max(1, learned.queries // SMALL) == 0)
    part = night.valid.part.some(SMALL, settings.seed)
    few = learned.where(np.isin(learned.query, some))
    try:
        ranks = without_each(stage, few, part, settings, night.threads, night.valid.on_shelf)
    except NotEnoughDataError:  # its few people are one
        return {}
    return {source: _ndcg(found, part) for source, found in ranks.items()}


def _ndcg(ranks: NDArray[np.float64], part: Part) -> float:
    return float(np.nanmean(metrics.by_user(ranks, part.target_starts)["ndcg@10"]))
