"""What is fitted where, and judged on what: the cuts of a protocol, for choosing and for the one test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lakerec.histories import Histories
from lakerec.protocols import GlobalTime, LeaveOneOut, Part, order


@dataclass(frozen=True)
class Cut:
    """Sources are fitted on `ground`, everyone's events before a cut; `parts` are targets behind it."""

    name: str
    ground: Histories
    parts: Sequence[Part]


@dataclass(frozen=True)
class Course:
    """One report: `lessons` teach the ranker, `tuning` chooses settings, `blending` weighs the blend, `judged` is told.

    `stop` holds the events up to the test: what it has beyond the tuning cut's ground says when a retriever has
    learned enough. With `refit` the tuning cut's targets may be a further lesson.
    """

    name: str
    repeats: bool
    lessons: Sequence[Cut]
    tuning: Cut
    blending: Cut
    judged: Cut
    stop: Histories
    refit: bool


def course(
    protocol: LeaveOneOut | GlobalTime,
    histories: Histories,
    lessons: int,
    tests: int = 1,
    timed: bool = False,
    validation: bool = False,
    cuts: int = 1,
) -> Course:
    """The course of a protocol; `lessons`: targets behind each other, or earlier windows of a global time split.

    tests: so many last events of each person are targets. timed: people are scored at the time of the target.
    validation: everything a step earlier, so that the test's targets are not touched. cuts: in leave-one-out so many
    runs of `lessons` targets, each with sources of its own.
    """
    if isinstance(protocol, GlobalTime):
        return _by_time(protocol, histories, lessons, validation)
    ordered = order(histories, protocol.ties, protocol.seed)
    return _by_place(protocol, ordered, (cuts, lessons), tests, timed, validation)


def _by_time(protocol: GlobalTime, histories: Histories, lessons: int, validation: bool) -> Course:
    """Windows a horizon apart: the last is the test's, the one before it chooses, the ones before each teach."""
    windows = protocol.cuts(lessons + 1 + validation)
    cuts = [_window(window, histories) for window in (windows[:-1] if validation else windows)]
    name = protocol.name + " validation" * validation
    tuning = cuts[-1] if validation else cuts[-2]
    stop = histories.until(protocol.cut)
    return Course(name, protocol.repeats, cuts[:-1], tuning, cuts[-2], cuts[-1], stop, refit=False)


def _window(protocol: GlobalTime, histories: Histories) -> Cut:
    part = protocol.split(histories).test
    return Cut(f"before_{protocol.cut:.0f}", histories.until(protocol.cut), [part])


def _by_place(
    protocol: LeaveOneOut, ordered: Histories, lessons: tuple[int, int], tests: int, timed: bool, validation: bool
) -> Course:
    """Targets by their place from the end: the last `tests` test, the next one chooses, those before it teach.

    lessons: how many cuts, and the targets behind each.
    """
    count, each = lessons

    def cut(first: int, count: int) -> Cut:
        parts = [_target(ordered, place, protocol.repeats, timed) for place in range(first, first + count)]
        return Cut(f"minus_{first + count}", ordered.without_last(first + count), parts)

    test, tuning = cut(0, tests), cut(tests, 1)
    taught = [cut(tests + 1 + back * each, each) for back in reversed(range(count))]
    name = protocol.name + f" last_{tests}" * (tests > 1) + " target_time_known" * timed + " validation" * validation
    judged, blending = (tuning, replace(taught[-1], parts=taught[-1].parts[:1])) if validation else (test, tuning)
    return Course(name, protocol.repeats, taught, tuning, blending, judged, test.ground, refit=not validation)


def _target(ordered: Histories, place: int, repeats: bool, timed: bool) -> Part:
    """The event `place` places from each person's end as target, all before it as history."""
    part = LeaveOneOut(repeats=repeats).split(ordered.without_last(place)).test
    if not timed:
        return part
    at = ordered.times[ordered.starts[1:][part.people] - 1 - place]
    return replace(part, histories=replace(part.histories, at=at))


def pooled(parts: Sequence[Part]) -> Part:
    """Parts behind one another; a person who is in several stands there as often."""
    if len(parts) == 1:
        return parts[0]
    known = [part.histories for part in parts]
    lengths = np.concatenate([each.lengths for each in known])
    starts = np.append(0, np.cumsum(lengths)).astype(np.int64)
    names = ("items", "times", "weights", "types", "at")
    columns: dict[str, Any] = {name: np.concatenate([getattr(each, name) for each in known]) for name in names}
    told = [each.profiles for each in known if each.profiles is not None]
    profiles = np.concatenate(told) if told else None
    counts = np.concatenate([np.diff(part.target_starts) for part in parts])
    return Part(
        replace(known[0], starts=starts, groups=None, profiles=profiles, **columns),
        np.concatenate([part.people for part in parts]),
        np.append(0, np.cumsum(counts)).astype(np.int64),
        np.concatenate([part.target_items for part in parts]),
    )
