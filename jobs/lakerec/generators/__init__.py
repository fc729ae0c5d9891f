"""Candidate generators: each nominates items of the catalogue for a person from their events.

MEMBERS names those that a deployment has, with the settings that are tried when they are tuned on validation; the
first of each is the default. Several speak of one idea at different ranges: the final ranker learns whom to believe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, cast

from lakerec.generators.base import Generator, Shelf, State
from lakerec.generators.content import Graph, Profile, Text
from lakerec.generators.factors import Als
from lakerec.generators.linear import Ease
from lakerec.generators.neighbours import ItemKnn, Markov, UserKnn
from lakerec.generators.popularity import ALWAYS, New, PatternPopular, Personal, Popular, Rising
from lakerec.generators.scores import Scores
from lakerec.histories import Histories

Settings = dict[str, Any]


class Member(NamedTuple):
    """A generator under a name: its class, the settings to choose from, and how many events make a stretch (0: all)."""

    kind: type[Generator]
    grid: tuple[Settings, ...] = ({},)
    stretch: int = 0


def _each(name: str, values: Sequence[Any], **fixed: Any) -> tuple[Settings, ...]:
    return tuple({name: value, **fixed} for value in values)


_FADES = (0.85, 0.95, 0.8, 1.0)
MEMBERS: Mapping[str, Member] = {
    "popular": Member(Popular, ({"days": ALWAYS},)),
    "trending": Member(Popular, _each("days", (30.0, 7.0, 14.0, 90.0, 365.0))),
    "rising": Member(Rising),
    "new": Member(New),
    "personal": Member(Personal, ({"half_life": ALWAYS},)),
    "personal_decayed": Member(Personal, _each("half_life", (90.0, 30.0, 180.0))),
    "pattern": Member(PatternPopular),
    "ease": Member(Ease, tuple({"penalty": p, "keep": k} for p in (100.0, 300.0, 1000.0) for k in _FADES)),
    "ease_visits": Member(Ease, tuple({"penalty": p, "keep": k} for p in (30.0, 100.0, 300.0) for k in _FADES), 30),
    "item_knn": Member(ItemKnn, _each("keep", (0.8, 0.9, 1.0), neighbours=500, shrink=20.0)),
    "item_knn_visits": Member(ItemKnn, _each("keep", (0.8, 0.9, 1.0), neighbours=500, shrink=10.0), 20),
    "markov_1": Member(Markov, ({"span": 2, "fade": 0.5, "length": 1, "keep": 1.0},)),
    "markov_3": Member(Markov, ({"span": 3, "fade": 0.8, "length": 3, "keep": 0.8},)),
    "markov": Member(Markov, tuple({"span": s, "fade": f, "length": s, "keep": f} for s, f in ((10, 0.8), (20, 0.9)))),
    "user_knn": Member(UserKnn, _each("keep", (0.95, 0.98, 0.9), neighbours=100)),
    "als": Member(Als, tuple({"alpha": a, "reg": r, "size": 32} for a, r in ((2.0, 0.1), (10.0, 0.05), (1.0, 0.3)))),
    "text": Member(Text, tuple({"length": n, "keep": k} for n, k in ((50, 0.9), (5, 0.7)))),
    "text_last": Member(Text, ({"length": 3, "keep": 0.6},)),
    "profile": Member(Profile),
    "graph": Member(Graph, tuple({"length": n, "keep": k} for n, k in ((50, 0.95), (10, 0.8)))),
}


def fit(name: str, histories: Histories, shelf: Shelf, settings: Settings | None = None) -> Generator:
    """The generator of a name, fitted with these settings (without: the default ones)."""
    member = MEMBERS[name]
    ground = histories.stretches(member.stretch) if member.stretch else histories
    return member.kind.fit(ground, shelf, **(member.grid[0] if settings is None else settings))


def restore(name: str, state: State, n_items: int) -> Generator:
    """The generator of a name from its state, over a catalogue that may have grown to `n_items`."""
    return Widened(MEMBERS[name].kind.restore(state), n_items)


@dataclass(frozen=True)
class Widened(Generator):
    """A generator that was fitted on the first items of a catalogue: silent on those that came since."""

    name: ClassVar[str] = "widened"
    inner: Generator
    n_items: int

    @classmethod
    def fit(cls, histories: Histories, shelf: Shelf, **settings: Any) -> Generator:
        """Not fitted: it widens what was."""
        raise NotImplementedError

    def said(self, histories: Histories) -> Scores:
        """What the inner one says of the items it knows, 0 elsewhere."""
        known = self.inner.items
        told = self.inner.said(replace(histories.keep(histories.items < known), n_items=known))
        return told if known == self.n_items else told.widened(self.n_items)

    def state(self) -> State:
        """That of the inner one."""
        return self.inner.state()

    @classmethod
    def restore(cls, state: State) -> Generator:
        """Not restored: see the module's `restore`."""
        raise NotImplementedError


def tune(name: str, histories: Histories, shelf: Shelf, judge: Callable[[Generator], float]) -> Settings:
    """The settings of the grid that `judge` likes best (the greater the better, of equal ones the first)."""
    grid = MEMBERS[name].grid
    if len(grid) == 1:
        return grid[0]
    late = MEMBERS[name].kind.late
    fitted: dict[str, Generator] = {}

    def gain(settings: Settings) -> float:
        # What acts on a history when it is scored needs no new fit, and the fit is what takes the time.
        early = repr({key: value for key, value in settings.items() if key not in late})
        if early not in fitted:
            fitted[early] = fit(name, histories, shelf, settings)
        changed: Any = {key: value for key, value in settings.items() if key in late}
        return judge(replace(cast(Any, fitted[early]), **changed))

    return max(grid, key=gain)
