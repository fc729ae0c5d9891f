"""From outcomes to rows: metrics of every model by slice, with intervals, and gains of one model over another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from benchmarks.quality.data import Dataset
from benchmarks.quality.models import Outcome
from benchmarks.record import circumstances
from numpy.typing import NDArray

from lakerec import metrics
from lakerec.protocols import Part

Array = NDArray[np.float64]
Key = tuple[str, str]  # metric, slice
Row = dict[str, Any]
ALL = "all"
FAR = 100
FEW = 30  # people of whom a slice tells nothing
HEADLINES = ("hr@10", "ndcg@10", "recall@20", f"recall@{FAR}", "auc")  # the metrics that are told by slice
NEW = "target new"  # in no list's first places, whoever ranks: told by recall far down and by AUC
SEED = 5  # of the bootstrap
WIDE = 34  # characters of a model's name


@dataclass
class Report:
    """The outcomes of one table: model -> seed (None where nothing is drawn) -> outcome."""

    name: str
    dataset: Dataset
    part: Part
    popularity: NDArray[np.float64]
    people: int
    outcomes: dict[str, dict[int | None, Outcome]] = field(default_factory=dict)

    def add(self, model: str, seed: int | None, outcome: Outcome) -> None:
        """Keep an outcome."""
        self.outcomes.setdefault(model, {})[seed] = outcome

    @property
    def clusters(self) -> NDArray[np.int64] | None:
        """Whose value each is, None where everybody stands for one."""
        return None if len(np.unique(self.part.people)) == len(self.part) else self.part.people

    def rows(self, pairs: Sequence[tuple[str, str]]) -> list[Row]:
        """All rows of the table."""
        figures = {
            model: {seed: self.figures(outcome) for seed, outcome in by_seed.items()}
            for model, by_seed in self.outcomes.items()
        }
        found = [row for model, by_seed in figures.items() for row in self._of_model(model, by_seed)]
        for one, other in pairs:
            if one in figures and other in figures:
                found += self._of_pair(one, other, _mean(figures[one]), _mean(figures[other]))
        return found

    def figures(self, outcome: Outcome) -> dict[Key, Array]:
        """Values by user for each metric and slice; one value where a metric is of all lists together."""
        part, lists = self.part, outcome.lists
        values = self._ranked(outcome.ranks, part.target_starts)
        values["novelty"] = metrics.novelty(lists, self.popularity, self.people)
        values["diversity"] = metrics.intra_list_diversity(lists, self.dataset.shelf.text)
        values["coverage"] = np.array([metrics.coverage(lists, part.histories.n_items)])
        values["gini"] = np.array([metrics.gini(lists, part.histories.n_items)])
        if np.isfinite(outcome.candidates):
            values["candidates"] = np.array([outcome.candidates])
            values["recall@candidates"] = _recall(np.isfinite(outcome.ranks), part)
            del values["auc"]  # what is no candidate has no place in the catalogue
        told = [metric for metric in HEADLINES if metric in values]
        found = {(metric, ALL): array for metric, array in values.items()}
        for name, people in self.user_slices().items():
            found |= {(metric, name): np.where(people, values[metric], np.nan) for metric in told}
        for name, targets in self.target_slices().items():
            inside = self._inside(outcome.ranks, targets)
            found |= {(metric, f"target {name}"): inside[metric] for metric in told}
        return found

    def user_slices(self) -> dict[str, NDArray[np.bool_]]:
        """Masks (users,) by history and by what is known of the people."""
        lengths = self.part.histories.lengths
        found = {f"history {name}": mask for name, mask in metrics.user_slices(lengths).items()}
        found |= {"history known": lengths > 0}
        for attribute, values in self.dataset.records.attributes.items():
            mine = [values[person] for person in self.part.people]
            found |= {f"{attribute} {name}": mask for name, mask in metrics.attribute_slices(mine).items()}
        return {name: mask for name, mask in found.items() if mask.sum() >= FEW}

    def target_slices(self) -> dict[str, NDArray[np.bool_]]:
        """Masks (t,) of the targets by popularity, and those that nobody had before the cut."""
        found = metrics.target_slices(self.part.target_items, self.popularity)
        return {name: mask for name, mask in found.items() if mask.any()}

    def _ranked(self, ranks: Array, starts: NDArray[np.int64]) -> dict[str, Array]:
        """What follows from ranks, (users,); auc: the share of the other items that are below a target."""
        counts = np.diff(starts)
        below = np.clip(1 - (ranks - 1) / max(self.part.histories.n_items - 1, 1), 0, 1)
        total = np.bincount(np.repeat(np.arange(len(counts)), counts), weights=below, minlength=len(counts))
        values = metrics.by_user(ranks, starts)
        values[f"recall@{FAR}"] = metrics.by_user(ranks, starts, (FAR,))[f"recall@{FAR}"]
        values["auc"] = np.where(counts > 0, total / np.maximum(counts, 1), np.nan)
        return values

    def _inside(self, ranks: Array, targets: NDArray[np.bool_]) -> dict[str, Array]:
        """`_ranked` of some of the targets, nan for a person without any."""
        counts = np.bincount(self.part.target_users[targets], minlength=len(self.part))
        return self._ranked(ranks[targets], np.append(0, np.cumsum(counts)).astype(np.int64))

    def _of_model(self, model: str, by_seed: Mapping[int | None, dict[Key, Array]]) -> list[Row]:
        """A row for each seed; of several seeds slices of the mean alone (intervals over users), and the spread."""
        found, several = [], len(by_seed) > 1
        for seed, figures in by_seed.items():
            seconds = self.outcomes[model][seed].seconds
            told = {key: values for key, values in figures.items() if key[1] == ALL or not several}
            found += [self._row(model, key, values, seed, seconds) for key, values in told.items()]
        if several:
            seconds = float(np.mean([outcome.seconds for outcome in self.outcomes[model].values()]))
            found += [self._row(model, key, values, "mean", seconds) for key, values in _mean(by_seed).items()]
            whole = [key for key in next(iter(by_seed.values())) if key[1] == ALL]
            found += [self._spread(model, key, list(by_seed.values()), seconds) for key in whole]
        return found

    def _row(self, model: str, key: Key, values: Array, seed: int | str | None, seconds: float) -> Row:
        """The mean with its interval; detectable: the smallest true difference from a fixed figure to be seen."""
        return self._told(
            model, key, metrics.paired(values, np.zeros_like(values), SEED, self._drawn(values)), seed, seconds
        )

    def _of_pair(self, one: str, other: str, a: dict[Key, Array], b: dict[Key, Array]) -> list[Row]:
        """Gains of one model over the other on the same users, seeds averaged."""
        shared = [key for key in a if key in b and key[0] in (*HEADLINES, "mrr@10")]
        return [
            self._told(f"{one} - {other}", key, metrics.paired(a[key], b[key], SEED, self._drawn(a[key])), "mean", None)
            for key in shared
        ]

    def _drawn(self, values: Array) -> NDArray[np.int64] | None:
        """The clusters, where the values are those of all people."""
        return self.clusters if len(values) == len(self.part) else None

    def _told(
        self, model: str, key: Key, found: metrics.Comparison, seed: int | str | None, seconds: float | None
    ) -> Row:
        """One row without what is the same for the whole run."""
        figures = {"value": found.gain, "low": found.low, "high": found.high, "detectable": found.detectable}
        return {
            "data": self.dataset.records.name,
            "protocol": self.name,
            "model": model,
            "metric": key[0],
            "slice": key[1],
            **{name: _number(value) for name, value in figures.items()},
            "users": found.users,
            "seed": seed,
            "seconds": None if seconds is None else round(seconds, 1),
        }

    def _spread(self, model: str, key: Key, figures: Sequence[dict[Key, Array]], seconds: float) -> Row:
        """Standard deviation over seeds, and the least and the greatest."""
        means = [_average(each[key]) for each in figures]
        told = metrics.Comparison(float(np.std(means, ddof=1)), min(means), max(means), len(self.part), np.nan)
        return self._told(model, key, told, "spread", seconds)


def _recall(hits: NDArray[np.bool_], part: Part) -> Array:
    """Share of each person's targets that are hit, (users,)."""
    found = np.bincount(part.target_users, weights=hits, minlength=len(part))
    return found / np.maximum(np.diff(part.target_starts), 1)


def _average(values: Array) -> float:
    """The mean of what is known, nan of nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _mean(by_seed: Mapping[int | None, dict[Key, Array]]) -> dict[Key, Array]:
    """Each value averaged over the seeds."""
    each = list(by_seed.values())
    return {key: np.mean([figures[key] for figures in each], axis=0) for key in each[0]}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)


def machine() -> Row:
    """Commit, date and size of the machine: the same for every row of a run."""
    return {name: value for name, value in circumstances().items() if name != "cpu"}


def table(rows: Sequence[Row], published: Mapping[str, Mapping[str, float]]) -> str:
    """What is printed of one protocol: figures with interval and smallest difference to be seen, gains, slices."""
    told = [row for row in rows if row["seed"] in (None, "mean") or _only(rows, row)]
    lines = [f"\n{told[0]['data']}: {told[0]['protocol']}, {max(row['users'] for row in told)} people"]
    lines += _figures([row for row in told if " - " not in row["model"]], published)
    lines += _gains([row for row in told if " - " in row["model"]])
    lines += _slices([row for row in told if " - " not in row["model"]])
    return "\n".join(lines)


def _only(rows: Sequence[Row], row: Row) -> bool:
    """Whether a row is of the only seed of its model."""
    return len({other["seed"] for other in rows if other["model"] == row["model"]}) == 1


def _figures(rows: Sequence[Row], published: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A line for each model; '*' figures are of others."""
    plain = (
        "mrr@10",
        "recall@20",
        f"recall@{FAR}",
        "recall@candidates",
        "auc",
        "coverage",
        "gini",
        "novelty",
        "diversity",
    )
    heads = [f"{name:>36}" for name in ("hr@10 [95 %] detectable", "ndcg@10 [95 %] detectable")]
    lines = [
        f"{'':{WIDE}}"
        + "".join(heads)
        + "".join(f"{name.replace('recall', 'r'):>13}" for name in plain)
        + f"{'seconds':>9}"
    ]
    models = list(dict.fromkeys(row["model"] for row in rows))
    for model in models:
        mine = {row["metric"]: row for row in rows if row["model"] == model and row["slice"] == ALL}
        line = f"{model:{WIDE}}" + "".join(f"{_interval(mine[name]):>36}" for name in ("hr@10", "ndcg@10"))
        line += "".join(f"{_short(mine[name]['value']) if name in mine else '':>13}" for name in plain)
        lines.append(f"{line}{mine['hr@10']['seconds'] or 0:>9.0f}")
    for model, known in published.items():
        line = "".join(f"{known[name]:>8.4f}{'':28}" for name in ("hr@10", "ndcg@10"))
        lines.append(f"published: {model}\n{'':{WIDE}}  {line.rstrip()}")
    return lines


def _interval(row: Row) -> str:
    return f"{_short(row['value'])} [{_short(row['low'])}, {_short(row['high'])}] {_short(row['detectable'])}"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _gains(rows: Sequence[Row]) -> list[str]:
    """Paired gains over all targets, and over those that nobody had before."""
    kept = [row for row in rows if row["slice"] == ALL and row["metric"] in ("hr@10", "ndcg@10")]
    kept += [row for row in rows if row["slice"] == NEW and row["metric"] in (f"recall@{FAR}", "auc")]
    lines = [f"{'paired gain [95 %] detectable':60}"] if kept else []
    return lines + [f"{row['model']:52}{row['metric']:12}{row['slice']:12}{_interval(row)}" for row in kept]


def _slices(rows: Sequence[Row]) -> list[str]:
    """NDCG@10 of each model by slice; of new targets the AUC."""
    kept = [row for row in rows if row["metric"] == ("auc" if row["slice"] == NEW else "ndcg@10")]
    names = list(dict.fromkeys(row["slice"] for row in kept))
    size = {name: next(row["users"] for row in kept if row["slice"] == name) for name in names}
    lines = [f"{'ndcg@10, of new targets auc':{WIDE}}" + "".join(f"{name[:18]:>19}" for name in names)]
    lines.append(f"{'people':{WIDE}}" + "".join(f"{size[name]:>19}" for name in names))
    for model in dict.fromkeys(row["model"] for row in kept):
        mine = {row["slice"]: row["value"] for row in kept if row["model"] == model}
        lines.append(f"{model:{WIDE}}" + "".join(f"{_short(mine.get(name)):>19}" for name in names))
    return lines
