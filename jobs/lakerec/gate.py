"""The gate between champion and challenger: rules over what evaluate_scorer wrote about one snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite, isnan, nan
from typing import Any, NamedTuple

from lakerec.config import Promotion
from lakerec.errors import ContractError, NotEnoughDataError
from lakerec.slices import ONLY_TOLD

METRIC, ALL = "ndcg@10", "all"
UNREADABLE, HAS_SEEN = "unreadable", "has_seen_the_targets"
# Metrics that a champion has in place of all others, and what each says of it.
FAULTS = {
    UNREADABLE: "cannot be read",
    HAS_SEEN: "was trained on days of the test cut's targets (a longer horizon_days?)",
}
AGAINST, WITHIN = "against ", " | "  # "against RIVAL" and "against RIVAL | SLICE" hold paired differences
AREAS = ("auc", "uauc")
SHOWN = 8  # figures that a reason names before it counts the others


class Figure(NamedTuple):
    """A row of gold.model_metrics: a mean over users and its 95 % interval, nan where there is none."""

    value: float
    low: float
    high: float
    users: int


UNKNOWN = Figure(nan, nan, nan, 0)
Figures = Mapping[tuple[str, str, str], Figure]  # by version, slice, metric


class Failure(NamedTuple):
    """A rule that does not hold, and its figures for people."""

    rule: str
    told: str


@dataclass(frozen=True)
class Verdict:
    """What the gate says: the comparison it rests on, the rules that failed, what could not be compared."""

    comparison: str
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether no rule failed."""
        return not self.failures

    @property
    def told(self) -> str:
        """One line: the outcome, the comparison, each failed rule with its figures, the notes."""
        failed = [f"failed {failure.rule}: {failure.told}" for failure in self.failures]
        parts = [part for part in (self.comparison, *failed, *self.notes) if part]
        return ("passed: " if self.passed else "rejected: ") + "; ".join(parts)


class Duel(NamedTuple):
    """Challenger and rival on the same users: both NDCG@10, and the mean difference with its paired interval."""

    rival: str
    ours: float
    theirs: float
    difference: Figure

    @property
    def paired(self) -> bool:
        """Whether the users were compared one by one."""
        return not isnan(self.difference.low)

    @property
    def told(self) -> str:
        """Both figures and the difference, for people."""
        return f"{METRIC} {self.ours:.4f} against {self.theirs:.4f} ({self.rival}), {_difference(self.difference)}"


def figures(rows: Iterable[Any]) -> dict[tuple[str, str, str], Figure]:
    """Rows of gold.model_metrics about one snapshot by version, slice and metric; a null is nan.

    Raises ContractError where two rows tell the same: the gate must not depend on which one comes first.
    """
    found: dict[tuple[str, str, str], Figure] = {}
    for row in rows:
        key = (row["version"], row["slice"], row["metric"])
        if key in found:
            raise ContractError(
                f"gold.model_metrics has {' / '.join(key)} twice for one snapshot: run evaluate_scorer again"
            )
        value, low, high = (nan if row[name] is None else float(row[name]) for name in ("value", "low", "high"))
        found[key] = Figure(value, low, high, row["users"] or 0)
    return found


def judge(known: Figures, challenger: str, champion: str | None, limits: Promotion) -> Verdict:
    """Whether the challenger may serve; a champion that cannot be used counts as none.

    Raises NotEnoughDataError where challenger, champion or every baseline was not evaluated on the snapshot.
    """
    _require(known, challenger, champion)
    fault = _unusable(known, champion) if champion else ""
    notes = (f"{fault}, so the challenger is judged as a first model",) if fault else ()
    if broken := _broken(known, challenger):
        return Verdict("", (Failure("finite", broken),), notes)
    if champion and not fault:
        return _against_champion(known, challenger, champion, limits)
    duel = _duel(known, challenger, _best_baseline(known, challenger, champion))
    return Verdict(duel.told, tuple(_not_below_baseline(duel, limits)), notes)


def _require(known: Figures, challenger: str, champion: str | None) -> None:
    names = [challenger] + ([champion] if champion and not _fault(known, champion) else [])
    if missing := [name for name in names if (name, ALL, METRIC) not in known]:
        raise NotEnoughDataError(f"{', '.join(missing)} was not evaluated on this snapshot: run evaluate_scorer again")


def _unusable(known: Figures, champion: str) -> str:
    """Why a champion cannot be compared with: it cannot be loaded, it knows the targets, its figures are no numbers."""
    if fault := _fault(known, champion):
        return f"the champion {champion} {fault}"
    return "" if isfinite(known[champion, ALL, METRIC].value) else f"the champion {champion} has no finite {METRIC}"


def _fault(known: Figures, champion: str) -> str:
    """What evaluate_scorer says of a champion that it could not compare; empty where it did."""
    return next((told for metric, told in FAULTS.items() if (champion, ALL, metric) in known), "")


def _broken(known: Figures, challenger: str) -> str:
    """The challenger's own figures that are no finite numbers, where they should be."""
    sound = isfinite(known.get((challenger, ALL, "logloss"), UNKNOWN).value)
    bad = [
        f"{metric} of {part} is {figure.value}"
        for (version, part, metric), figure in sorted(known.items())
        if version == challenger and not part.startswith(AGAINST) and not isfinite(figure.value)
        if (part, metric) == (ALL, METRIC) or not _may_be_undefined(metric, figure, sound)
    ]
    more = [f"and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
    return ", ".join(bad[:SHOWN] + more)


def _may_be_undefined(metric: str, figure: Figure, sound: bool) -> bool:
    """A figure of no user, and an area where nobody had hits and misses; broken scores have no log-loss either."""
    return not figure.users or (metric in AREAS and sound and isnan(figure.value))


def _best_baseline(known: Figures, challenger: str, champion: str | None) -> str:
    """The baseline of the greatest NDCG@10: whatever the challenger was paired with, else whatever was evaluated.

    A part of the challenger ("VERSION without ...") is none: a first model is held against what can be had without it.
    """
    finite = {
        version: figure.value
        for (version, part, metric), figure in known.items()
        if (part, metric) == (ALL, METRIC) and version not in (challenger, champion) and isfinite(figure.value)
        if not version.startswith(f"{challenger} ")
    }
    paired = {name: value for name, value in finite.items() if (challenger, AGAINST + name, METRIC) in known}
    if not finite:
        raise NotEnoughDataError("no baseline was evaluated on this snapshot: run evaluate_scorer again")
    return max(sorted(paired or finite), key=finite.__getitem__)


def _duel(known: Figures, challenger: str, rival: str) -> Duel:
    """The paired difference, or where it is missing the difference of the means without an interval."""
    ours, theirs = known[challenger, ALL, METRIC], known[rival, ALL, METRIC]
    paired = known.get((challenger, AGAINST + rival, METRIC))
    if paired is None or not all(map(isfinite, paired[:3])):
        paired = Figure(ours.value - theirs.value, nan, nan, min(ours.users, theirs.users))
    return Duel(rival, ours.value, theirs.value, paired)


def _not_below_baseline(duel: Duel, limits: Promotion) -> Iterator[Failure]:
    """A first model lies at most `tolerance` below the best baseline, and is not surely worse."""
    bound = -limits.tolerance * duel.theirs
    if duel.paired and duel.difference.high < 0:
        yield Failure("baseline", "the whole interval lies below 0")
    elif duel.difference.value < bound:
        yield Failure("baseline", f"the difference is below {bound:+.4f} ({limits.tolerance:.0%} of the baseline's)")


def _against_champion(known: Figures, challenger: str, champion: str, limits: Promotion) -> Verdict:
    """Not worse than the champion by NDCG@10, and no guard broken."""
    duel = _duel(known, challenger, champion)
    failures = [*_not_worse(duel, limits), *_slices(known, challenger, champion, limits)]
    notes = []
    for metric, guard in (("coverage", _coverage), ("ece", _calibration)):
        ours, theirs = (known.get((name, ALL, metric), UNKNOWN).value for name in (challenger, champion))
        if isfinite(ours) and isfinite(theirs):
            failures += guard(ours, theirs, limits)
        else:
            notes.append(f"{metric} is not known of both, so it was not compared")
    return Verdict(duel.told, tuple(failures), tuple(notes))


def _not_worse(duel: Duel, limits: Promotion) -> Iterator[Failure]:
    """Not surely worse, and surely not worse by more than `tolerance`; without an interval not below at all."""
    bound = -limits.tolerance * duel.theirs
    if not duel.paired:
        if duel.difference.value < 0:
            yield Failure("not worse", "it lies below the champion, and there is no paired interval")
    elif duel.difference.high < 0:
        yield Failure("not worse", "the whole interval lies below 0")
    elif duel.difference.low < bound:
        share = f"{limits.tolerance:.0%} of the champion's"
        yield Failure("not worse", f"the interval reaches below {bound:+.4f} ({share}): a loss is not ruled out")


def _slices(known: Figures, challenger: str, champion: str, limits: Promotion) -> Iterator[Failure]:
    """No slice of at least `min_users` users is surely worse, but for those that are only told."""
    start = AGAINST + champion + WITHIN
    for (version, part, metric), found in sorted(known.items()):
        if version != challenger or metric != METRIC or not part.startswith(start) or found.users < limits.min_users:
            continue
        if part.removeprefix(start) in ONLY_TOLD:
            continue
        if not found.high >= 0:  # nan, too
            yield Failure(f"slice {part.removeprefix(start)!r}", f"{_difference(found)} is worse")


def _coverage(ours: float, theirs: float, limits: Promotion) -> list[Failure]:
    if ours >= limits.min_coverage * theirs:
        return []
    return [Failure("coverage", f"{ours:.4f} is below {limits.min_coverage:.0%} of the champion's {theirs:.4f}")]


def _calibration(ours: float, theirs: float, limits: Promotion) -> list[Failure]:
    if ours <= theirs + limits.max_ece_rise:
        return []
    return [Failure("calibration", f"ece {ours:.4f} is above the champion's {theirs:.4f} + {limits.max_ece_rise:g}")]


def _difference(figure: Figure) -> str:
    interval = "" if isnan(figure.low) else f" [{figure.low:+.4f}, {figure.high:+.4f}]"
    return f"difference {figure.value:+.4f}{interval} over {figure.users} users"
