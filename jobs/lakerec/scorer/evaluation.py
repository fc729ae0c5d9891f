"""What a model would have shown at a cut, and every source beside it, as rows of gold.model_metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lakerec import metrics
from lakerec.features import Stock
from lakerec.generators.base import Shelf
from lakerec.generators.popularity import ALWAYS, DailyCounts, PatternPopular
from lakerec.protocols import Part
from lakerec.scorer.bundle import Bundle
from lakerec.scorer.final import UNREAD, Final, Shortlist, as_ranked, chances
from lakerec.scorer.nightly import Cut, labelled_slates
from lakerec.scorer.prediction import Predictor
from lakerec.scorer.recommender import Ranked, Recommender, source_ranks
from lakerec.scorer.slates import Form, Slate
from lakerec.slices import PAIRED, Slices
from lakerec.world import World

DEEP = 100  # depth of the sources' recall
COLD = ("new users", "new items")
Row = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """One model on one cut: the rank of each target (t,), lists (users, k), and its slates' probabilities."""

    name: str
    ranks: NDArray[np.float64]
    lists: NDArray[np.int64] | None = None
    probabilities: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    labels: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    owners: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def recommender_at(world: World, cut: Cut, opened: Bundle) -> Recommender:
    """The recommender as it was before the cut's targets, over that day's shelf."""
    shelf = world.shelf(cut.day)
    stock = world.stock(cut.day, DailyCounts.of(cut.known))
    patterns = PatternPopular.fit(cut.known, shelf, opened.recipe.pattern_days).shares
    return opened.recommender("evaluated", shelf, stock, patterns)


def model(
    world: World,
    cut: Cut,
    name: str,
    recommender: Recommender,
    predictor: Predictor,
    opened: Bundle,
    per_user: int,
    k: int,
) -> list[Judged]:
    """The served order, and where a language model is in it the order that was learned beside it without."""
    part = cut.part
    ranked = recommender.rank(part.histories, cut.on_shelf)
    shortlist = Shortlist.of(ranked, len(part), per_user)
    made = labelled_slates(world, cut, shortlist, part, Form.of(predictor.manifest.settings))
    stock = recommender.stage.stock
    found = _chances(opened.final(), predictor, made, shortlist, part, stock)
    served = _judged(name, part, ranked, made, found, shortlist.items, k)
    if predictor.model is None:
        return [served]
    unread, nothing = opened.final(UNREAD), [np.zeros(len(slate.texts), dtype=np.float32) for slate in made]
    alone = unread.chances(nothing, shortlist, part.histories, stock) if unread else as_ranked(predictor.prior(made))
    return [served, _judged(f"{name} without language model", part, ranked, made, alone, shortlist.items, k)]


def _chances(
    final: Final | None, predictor: Predictor, made: Sequence[Slate], shortlist: Shortlist, part: Part, stock: Stock
) -> list[NDArray[np.float32]]:
    """As served; nan where ranker or language model say no number, which boosters behind them take for a gap."""
    if final is None:
        told = found = chances(final, predictor, made, shortlist, part.histories, stock)
    else:
        told = predictor.corrections(made)
        found = final.chances(told, shortlist, part.histories, stock)
    return [
        np.where(np.isfinite(read) & np.isfinite(slate.features).all(axis=1), chance, np.float32(np.nan))
        for read, slate, chance in zip(told, made, found, strict=True)
    ]


def _judged(
    name: str,
    part: Part,
    ranked: Ranked,
    made: Sequence[Slate],
    probabilities: Sequence[NDArray[np.float32]],
    lists: NDArray[np.int64],
    k: int,
) -> Judged:
    """Targets among the slate rank by probability (nan last), the others behind it as the ranker has them."""
    ordered = [np.where(np.isnan(p), -np.inf, p) for p in probabilities]
    order = [np.lexsort((items[: len(p)], -p)) for items, p in zip(lists, ordered, strict=True)]
    shown = np.full((len(part), k), -1, dtype=np.int64)
    for row, by in enumerate(order):
        shown[row, : min(k, len(by))] = lists[row][by][:k]
    ranks = ranked.ranks(part)
    for place, (user, item) in enumerate(zip(part.target_users, part.target_items, strict=True)):
        where = np.flatnonzero(lists[user] == item)
        if len(where):
            mine, others = ordered[user][where[0]], ordered[user]
            ranks[place] = 1 + (others > mine).sum() + ((others == mine).sum() - 1) / 2
    nothing = np.zeros(0, dtype=np.float32)
    labels = [slate.labels if slate.labels is not None else nothing for slate in made]
    owners = np.repeat(np.arange(len(made)), [len(p) for p in probabilities])
    return Judged(
        name, ranks, shown, np.concatenate([nothing, *probabilities]), np.concatenate([nothing, *labels]), owners
    )


def sources(cut: Cut, recommender: Recommender, weights: Mapping[str, float]) -> list[Judged]:
    """Every source alone over the whole catalogue on the shelf, and their blend where there are weights.

    Where scores are broken a source finds nothing.
    """
    found = source_ranks(recommender.stage, cut.part, cut.on_shelf, weights)
    return [Judged(name, ranks) for name, ranks in found.items()]


class Sheet:
    """Rows of gold.model_metrics for models judged on one cut."""

    def __init__(
        self, world: World, cut: Cut, shelf: Shelf, seed: int, attributes: Mapping[str, Mapping[str, str]]
    ) -> None:
        self.cut, self.shelf, self.seed = cut, shelf, seed
        stock = world.stock(cut.day, DailyCounts.of(cut.known))
        self.counts = stock.daily.within(float(cut.known.at.max(initial=0.0)), ALWAYS)
        slices = Slices.of(cut.part, stock)
        people = dict(slices.people)
        for name, values in attributes.items():
            mine = [values.get(world.users[person]) for person in cut.part.people]
            people |= {f"{name} {value}": mask for value, mask in metrics.attribute_slices(mine).items()}
        self.slices = replace(slices, people=people)

    def rows(self, judged: Judged, slices: bool = True) -> list[Row]:
        """Every metric of a model with its interval; at depth 10 in every slice (without `slices`: in COLD alone)."""
        found = [
            self._row(judged.name, part, metric, values)
            for part, figures in self.slices.by_user(judged.ranks)
            for metric, values in figures.items()
            if part == "all" or (metric.endswith("@10") and (slices or part in COLD))
        ]
        deep = metrics.by_user(judged.ranks, self.cut.part.target_starts, (DEEP,))[f"recall@{DEEP}"]
        found.append(self._row(judged.name, "all", f"recall@{DEEP}", np.where(self.slices.people["all"], deep, np.nan)))
        return [*found, *self._lists(judged), *self._probabilities(judged)]

    def union(self, judged: Judged) -> list[Row]:
        """The recall of all candidates together, whatever their order."""
        found = np.isfinite(judged.ranks).astype(float)
        counts = np.diff(self.cut.part.target_starts)
        share = np.bincount(self.cut.part.target_users, weights=found, minlength=len(counts)) / np.maximum(counts, 1)
        return [self._row("candidates", "all", "recall", np.where(self.slices.people["all"], share, np.nan))]

    def faults(self, name: str, alone: Sequence[Judged]) -> list[Row]:
        """A model's sources whose scores are broken, each as a figure that is no number: the gate refuses it."""
        broken = [judged for judged in alone if np.isinf(judged.ranks).any()]
        return [self.flat(name, f"{judged.name} scores", float("nan")) for judged in broken]

    def language_model(self, name: str, told: Mapping[str, Any] | None) -> list[Row]:
        """What a language model brought on validation, also where it was left out; nothing where it was not judged."""
        gains = {"all": told} | told.get("slices", {}) if told and "gain" in told else {}
        found = {part: metrics.Comparison(*map(gain.get, metrics.Comparison._fields)) for part, gain in gains.items()}
        return [
            self._gained(name, _within("validation", part), "language_model_gain", gain)
            for part, gain in found.items()
            if np.isfinite(gain[:3]).all()
        ]

    def _lists(self, judged: Judged) -> list[Row]:
        if judged.lists is None:
            return []
        lists, listed = judged.lists, int(self.cut.on_shelf.sum())
        # Items by their place on the shelf: what is not on it cannot be covered.
        placed = np.where(lists >= 0, (np.cumsum(self.cut.on_shelf) - 1)[lists], -1)
        shares = {"coverage": metrics.coverage(placed, listed), "gini": metrics.gini(placed, listed)}
        each = {
            "novelty": metrics.novelty(lists, self.counts),
            "diversity": metrics.intra_list_diversity(lists, self.shelf.text),
        }
        flat = [self.flat(judged.name, metric, value) for metric, value in shares.items()]
        return flat + [self._row(judged.name, "all", metric, values) for metric, values in each.items()]

    def _probabilities(self, judged: Judged) -> list[Row]:
        if not len(judged.labels):
            return []
        p, y = judged.probabilities, judged.labels
        if not np.isfinite(p).all():  # the gate refuses what has no figures
            return [self.flat(judged.name, metric, float("nan")) for metric in ("logloss", "ece", "auc", "uauc")]
        found = {
            "logloss": float(metrics.log_loss(p, y).mean()),
            "ece": metrics.calibration_error(p, y),
            "auc": metrics.auc(p, y),
            "uauc": metrics.uauc(p, y, judged.owners),
        }
        return [self.flat(judged.name, metric, value) for metric, value in found.items()]

    def paired(self, challenger: Judged, rival: Judged, slices: bool) -> list[Row]:
        """The challenger's gain over a rival on the same people, in each slice where asked for."""
        names = None if slices else ("all",)
        gains = self.slices.paired(challenger.ranks, rival.ranks, self.seed, names)
        start = f"against {rival.name}"
        return [self._gained(challenger.name, _within(start, part), PAIRED, gain) for part, gain in gains.items()]

    def _gained(self, name: str, part: str, metric: str, gain: metrics.Comparison) -> Row:
        figures = {"value": gain.gain, "low": gain.low, "high": gain.high, "users": gain.users}
        return {"version": name, "slice": part, "metric": metric, "seed": self.seed, **figures}

    def _row(self, name: str, part: str, metric: str, values: NDArray[np.float64]) -> Row:
        users = int((~np.isnan(values)).sum())
        low, high = metrics.bootstrap_interval(values, self.seed, draws=500) if users else (np.nan, np.nan)
        value = float(np.nanmean(values)) if users else float("nan")
        figures = {"value": value, "low": low, "high": high, "users": users}
        return {"version": name, "slice": part, "metric": metric, "seed": self.seed, **figures}

    def flat(self, name: str, metric: str, value: float) -> Row:
        """A figure of the whole, without an interval."""
        figures = {"value": value, "low": value, "high": value, "users": len(self.cut.part)}
        return {"version": name, "slice": "all", "metric": metric, "seed": self.seed, **figures}


def _within(start: str, part: str) -> str:
    """The slice of a comparison, over all or over a part of the people or targets."""
    return start if part == "all" else f"{start} | {part}"
