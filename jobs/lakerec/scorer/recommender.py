"""Generators, retriever and final ranker as one model: from a person's events to a ranked list of candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lakerec import generators, metrics
from lakerec.config import Ranker as Settings
from lakerec.errors import ModelError
from lakerec.features import Candidates, Stock, candidates, feature_names
from lakerec.generators.base import Generator, Shelf
from lakerec.generators.blend import blended, fitted_weights, standardised
from lakerec.generators.scores import Allowed, Scores, Whole
from lakerec.histories import Floats, Histories
from lakerec.protocols import Part
from lakerec.scorer.ranker import Lessons, Ranker

RETRIEVER, BLEND = "retriever", "blend"
SCORES, PEOPLE = 2**22, 64  # of one generator held at a time, 16 MiB in float32, and of so many people at most
LARGE = 20_000  # items, beyond which no source's scores are written down as a whole
BLENDED = 1000  # people that the blend's weights are fitted on
Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]  # person, item (c,)


class Scorer(Protocol):
    """Scores of the whole catalogue."""

    def score(self, histories: Histories) -> Floats:
        """(users, items) float32, the greater the better."""
        ...


class Source(Scorer, Protocol):
    """What a recommender asks of a retriever, as of a generator."""

    def said(self, histories: Histories) -> Scores:
        """The same, without an array of people x items where items are many."""
        ...


@dataclass(frozen=True)
class Ranked:
    """Candidates with the ranker's score (n,) float32."""

    found: Candidates
    score: Floats

    def lists(self, people: int, k: int) -> NDArray[np.int64]:
        """(people, k) items, best first, ties by item; -1 behind the last."""
        return self.tops(people, k)[0]

    def tops(self, people: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """items (people, k), best first, ties by item, and their places among the candidates; -1 behind the last."""
        order = np.lexsort((self.found.item, -self.score, self.found.person))
        person = self.found.person[order]
        place = np.arange(len(order)) - np.searchsorted(person, np.arange(people))[person]
        items, places = (np.full((people, k), -1, dtype=np.int64) for _ in range(2))
        kept = place < k
        items[person[kept], place[kept]] = self.found.item[order][kept]
        places[person[kept], place[kept]] = order[kept]
        return items, places

    def ranks(self, part: Part) -> NDArray[np.float64]:
        """(t,) the mean rank of each target among its person's candidates; infinite where it is none or scored nan."""
        ranks = np.full(len(part.target_items), np.inf)
        bounds = np.searchsorted(self.found.person, np.arange(len(part) + 1))
        for place, (user, item) in enumerate(zip(part.target_users, part.target_items, strict=True)):
            span = slice(bounds[user], bounds[user + 1])
            where = np.flatnonzero(self.found.item[span] == item)
            score = self.score[span]
            if len(where) and not np.isnan(mine := score[where[0]]):
                ranks[place] = 1 + (score > mine).sum() + ((score == mine).sum() - 1) / 2
        return ranks


@dataclass(frozen=True)
class FirstStage:
    """Fitted generators, the retriever, and what is known of the items: candidates and their features."""

    members: Mapping[str, Generator]
    retriever: Source | None
    shelf: Shelf
    stock: Stock
    depth: int
    repeats: bool
    hidden: tuple[int, ...] = ()

    @property
    def sources(self) -> dict[str, Source]:
        """All of them by name, in the order of Candidates.source."""
        return {**self.members, **({RETRIEVER: self.retriever} if self.retriever is not None else {})}

    @property
    def names(self) -> list[str]:
        """The sources' names."""
        return list(self.sources)

    def scores(self, histories: Histories) -> dict[str, Scores]:
        """What each source says."""
        return {name: self.scores_of(name, histories) for name in self.sources}

    def scores_of(self, name: str, histories: Histories) -> Scores:
        """What one source says."""
        source = self.sources[name]
        return source.said(histories) if histories.n_items > LARGE else Whole(source.score(histories))

    def allowed(
        self, histories: Histories, on_shelf: NDArray[np.bool_] | None = None, without: Pairs | None = None
    ) -> Allowed:
        """What may be recommended to these people, where items (items,) are on the shelf, without pairs."""
        return allowed(histories, self.repeats, self.hidden, on_shelf, without)

    def blocks(self, histories: Histories) -> Iterator[tuple[NDArray[np.int64], Histories]]:
        """People in blocks whose scores fit memory as arrays, or are not written down: their places and events."""
        size = PEOPLE if histories.n_items > LARGE else fitting(histories)
        for people in histories.blocks(size):
            yield people, histories.select(people)

    def candidates(self, histories: Histories, allowed: Allowed | None = None) -> Candidates:
        """What the sources nominate for these people, with features."""
        given = self.allowed(histories) if allowed is None else allowed
        return candidates(self.scores(histories), histories, given, self.shelf, self.stock, self.depth)


def fitting(histories: Histories) -> int:
    """How many people's scores of one source are held at a time."""
    return min(PEOPLE, max(1, SCORES // max(histories.n_items, 1)))


def allowed(
    histories: Histories,
    repeats: bool,
    hidden: Sequence[int] = (),
    on_shelf: NDArray[np.bool_] | None = None,
    without: Pairs | None = None,
) -> Allowed:
    """Everything on the shelf, but what a person had (without repeats), or had by an event of a hidden type.

    without: further pairs (person, item).
    """
    shelf = np.ones(histories.n_items, dtype=np.bool_) if on_shelf is None else on_shelf
    gone = np.isin(histories.types, hidden) if repeats else np.ones(len(histories.items), dtype=np.bool_)
    person, item = without or (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    persons = np.append(histories.users[gone], person).astype(np.int64)
    return Allowed.of(len(histories), shelf, persons, np.append(histories.items[gone], item).astype(np.int64))


def first_stage(
    ground: Histories,
    shelf: Shelf,
    settings: Mapping[str, generators.Settings],
    retriever: Source | None,
    ranker: Settings,
    repeats: bool,
    stock: Stock | None = None,
    hidden: Sequence[int] = (),
) -> FirstStage:
    """Fit each generator that `settings` names on what is known at a cut."""
    members = {name: generators.fit(name, ground, shelf, chosen) for name, chosen in settings.items()}
    return FirstStage(members, retriever, shelf, stock or Stock.of(ground), ranker.depth, repeats, tuple(hidden))


@dataclass(frozen=True)
class Recommender:
    """The first stage and the ranker that learned from it."""

    stage: FirstStage
    ranker: Ranker

    def at(self, stage: FirstStage) -> Recommender:
        """The same ranker over sources that were fitted on more."""
        return replace(self, stage=stage)

    def rank(
        self,
        histories: Histories,
        on_shelf: NDArray[np.bool_] | None = None,
        without: Pairs | None = None,
        unseen: NDArray[np.int64] | None = None,
    ) -> Ranked:
        """Candidates of everyone with their scores: items (items,) on the shelf, without pairs (person, item).

        unseen: persons (people,) across folds, each scored by the boosters that did not learn from that person.
        """
        parts = []
        for people, mine in self.stage.blocks(histories):
            person, item = without or (people[:0], people[:0])
            inside = (person >= people[0]) & (person <= people[-1])
            given = self.stage.allowed(mine, on_shelf, (person[inside] - people[0], item[inside]))
            found = self.stage.candidates(mine, given)
            person = people[found.person]
            if unseen is None:
                score = self.ranker.score(found.features)
            else:
                score = self.ranker.unseen(found.features, unseen[person])
            # The features are left behind, they are the bulk.
            parts.append((replace(found, person=person, features=np.zeros((0, 0), dtype=np.float32)), score))
        return _joined(parts)


def _joined(parts: Sequence[tuple[Candidates, Floats]]) -> Ranked:
    """Blocks as one, without features."""
    columns = ([getattr(found, name) for found, _ in parts] for name in ("person", "item", "source"))
    person, item, source = (np.concatenate([np.zeros(0, dtype=np.int64), *column]) for column in columns)
    score = np.concatenate([np.zeros(0, dtype=np.float32), *(score for _, score in parts)])
    return Ranked(Candidates(person, item, np.zeros((0, 0), dtype=np.float32), source), score)


def lessons(stage: FirstStage, part: Part, settings: Settings, on_shelf: NDArray[np.bool_] | None = None) -> Lessons:
    """The candidates of a part's people, labelled, a sample of the negatives."""
    found = [Lessons.none(len(feature_names(stage.names)))]
    for people, mine in stage.blocks(part.histories):
        made = stage.candidates(mine, stage.allowed(mine, on_shelf))
        positives = targeted(part, people[made.person], made.item, mine.n_items)
        found.append(Lessons.of(made, positives, part.people[people], settings.negatives, settings.seed))
    return Lessons.joined(found)


def without_each(
    stage: FirstStage,
    learned: Lessons,
    part: Part,
    settings: Settings,
    threads: int,
    on_shelf: NDArray[np.bool_] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Ranks (t,) by the whole ranker under "" and, under each source's name, by one refitted without its features."""
    names, blocks = feature_names(stage.names), []
    for people, mine in stage.blocks(part.histories):
        found = stage.candidates(mine, stage.allowed(mine, on_shelf))
        blocks.append(replace(found, person=people[found.person]))
    ranks = {}
    for source in ["", *stage.names]:
        gone = {f"{source}_{kind}" for kind in ("score", "z", "rank")}
        kept = [place for place, name in enumerate(names) if name not in gone]
        fewer = replace(learned, features=learned.features[:, kept])
        ranker = Ranker.fit(fewer, [names[place] for place in kept], settings, threads)
        ranks[source] = _joined([(block, ranker.score(block.features[:, kept])) for block in blocks]).ranks(part)
    return ranks


def targeted(part: Part, person: NDArray, item: NDArray, n_items: int) -> NDArray[np.bool_]:
    """(n,) whether an item is a target of the person (a place in the part)."""
    return np.isin(person * n_items + item, part.target_users * n_items + part.target_items.astype(np.int64))


def learn(
    made: Sequence[Lessons],
    names: Sequence[str],
    settings: Settings,
    threads: int,
    say: Callable[[str], None] = print,
) -> Ranker:
    """The ranker from the lessons of several cuts; names: of their sources."""
    joined, features = Lessons.joined(made), feature_names(names)
    say(f"final ranker: {joined.queries} queries, {len(joined.labels)} candidates, {len(features)} features")
    return Ranker.fit(joined, features, settings, threads)


def tuned(
    ground: Histories,
    shelf: Shelf,
    part: Part,
    names: Sequence[str],
    repeats: bool,
    on_shelf: NDArray[np.bool_] | None = None,
    hidden: Sequence[int] = (),
) -> dict[str, generators.Settings]:
    """For each generator the settings with the best NDCG@20 over the whole catalogue on `part`."""

    def judge(generator: Generator) -> float:
        ranks = full_ranks(generator, part, repeats, on_shelf, hidden)
        return float(np.nanmean(metrics.by_user(ranks, part.target_starts)["ndcg@20"]))

    return {name: generators.tune(name, ground, shelf, judge) for name in names}


def full_ranks(
    source: Scorer,
    part: Part,
    repeats: bool,
    on_shelf: NDArray[np.bool_] | None = None,
    hidden: Sequence[int] = (),
) -> NDArray[np.float64]:
    """(t,) the rank of each target in the whole catalogue (items on the shelf) by one source's scores."""
    ranks = np.empty(len(part.target_items))
    for people in part.histories.blocks(max(1, SCORES // max(part.histories.n_items, 1))):
        mine = part.histories.select(people)
        mask = allowed(mine, repeats, hidden, on_shelf).mask
        scores = np.where(mask, source.score(mine), np.float32(-np.inf))
        span = slice(part.target_starts[people[0]], part.target_starts[people[-1] + 1])
        ranks[span] = metrics.mean_ranks(scores, part.target_users[span] - people[0], part.target_items[span])
    return ranks


def source_ranks(
    stage: FirstStage, part: Part, on_shelf: NDArray[np.bool_], weights: Mapping[str, float] | None = None
) -> dict[str, NDArray[np.float64]]:
    """Ranks (t,) as full_ranks by each source, and by their blend where there are weights; infinite by broken scores.

    weights: of sources by name, as `blend_weights` gives them.
    """
    names = [*stage.names, *([BLEND] if weights else [])]
    ranks = {name: np.empty(len(part.target_items)) for name in names}
    for people in part.histories.blocks(fitting(part.histories)):
        mine = part.histories.select(people)
        mask = stage.allowed(mine, on_shelf).mask
        scores = {name: source.score(mine) for name, source in stage.sources.items()}
        span = slice(part.target_starts[people[0]], part.target_starts[people[-1] + 1])
        targets = part.target_users[span] - people[0], part.target_items[span]
        blend = {BLEND: _blend(scores, weights)} if weights else {}
        for name, score in {**scores, **blend}.items():
            ranks[name][span] = _sound_ranks(np.where(mask, score, np.float32(-np.inf)), *targets)
    return {name: np.full_like(found, np.inf) if np.isinf(found).any() else found for name, found in ranks.items()}


def _sound_ranks(scores: Floats, users: NDArray[np.int64], items: NDArray[np.int32]) -> NDArray[np.float64]:
    try:
        return metrics.mean_ranks(scores, users, items)
    except ModelError:
        return np.full(len(items), np.inf)


def _blend(scores: Mapping[str, Floats], weights: Mapping[str, float]) -> Floats:
    """(users, items) the blend of those sources that weigh something."""
    some = {name: weight for name, weight in weights.items() if weight}
    return blended([standardised(scores[name]) for name in some], np.array(list(some.values())))


def blend_weights(stage: FirstStage, part: Part, seed: int, on_shelf: NDArray[np.bool_]) -> dict[str, float]:
    """Each generator's weight in their blend, fitted on some people of a part, by seed; none where no target counts."""
    few = part.some(min(BLENDED, max(1, SCORES // max(part.histories.n_items, 1))), seed)
    mask = stage.allowed(few.histories, on_shelf).mask
    inside = mask[few.target_users, few.target_items]
    people, users = np.unique(few.target_users[inside], return_inverse=True)
    if not len(people):
        return {}
    mine = few.histories.select(people)
    scores = [standardised(member.score(mine)) for member in stage.members.values()]
    found = fitted_weights(scores, mask[people], users, few.target_items[inside])
    return dict(zip(stage.members, found.tolist(), strict=True))
