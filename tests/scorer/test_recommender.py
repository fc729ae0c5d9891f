"""First stage and ranker together: masks, ranks over the whole catalogue, lists, and what a person is taught by."""

from dataclasses import replace

import numpy as np
import pytest

from lakerec import generators
from lakerec.config import Ranker as Settings
from lakerec.errors import NotEnoughDataError
from lakerec.features import Candidates, Stock
from lakerec.generators.base import Shelf
from lakerec.histories import Histories
from lakerec.protocols import GlobalTime, Part
from lakerec.scorer import recommender as module
from lakerec.scorer.recommender import (
    Ranked,
    Recommender,
    allowed,
    first_stage,
    full_ranks,
    learn,
    lessons,
    targeted,
    tuned,
)

PEOPLE, ITEMS, DAYS = 40, 16, 60
KINDS = 3
QUICK = Settings(depth=6, negatives=8, folds=2, rounds=15, patience=5, min_leaf=5, learning_rate=0.2)
MEMBERS = {name: generators.MEMBERS[name].grid[0] for name in ("popular", "personal", "ease", "markov_1")}
SILENT = Shelf(np.zeros((ITEMS, 2), np.float32))


def make_world(seed=0, people=PEOPLE, each=12):
    """People of four tastes choose mostly among the four items of theirs; an event's type is the item's remainder."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(people), each)
    own = rng.random(len(users)) < 0.85
    items = np.where(own, 4 * (users % 4) + rng.integers(0, 4, len(users)), rng.integers(0, ITEMS, len(users)))
    times = np.sort(rng.uniform(0, DAYS, (people, each)), axis=1).ravel()
    weights = rng.choice([1.0, 5.0, -5.0], len(users), p=[0.6, 0.3, 0.1])
    return Histories.of_events(users, items, times, people, ITEMS, weights, items % KINDS)


WORLD = make_world()
SPLIT = GlobalTime(cut=45.0, horizon=15.0, repeats=True).split(WORLD)
GROUND, PART = SPLIT.train, SPLIT.test


def part_of(histories, *targets):
    """A part: the targets of each person of `histories`."""
    starts = np.append(0, np.cumsum([len(wanted) for wanted in targets])).astype(np.int64)
    flat = np.array([item for wanted in targets for item in wanted], dtype=np.int32)
    return Part(histories, np.arange(len(targets)), starts, flat)


def stage_of(ground=GROUND, repeats=True, hidden=(), settings=None, depth=QUICK.depth):
    """A first stage of a few generators."""
    ranker = QUICK.model_copy(update={"depth": depth})
    return first_stage(ground, SILENT, settings or MEMBERS, None, ranker, repeats, hidden=hidden)


class Said:
    """A source that says fixed scores, a row for each person by the number of their events."""

    def __init__(self, table):
        self.table = np.asarray(table, dtype=np.float32)

    def score(self, histories):
        return self.table[histories.lengths % len(self.table)]


@pytest.fixture(scope="module")
def fitted():
    stage = stage_of()
    learned = lessons(stage, SPLIT.valid, QUICK)
    return Recommender(stage, learn([learned], stage.names, QUICK, 1, lambda _: None)), learned


@pytest.fixture(params=["one block", "three people a block"])
def blocks(request, monkeypatch):
    """All people at once, and few at a time."""
    if request.param != "one block":
        monkeypatch.setattr(module, "SCORES", 3 * ITEMS)


# --- masks --------------------------------------------------------------------------------------------------


def test_what_may_be_recommended_by_repeats_and_hidden_types():
    users, items, kinds = np.array([0, 0, 1, 0]), np.array([1, 2, 2, 1]), np.array([0, 1, 1, 2])
    known = Histories.of_events(users, items, np.arange(4.0), 3, 4, types=kinds)
    masks = {
        (True, ()): [],
        (True, (1,)): [(0, 2), (1, 2)],
        (True, (2,)): [(0, 1)],
        (True, (0, 1)): [(0, 1), (0, 2), (1, 2)],
        (False, ()): [(0, 1), (0, 2), (1, 2)],
        (False, (1,)): [(0, 1), (0, 2), (1, 2)],
    }
    for (repeats, hidden), gone in masks.items():
        mask = allowed(known, repeats, hidden).mask
        assert list(zip(*np.nonzero(~mask), strict=True)) == gone, (repeats, hidden)


# --- ranks over the whole catalogue -------------------------------------------------------------------------


def slow_ranks(source, part, repeats, on_shelf, hidden):
    """The rank of each target by loops: masked last, ties in the middle."""
    found = []
    for user, item in zip(part.target_users, part.target_items, strict=True):
        mine = part.histories.select([user])
        row = source.score(mine)[0].astype(float)
        for event, kind in zip(mine.items, mine.types, strict=True):
            if not repeats or kind in hidden:
                row[event] = -np.inf
        row[~on_shelf] = -np.inf
        above, tied = (row > row[item]).sum(), (row == row[item]).sum()
        found.append(above + (tied + 1) / 2 if np.isfinite(row[item]) else len(row))
    return found


@pytest.mark.parametrize(("repeats", "hidden"), [(True, ()), (True, (1,)), (False, ())])
@pytest.mark.parametrize("name", ["popular", "ease"])
def test_full_ranks_equal_a_naive_computation(blocks, name, repeats, hidden):
    source = generators.fit(name, GROUND, SILENT)
    shelf = np.arange(ITEMS) % 5 > 0
    found = full_ranks(source, PART, repeats, shelf, hidden)
    assert found.tolist() == slow_ranks(source, PART, repeats, shelf, hidden)
    assert len(np.unique(found)) > 4


def test_full_ranks_of_people_without_targets_are_none():
    known = WORLD.select([0, 1, 2])
    part = part_of(known, [], [3, 5], [])
    found = full_ranks(Said([np.arange(ITEMS)]), part, True)
    assert found.tolist() == [ITEMS - 3, ITEMS - 5]
    assert len(full_ranks(Said([np.arange(ITEMS)]), part_of(known, [], [], []), True)) == 0


# --- lists --------------------------------------------------------------------------------------------------


def ranked_of(rows):
    """Ranked candidates (person, item, score)."""
    person, item, score = (np.array([row[n] for row in rows]) for n in range(3))
    found = Candidates(person.astype(int), item.astype(int), np.zeros((0, 0), np.float32), np.zeros(len(rows), int))
    return Ranked(found, score.astype(np.float32))


ROWS = [(0, 3, 0.5), (0, 1, 0.5), (0, 7, 0.9), (0, 2, 0.1), (2, 9, 0.0), (2, 4, 0.0)]


def test_a_list_is_the_best_first_ties_by_item():
    ranked = ranked_of(ROWS)
    items, places = ranked.tops(4, 3)
    assert items.tolist() == [[7, 1, 3], [-1] * 3, [4, 9, -1], [-1] * 3]
    assert places.tolist() == [[2, 1, 0], [-1] * 3, [5, 4, -1], [-1] * 3]
    assert np.array_equal(ranked.lists(4, 3), items)
    assert ranked.lists(4, 1).tolist() == [[7], [-1], [4], [-1]]
    assert ranked_of([]).lists(2, 2).tolist() == [[-1, -1], [-1, -1]]


def test_the_rank_of_a_target_among_its_persons_candidates_and_infinite_where_it_is_none():
    part = part_of(WORLD.select([0, 1, 2]), [7, 3, 1, 2, 5], [7], [4])
    assert ranked_of(ROWS).ranks(part).tolist() == [1, 2.5, 2.5, 4, np.inf, np.inf, 1.5]
    assert ranked_of([]).ranks(part).tolist() == [np.inf] * 7


def test_everybodys_candidates_in_one_go_or_in_blocks(fitted, blocks):
    recommender, _ = fitted
    whole = recommender.stage
    found = whole.candidates(PART.histories)
    ranked = recommender.rank(PART.histories)
    assert np.array_equal(ranked.found.person, found.person) and np.array_equal(ranked.found.item, found.item)
    assert np.array_equal(ranked.found.source, found.source)
    assert np.allclose(ranked.score, recommender.ranker.score(found.features), atol=1e-5)


def test_a_large_catalogue_is_ranked_and_taught_as_a_small_one(fitted, monkeypatch):
    recommender, learned = fitted
    shelf, pairs = np.arange(ITEMS) != 5, (np.array([0, 3, 3]), np.array([1, 2, 9]))
    small = recommender.rank(PART.histories, shelf, pairs)
    monkeypatch.setattr(module, "LARGE", ITEMS - 1)
    found = recommender.rank(PART.histories, shelf, pairs)
    assert np.array_equal(found.found.person, small.found.person) and np.array_equal(found.found.item, small.found.item)
    assert np.allclose(found.score, small.score, atol=1e-4)
    again = lessons(recommender.stage, SPLIT.valid, QUICK)
    assert np.array_equal(again.labels, learned.labels)
    assert np.allclose(again.features, learned.features, atol=1e-4, equal_nan=True)


def test_nothing_off_the_shelf_and_no_pair_that_is_not_to_be_shown_is_ranked(fitted, blocks):
    recommender, _ = fitted
    shelf = np.arange(ITEMS) != 5
    before = recommender.rank(PART.histories, shelf)
    pairs = np.stack([before.found.person[::3], before.found.item[::3]])
    after = recommender.rank(PART.histories, shelf, (pairs[0], pairs[1]))
    assert 5 in recommender.rank(PART.histories).found.item and 5 not in before.found.item
    shown = set(zip(after.found.person.tolist(), after.found.item.tolist(), strict=True))
    assert shown and not shown & set(zip(*pairs.tolist(), strict=True))
    nothing = np.zeros(0, dtype=np.int64)
    same = recommender.rank(PART.histories, shelf, (nothing, nothing))
    assert np.array_equal(same.found.item, before.found.item)


def test_what_a_person_had_by_a_hidden_type_is_never_a_candidate():
    stage = stage_of(hidden=(1, 2))
    found = stage.candidates(PART.histories)
    had = PART.histories.keep(np.isin(PART.histories.types, (1, 2))).matrix()
    assert len(found) and not np.asarray(had[found.person, found.item]).any()
    everything = stage_of()
    free = everything.candidates(PART.histories)
    assert np.asarray(had[free.person, free.item]).any()


def test_nobody_to_rank_is_no_fault(fitted):
    ranked = fitted[0].rank(WORLD.select([]))
    assert len(ranked.found) == 0 and ranked.lists(0, 3).shape == (0, 3)


def test_a_person_without_events_gets_what_is_popular(fitted):
    nothing = np.zeros(0, dtype=np.int64)
    nobody = Histories.of_events(nothing, nothing, np.zeros(0), 1, ITEMS, at=45.0)
    ranked = fitted[0].rank(nobody)
    assert set(ranked.found.source) == {list(MEMBERS).index("popular")} and len(ranked.found) == QUICK.depth


def test_a_source_that_is_no_generator_stands_last(fitted):
    stage = replace(stage_of(), retriever=Said([np.arange(ITEMS)]))
    assert stage.names == [*MEMBERS, "retriever"] and list(stage.scores(PART.histories)) == stage.names
    found = stage.candidates(PART.histories)
    assert set(range(ITEMS - 6, ITEMS)) <= set(found.item[found.person == 0])


# --- learning -----------------------------------------------------------------------------------------------


def test_a_lesson_labels_the_targets_among_the_candidates(blocks):
    stage, part = stage_of(), SPLIT.valid
    found = stage.candidates(part.histories)
    wanted = {(int(p), int(i)) for p, i in zip(part.target_users, part.target_items, strict=True)}
    among = [(int(p), int(i)) for p, i in zip(found.person, found.item, strict=True)]
    told = targeted(part, found.person, found.item, ITEMS)
    assert told.tolist() == [pair in wanted for pair in among] and 0 < told.sum() < len(told)
    learned = lessons(stage, part, QUICK)
    assert learned.labels.sum() == told.sum()
    assert set(learned.person) == {int(part.people[person]) for person, _ in wanted & set(among)}


def test_an_item_off_the_shelf_is_in_no_lesson():
    stage, part, shelf = stage_of(), SPLIT.valid, np.arange(ITEMS) % 4 != 0
    wide = QUICK.model_copy(update={"negatives": 10_000})
    learned = lessons(stage, part, wide, shelf)
    found = stage.candidates(part.histories, stage.allowed(part.histories, shelf))
    kept = np.isin(found.person, np.flatnonzero(np.isin(part.people, learned.person)))
    assert np.array_equal(learned.features, found.features[kept], equal_nan=True)
    assert len(learned.labels) < len(lessons(stage, part, wide).labels)


def test_the_ranker_learns_from_every_cut(fitted):
    recommender, learned = fitted
    more, lines = lessons(stage_of(), PART, QUICK), []
    both = learn([learned, more], recommender.stage.names, QUICK, 1, lines.append)
    assert lines[0].startswith(f"final ranker: {learned.queries + more.queries} queries, ")
    assert both.names == recommender.ranker.names
    fewer = lessons(stage_of(), PART, QUICK, np.arange(ITEMS) < 8)
    assert 0 < fewer.queries < more.queries


def test_people_are_scored_by_the_boosters_that_did_not_learn_from_them(fitted):
    recommender, _ = fitted
    part, stage = SPLIT.valid, recommender.stage
    seen = recommender.rank(part.histories)
    unseen = recommender.rank(part.histories, unseen=part.people)
    made = stage.candidates(part.histories)
    assert np.array_equal(unseen.score, recommender.ranker.unseen(made.features, part.people[made.person]))
    assert np.array_equal(unseen.found.item, seen.found.item) and not np.allclose(unseen.score, seen.score)


def test_the_ranker_is_better_than_what_is_popular(fitted):
    recommender, _ = fitted
    told = recommender.at(stage_of(WORLD.until(45.0)))
    assert told.ranker is recommender.ranker
    mine = np.minimum(told.rank(PART.histories).ranks(PART), ITEMS)
    popular = full_ranks(generators.fit("popular", WORLD.until(45.0), SILENT), PART, True)
    assert mine.mean() < 0.75 * popular.mean()


@pytest.mark.parametrize("targets", [[], [[3]]], ids=["no targets", "one person"])
def test_too_few_people_to_learn_from_are_named(targets):
    known = WORLD.select(range(len(targets)))
    with pytest.raises(NotEnoughDataError, match="two people"):
        learn([lessons(stage_of(), part_of(known, *targets), QUICK)], stage_of().names, QUICK, 1, lambda _: None)


def test_a_catalogue_of_one_item_has_nothing_to_learn():
    users = np.arange(6)
    known = Histories.of_events(users, np.zeros(6, int), np.arange(6.0), 6, 1)
    stage = first_stage(known, Shelf(np.zeros((1, 2), np.float32)), MEMBERS, None, QUICK, True)
    with pytest.raises(NotEnoughDataError, match="two people"):
        learn([lessons(stage, part_of(known, *[[0]] * 6), QUICK)], stage.names, QUICK, 1, lambda _: None)


def test_settings_are_those_that_rank_the_targets_best():
    names = ["trending", "item_knn", "popular"]
    found = tuned(GROUND, SILENT, SPLIT.valid, names, True)
    assert set(found) == set(names) and found["popular"] == generators.MEMBERS["popular"].grid[0]
    for name in names[:2]:
        grid = generators.MEMBERS[name].grid
        gains = []
        for settings in grid:
            ranks = full_ranks(generators.fit(name, GROUND, SILENT, settings), SPLIT.valid, True)
            gains.append(np.nanmean(module.metrics.by_user(ranks, SPLIT.valid.target_starts, (20,))["ndcg@20"]))
        assert found[name] == grid[int(np.argmax(gains))]


def test_the_stock_of_a_stage_is_that_of_its_ground_unless_told():
    assert np.array_equal(stage_of().stock.first_seen, Stock.of(GROUND).first_seen)
    stock = Stock.of(WORLD)
    given = first_stage(GROUND, SILENT, MEMBERS, None, QUICK, True, stock)
    assert given.stock is stock
