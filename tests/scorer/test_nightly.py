"""A night: what it writes, that nothing of it has seen its targets, and that it goes on where it was killed."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import nights
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nights import CUTS, ITEMS, LAST, PEOPLE, WEIGHTS, make_config, make_events, make_examples, make_items, make_world

from lakerec import generators, metrics
from lakerec.errors import ConfigError, ModelError, NotEnoughDataError
from lakerec.features import Candidates
from lakerec.generators.popularity import DailyCounts, PatternPopular
from lakerec.scorer import bundle, nightly
from lakerec.scorer.artefact import checked
from lakerec.scorer.bundle import Bundle
from lakerec.scorer.evaluation import recommender_at
from lakerec.scorer.final import Shortlist
from lakerec.scorer.nightly import FEATURES, Night, cuts_of, ranker_features, train
from lakerec.scorer.prediction import Predictor
from lakerec.scorer.ranker import Ranker
from lakerec.scorer.recommender import Ranked, full_ranks
from lakerec.scorer.retriever import Retriever
from lakerec.world import day_number

TEST_CUT = CUTS[-1][0]
LEARNED = ("recommender/evaluated", "recommender/retriever-learned-0", "recommender/retriever-evaluated-0")
ALONE = ("recommender/booster", "recommender/recipe", "recommender/items", "recommender/nodes")


SCRIPT = """
import os, signal, sys; sys.path.insert(0, {tests!r})
from pathlib import Path
import nights

class Dying(list):
    def append(self, line):
        if line.startswith("epoch 3/3"):
            os.kill(os.getpid(), signal.SIGKILL)

nights.run(Path({out!r}), nights.make_config({tiny!r}), lines=Dying())
"""


@pytest.fixture(scope="module", autouse=True)
def dying(tiny, tmp_path_factory):
    """A night that is killed in its second retriever; begun ahead, since a process imports for seconds."""
    out = tmp_path_factory.mktemp("dying") / "v1"
    script = SCRIPT.format(tests=str(Path(__file__).parent), tiny=str(tiny), out=str(out))
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield child, out
    child.kill()
    child.wait()


def quiet(_):
    pass


def night_of(config, world=None, examples=None, last=LAST):
    """A night that is not trained yet."""
    world = world or make_world()
    return Night(world, cuts_of(world, make_examples() if examples is None else examples), last, config, 1, quiet)


def per_user(config, count):
    """The same with slates of another size."""
    return config.model_copy(update={"candidates": config.candidates.model_copy(update={"per_user": count})})


@pytest.fixture(scope="module")
def planned(tiny):
    return night_of(make_config(tiny))


# --- what it writes -----------------------------------------------------------------------------------------


def test_the_artefact_is_whole_and_says_how_it_was_made(night, tiny):
    out, lines = night
    manifest = checked(out)
    assert (manifest.version, manifest.feature_names, manifest.language_model) == ("v1", FEATURES, False)
    opened = Bundle.open(out)
    assert opened.items == ITEMS and opened.nodes == make_world().nodes
    recipe = opened.recipe
    assert list(recipe.settings) == list(make_config(tiny).candidates.generators)
    assert recipe.days == {"learned": str(CUTS[0][0]), "evaluated": str(TEST_CUT), "serving": str(LAST)}
    assert (recipe.depth, recipe.repeats, recipe.hidden, recipe.kinds) == (10, True, [], ["buy", "return", "view"])
    assert set(recipe.report) >= {"gains", "valid_ndcg@10", "sources", "queries", "blend"}
    assert recipe.blend == recipe.report["blend"] and set(recipe.blend) == set(recipe.settings)
    assert replace(recipe, report={}).blend == {}
    assert set(recipe.report["sources"]) == set(recipe.settings) and sum(recipe.report["gains"].values()) > 0.99
    assert any(line.startswith("final ranker: ") for line in lines)
    fitted = {name for name in recipe.settings if not generators.MEMBERS[name].kind.fresh}
    for role in ("evaluated", "serving"):
        assert {file.stem for file in (out / "recommender" / role).iterdir()} == fitted


def test_nothing_but_the_artefact_is_left(night):
    assert [file.name for file in night[0].parent.iterdir()] == ["v1"]


def test_the_planted_tastes_are_found(night):
    world, opened = make_world(), Bundle.open(night[0])
    (cut,) = cuts_of(world, make_examples(cuts=CUTS[-1:]))
    recommender = recommender_at(world, cut, opened)
    mine = recommender.rank(cut.part.histories, cut.on_shelf).ranks(cut.part)
    popular = full_ranks(recommender.stage.members["popular"], cut.part, True, cut.on_shelf)
    gain = [np.nanmean(metrics.by_user(ranks, cut.part.target_starts)["ndcg@10"]) for ranks in (mine, popular)]
    assert gain[0] > gain[1] + 0.15
    lists = recommender.rank(cut.part.histories, cut.on_shelf).lists(len(cut.part), 3)
    own = [
        np.mean([item // nights.EACH == person % nights.TASTES for item in row])
        for person, row in zip(cut.part.people, lists, strict=True)
    ]
    assert np.mean(own) > 0.7


def test_some_histories_are_longer_than_the_retrievers_window(night):
    assert Retriever.load(night[0] / "recommender" / "retriever-serving-0").settings.window == 8
    assert make_world().known(CUTS[0][0]).chosen().lengths.max() > 8


def test_what_is_restored_ranks_as_what_was_fitted(night, planned):
    opened, cut = Bundle.open(night[0]), planned.test
    fitted = planned.stage(cut.day, cut.known, opened.retrievers("evaluated"))
    restored = recommender_at(planned.world, cut, opened)
    assert list(fitted.members) == list(restored.stage.members)
    for name, score in fitted.scores(cut.part.histories).items():
        assert np.allclose(restored.stage.scores(cut.part.histories)[name].whole(), score.whole(), atol=1e-6), name
    told = restored.rank(cut.part.histories, cut.on_shelf)
    found = fitted.candidates(cut.part.histories, fitted.allowed(cut.part.histories, cut.on_shelf))
    assert np.array_equal(told.found.item, found.item)
    assert np.allclose(told.score, restored.ranker.score(found.features), atol=1e-6)


def test_what_is_evaluated_counts_the_patterns_of_as_many_days_as_what_was_trained(night, planned):
    settings, cut = {"days": 5.0}, planned.test
    opened = Bundle.open(night[0])
    few = Bundle(opened.folder, replace(opened.recipe, settings=opened.recipe.settings | {"pattern": settings}))
    fitted = generators.fit("pattern", cut.known, planned.world.shelf(cut.day), settings)
    whole = generators.fit("pattern", cut.known, planned.world.shelf(cut.day), {})
    found = recommender_at(planned.world, cut, few).stage.members["pattern"]
    assert np.array_equal(found.shares, fitted.shares) and not np.array_equal(found.shares, whole.shares)


@pytest.mark.parametrize("listed", [True, False], ids=["catalogue", "events only"])
@pytest.mark.parametrize("name", [name for name, member in generators.MEMBERS.items() if member.kind.fresh])
def test_a_generator_made_of_the_days_shelf_says_what_the_fitted_one_says(name, listed):
    items = make_items()
    world = make_world(items=items if listed else items.iloc[:0])
    known, shelf = world.known(TEST_CUT), world.shelf(TEST_CUT)
    stock, patterns = world.stock(TEST_CUT, DailyCounts.of(known)), PatternPopular.fit(known, shelf).shares
    for settings in generators.MEMBERS[name].grid:
        fitted = generators.fit(name, known, shelf, settings).score(known)
        made = bundle.fresh(name, settings, shelf, stock, patterns).score(known)
        assert np.array_equal(made, fitted)


def test_an_artefact_without_a_recommender_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no recommender"):
        Bundle.open(tmp_path)


# --- no leak ------------------------------------------------------------------------------------------------


def planted(seed=3, count=120):
    """Events that arrive behind the test cut, some of which happened before it, of the same people and items."""
    rng = np.random.default_rng(seed)
    cut, last = day_number(TEST_CUT), day_number(LAST)
    arrived = rng.integers(cut + 1, last + 1, count)
    happened = np.minimum(rng.integers(cut - 2, last + 1, count), arrived) + 0.7
    who, what = rng.choice(PEOPLE, count), rng.choice(ITEMS, count)
    kinds = rng.choice(sorted(WEIGHTS), count)
    return list(zip(who, what, kinds, happened, arrived, strict=True))


@pytest.fixture(scope="module")
def tempted(tiny, tmp_path_factory):
    """The same night in a world with planted events behind the test cut, and other targets there."""
    events = make_events()
    rows = [*events.itertuples(index=False, name=None), *planted()]
    examples = make_examples()
    test = examples["split"] == "test"
    examples.loc[test, "targets"] = pd.Series(
        [np.array([ITEMS[0]], dtype=object)] * int(test.sum()), index=examples.index[test]
    )
    out = tmp_path_factory.mktemp("tempted") / "v1"
    nights.run(out, make_config(tiny), events=nights.frame_of(rows), examples=examples)
    return out, nights.frame_of(rows)


def test_what_comes_behind_the_test_cut_reaches_only_what_serves(night, tempted):
    before, after = (checked(out).files for out in (night[0], tempted[0]))
    assert before.keys() == after.keys()
    known = {name for name in before if name.startswith((*LEARNED, *ALONE))}
    assert {name.split("/")[1].split("-")[0].split(".")[0] for name in known} == {
        "evaluated",
        "retriever",
        "booster",
        "recipe",
        "items",
        "nodes",
    }
    assert {name for name in known if before[name] != after[name]} == set()
    serving = {
        name
        for name in before
        if name.startswith(("recommender/serving", "recommender/retriever-serving")) and not name.endswith(".json")
    }
    assert serving and all(before[name] != after[name] for name in serving)
    assert checked(night[0]).prior == checked(tempted[0]).prior


def test_the_test_targets_rank_the_same_whatever_comes_behind_the_cut(night, tempted):
    found, served = [], []
    for out, events in ((night[0], make_events()), tempted):
        world, opened = make_world(events), Bundle.open(out)
        (cut,) = cuts_of(world, make_examples(cuts=CUTS[-1:]))
        recommender = recommender_at(world, cut, opened)
        found.append(recommender.rank(cut.part.histories, cut.on_shelf).ranks(cut.part))
        stock = world.stock(LAST, DailyCounts.of(world.known(LAST)))
        serving = opened.recommender("serving", world.shelf(LAST), stock)
        served.append(serving.rank(cut.part.histories, cut.on_shelf).ranks(cut.part))
    assert np.array_equal(*found) and np.isfinite(found[0]).any()
    assert not np.array_equal(*served)


def test_a_cut_knows_what_had_arrived_and_its_targets_lie_behind_it(planned):
    assert [(cut.day, cut.split) for cut in planned.cuts] == CUTS
    for cut in planned.cuts:
        assert cut.known.times.max() < day_number(cut.day) + 1
        assert len(cut.part) == len(cut.part.people) and (np.diff(cut.part.target_starts) > 0).all()
        rows = make_examples(cuts=[(cut.day, cut.split)])
        wanted = {user: sorted(told) for user, told in zip(rows["user_id"], rows["targets"], strict=True)}
        named = zip(cut.part.people, cut.part.target_starts, cut.part.target_starts[1:], strict=False)
        assert wanted == {PEOPLE[p]: sorted(ITEMS[i] for i in cut.part.target_items[a:b]) for p, a, b in named}


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_slate_is_scored_by_who_has_not_seen_the_person(planned, night, split):
    opened = Bundle.open(night[0])
    ranker, cut = opened.ranker(), {"train": planned.train[0], "valid": planned.valid}[split]
    stage = planned.stage(cut.day, cut.known, opened.retrievers("learned"))
    slates = planned.slates(stage, ranker, cut, 100).slates
    assert [slate.slate_id for slate in slates] == [f"{PEOPLE[p]}@{cut.day}" for p in cut.part.people]
    histories = cut.part.histories
    made = stage.candidates(histories, stage.allowed(histories, cut.on_shelf))
    score = ranker.unseen(made.features, cut.part.people[made.person])
    made = Shortlist.of(Ranked(made, score), len(cut.part), 6)
    lists, scores = made.items, made.scores
    texts = planned.world.texts(cut.day)
    for row, slate in enumerate(slates):
        items = lists[row][lists[row] >= 0]
        assert (
            slate.texts == [texts[item] for item in items] and slate.history == cut.told[PEOPLE[cut.part.people[row]]]
        )
        assert np.allclose(slate.features, ranker_features(scores[row][: len(items)]))
        wanted = cut.part.target_items[cut.part.target_starts[row] : cut.part.target_starts[row + 1]]
        assert slate.labels.tolist() == [float(item in wanted) for item in items] and slate.targets == len(wanted)
    seen = nightly.shortlisted(stage, ranker, cut.part, 6, cut.on_shelf, unseen=False).scores
    assert not np.allclose(seen, scores, equal_nan=True)


def test_the_ranker_learns_from_the_validation_cut_too(planned, night):
    _, lines = night
    opened = Bundle.open(night[0])
    taught = planned.lessons(opened.retrievers("learned"))
    assert len(taught.stages) == len(planned.train) + 1 == len(planned.cuts) - 1
    queries = int(next(line for line in lines if line.startswith("final ranker: ")).split()[2])
    assert queries > taught.learned.queries == opened.recipe.report["queries"]
    assert taught.ranker.text() == opened.ranker().text()


def test_the_language_model_learns_from_slates_of_every_train_cut_also_without_a_positive(tiny, tmp_path, monkeypatch):
    """Their scores are of boosters that have not seen the person: else it would learn to trust them too much."""
    given = []
    monkeypatch.setattr(nightly.training, "train", lambda *arguments: given.extend(arguments))
    config = per_user(make_config(tiny, retriever={"enabled": False}), 1)
    nights.run(tmp_path / "v1", config)
    planned = night_of(config)
    taught = planned.lessons([])
    wanted = [
        slate
        for stage, cut in zip(taught.stages, planned.train, strict=False)
        for slate in planned.slates(stage, taught.ranker, cut, 30).slates  # of max_slates 60, from two cuts
    ]
    told, held = given[:2]
    assert [slate.slate_id for slate in told] == [slate.slate_id for slate in wanted]
    assert {slate.slate_id.split("@")[1] for slate in told} == {str(cut.day) for cut in planned.train}
    assert {bool(slate.labels.any()) for slate in told} == {True, False}
    assert all(np.array_equal(a.features, b.features) for a, b in zip(told, wanted, strict=True))
    assert {slate.slate_id.split("@")[1] for slate in held} == {str(planned.valid.day)}
    assert len(held) == len(planned.valid.part)


def test_slates_are_drawn_the_same_again_and_hold_their_own_targets(planned, night):
    opened = Bundle.open(night[0])
    ranker, cut = opened.ranker(), planned.valid
    stage = planned.stage(cut.day, cut.known, opened.retrievers("learned"))
    whole = {slate.slate_id: slate for slate in planned.slates(stage, ranker, cut, 100).slates}
    some, again = (planned.slates(stage, ranker, cut, 5).slates for _ in range(2))
    assert len(some) == 5 < len(whole) and [s.slate_id for s in some] == [s.slate_id for s in again]
    for slate in some:
        assert (slate.texts, slate.targets) == (whole[slate.slate_id].texts, whole[slate.slate_id].targets)
        assert np.array_equal(slate.labels, whole[slate.slate_id].labels)


# --- what was passed over -----------------------------------------------------------------------------------


def test_training_slates_hold_what_was_passed_over_at_its_true_place(tiny, planned, night):
    opened = Bundle.open(night[0])
    ranker, cut = opened.ranker(), planned.train[0]
    stage = planned.stage(cut.day, cut.known, opened.retrievers("learned"))
    whole = nightly.shortlisted(stage, ranker, cut.part, len(ITEMS), cut.on_shelf)
    examples, passed = make_examples(), {}
    for person, row, wanted in zip(cut.part.people, whole.items, cut.part.targets, strict=True):
        passed[PEOPLE[person]] = [
            item for item in row[[6, 9, 10, 11]][: 1 + person % 4] if item >= 0 and item not in wanted
        ]
    examples["passed_over"] = [
        [ITEMS[item] for item in passed[user]] if day == cut.day else []
        for day, user in zip(examples["cut_date"], examples["user_id"], strict=True)
    ]
    config = per_user(make_config(tiny, language_model="auto"), 8)
    shown, texts = night_of(config, planned.world, examples), planned.world.texts(cut.day)
    plain = shown.slates(stage, ranker, shown.train[0], 100).slates
    made = shown.teaching(stage, ranker, shown.train[0], 100)
    assert {slate.put_in for slate in made} == {0, 1, 2}
    for n, (slate, before) in enumerate(zip(made, plain, strict=True)):
        row, wanted, seen = whole.items[n], set(cut.part.targets[n].tolist()), passed[PEOPLE[cut.part.people[n]]]
        least = [place for place in range(7, -1, -1) if row[place] not in {*wanted, *seen}]
        below = [place for place in range(8, len(row)) if row[place] in seen][: min(2, len(least))]
        places = [*sorted({*range(8)} - {*least[: len(below)]}), *below]
        places = [place for place in places if row[place] >= 0]
        assert slate.texts == [texts[row[place]] for place in places]
        true = [[whole.scores[n][place], 1 / (place + 1)] for place in places]
        assert np.allclose(slate.features, true) and slate.put_in == len(below)
        assert slate.labels.tolist() == [float(row[place] in wanted) for place in places]
        assert slate.labels.sum() == before.labels.sum()
        assert sorted(slate.served.tolist()) == sorted(before.features.tolist())
    some, drawn = (shown.teaching(stage, ranker, shown.train[0], 5) for _ in range(2))
    whole_by_name = {slate.slate_id: slate.texts for slate in made}
    assert [s.texts for s in some] == [s.texts for s in drawn] == [whole_by_name[s.slate_id] for s in some]


def test_what_was_passed_over_teaches_and_neither_judges_nor_is_told_where_nothing_learns(tiny, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(nightly.training, "train", lambda *arguments: given.append(arguments))
    examples, rng = make_examples(), np.random.default_rng(1)
    shown = examples.copy()
    shown["passed_over"] = [
        rng.choice([item for item in ITEMS if item not in wanted], 4, replace=False) for wanted in examples["targets"]
    ]
    found = []
    for wish, told in (("auto", examples), ("auto", shown), ("never", shown)):
        config, lines = make_config(tiny, language_model=wish, retriever={"enabled": False}), []
        nights.run(tmp_path / "v1", config, examples=told, lines=lines)
        put_in = sum(slate.put_in for slate in given[-1][0])
        assert [line.split()[0] for line in lines if "shown and passed over" in line] == [str(put_in)] * (put_in > 0)
        found.append(put_in)
    assert found[0] == found[2] == 0 < found[1]
    held = [
        [(s.slate_id, s.texts, s.features.tolist(), s.labels.tolist(), s.put_in) for s in told[1]] for told in given
    ]
    assert held[0] == held[1] == held[2]


POSITIONS = st.sets(st.integers(0, 14))


@given(st.integers(1, 14), st.integers(0, 15), POSITIONS, POSITIONS, st.randoms())
def test_a_slate_with_what_was_passed_over_keeps_its_size_and_every_positive(size, count, wanted, shown, random):
    order = random.sample(range(15), 15)
    row = np.array([*order[:count], *[-1] * (max(size, 15) - count)])
    scores = np.where(row >= 0, -np.arange(len(row), dtype=np.float32), np.nan)
    targets, passed = np.array(sorted(wanted), int), np.array(sorted(shown - wanted), int)
    made = nightly.with_passed_over(Shortlist(row[None], scores[None]), size, [targets], [passed])
    kept, best = made.items[0] >= 0, row[:size][row[:size] >= 0]
    assert np.array_equal(made.items[0][kept], row[kept]) and np.array_equal(made.scores[0][kept], scores[kept])
    assert kept.sum() == len(best) and np.isnan(made.scores[0][~kept]).all()
    new, gone = made.items[0][size:][kept[size:]], np.setdiff1d(best, made.items[0])
    assert len(new) == len(gone) <= size / 4 and {*new} <= shown - wanted and not {*gone} & (shown | wanted)


# --- a night behind another ---------------------------------------------------------------------------------


def test_a_retriever_goes_on_from_the_champions_of_the_same_role_which_knows_no_more(planned, night):
    champion = Bundle.open(night[0])
    found = {"learned": ["mine"]}
    for role in bundle.ROLES:
        assert isinstance(planned._warm(role, 0, found, champion), Retriever)
        assert planned._warm(role, 1, {"learned": ["mine", "other"]}, champion) == "other"
    later = Bundle(
        champion.folder, bundle.Recipe(**{**vars(champion.recipe), "days": dict.fromkeys(bundle.ROLES, "2026-12-31")})
    )
    assert [planned._warm(role, 0, found, later) for role in bundle.ROLES] == ["mine"] * 3
    assert planned._warm("learned", 0, {}, None) is None


def test_a_champion_of_another_shape_is_no_start(planned, night, tiny):
    champion = Bundle.open(night[0])
    for change in ({"size": 16}, {"layers": 3}, {"block": "transformer"}, {"window": 9}):
        config = make_config(tiny, retriever={"size": 8, "window": 8, "epochs": 2, "patience": 2, **change})
        other = Night(planned.world, planned.cuts, LAST, config, 1, lambda _: None)
        assert other._warm("learned", 0, {}, champion) is None
        assert other._warm("serving", 0, {"learned": ["mine"]}, champion) == "mine"


def test_what_came_after_a_cut_is_new_to_the_retriever_of_that_cut(tiny, tmp_path):
    """As what comes after a training is to the one that serves: no id, no bias, the vectors kept are made anew."""
    late = ITEMS[4]
    since, items = day_number(CUTS[1][0]), make_items()
    items.loc[items["item_id"] == late, ["valid_from", "first_seen"]] = since
    events = make_events()
    events = events[(events["item_id"] != late) | (events["day"] > since)]
    config = make_config(tiny)
    train(make_world(events, items), make_examples(events), LAST, config, tmp_path / "v1", 1, lambda _: None)
    opened = Bundle.open(tmp_path / "v1")
    for role, known in (("learned", False), ("serving", True)):
        (model,) = opened.retrievers(role)
        code = opened.items.index(late)
        assert bool(model.tower.ids[code].any()) is known and bool(model.item_biases()[code]) is known, role


def test_an_ensemble_is_the_mean_of_its_members_and_comes_back(tiny, tmp_path):
    config = make_config(tiny, retriever={"size": 8, "window": 8, "epochs": 1, "members": 2})
    nights.run(tmp_path / "v1", config)
    opened = Bundle.open(tmp_path / "v1")
    members = opened.retrievers("serving")
    assert len(members) == 2 and not np.array_equal(*(each.item_vectors() for each in members))
    known, shelf = make_world().known(LAST), make_world().shelf(LAST)
    source = bundle.RetrieverSource(members, bundle.side(shelf))
    found = source.score(known)
    assert source.catalogues is source.catalogues  # not made anew for each block of people
    alone = [bundle.RetrieverSource([each], bundle.side(shelf)).score(known) for each in members]
    assert np.allclose(found, (alone[0] + alone[1]) / 2, atol=1e-5) and not np.allclose(*alone, atol=1e-3)
    for folder in (tmp_path / "v1" / "recommender").glob("retriever-serving-*"):
        shutil.rmtree(folder)
    with pytest.raises(ModelError, match="retriever-serving-0: no retriever"):
        opened.retrievers("serving")


def test_the_next_night_keeps_the_champions_codes_and_knows_new_items(night, tiny, tmp_path):
    """A week later: an item that sorts before all others, one that nobody lists any more, and the night's settings."""
    champion, week = Bundle.open(night[0]), timedelta(days=2)
    events = [*make_events().itertuples(index=False, name=None)]
    events += [("u00", "a new item", "buy", day_number(LAST) + 1.5, day_number(LAST) + 1)]
    cuts = [(day + week, split) for day, split in CUTS]
    frame = nights.frame_of(events)
    lines, given = [], {"base": champion.items, "base_nodes": champion.nodes}
    told = make_examples(frame, cuts)
    nights.run(tmp_path / "v2", make_config(tiny), frame, told, lines, champion, LAST + week, **given)
    opened = Bundle.open(tmp_path / "v2")
    assert opened.items == [*ITEMS, "a new item"]
    assert [line.split(":")[0] for line in lines[:3]] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]  # warm, not anew
    with np.load(opened.folder / "serving" / "ease.npz") as state:
        assert int(state["numbers"][0]) == len(ITEMS) + 1


# --- settings -----------------------------------------------------------------------------------------------


def test_an_unknown_generator_is_named(tiny):
    with pytest.raises(ConfigError, match=r"candidates\.generators\.eas: no such generator; known: popular, "):
        night_of(make_config(tiny, generators=["popular", "eas"]))


def test_which_generators_there_are_follows_from_the_data(tiny):
    def names(world, **more):
        config = make_config(tiny, **more)
        free = config.model_copy(update={"candidates": config.candidates.model_copy(update={"generators": {}})})
        return set(night_of(free, world).settings)

    everything = set(generators.MEMBERS)
    assert names(make_world()) == everything - {"profile"}
    bare = make_items().assign(attributes=None)
    frames = make_events(), bare, nights.make_vectors(), nights.make_triples().iloc[:0]
    assert names(nights.world(*frames, WEIGHTS)) == everything - {"graph", "pattern", "profile"}
    people = pd.DataFrame({"user_id": ["u00"], "valid_from": [0], "valid_to": [np.nan], "text_hash": ["hash 1"]})
    assert names(make_world(people=people)) == everything
    # Patterns as of the last day alone, as a first night has them: no cut that teaches knows any.
    young = nights.make_patterns().assign(day=day_number(TEST_CUT))
    assert names(make_world(patterns=young)) == everything - {"profile", "pattern"}
    assert names(make_world(), filtered=["buy"]) == everything - {"profile"}  # what was viewed may come again
    once = everything - {"profile", "personal", "personal_decayed"}
    assert names(make_world(), filtered=["buy", "view"]) == once


def test_settings_are_given_or_tuned_or_the_default(tiny):
    config = make_config(tiny, tune=True)
    chosen = {"ease": {"penalty": 7.0}, "trending": {}, "item_knn": {}, "markov_1": {}}
    config = config.model_copy(update={"candidates": config.candidates.model_copy(update={"generators": chosen})})
    tuned = night_of(config).settings
    assert (
        tuned["ease"] == {"penalty": 7.0, "keep": 0.85} and tuned["markov_1"] == generators.MEMBERS["markov_1"].grid[0]
    )
    assert (
        tuned["trending"] in generators.MEMBERS["trending"].grid
        and tuned["item_knn"] in generators.MEMBERS["item_knn"].grid
    )
    plain = config.model_copy(update={"scorer": config.scorer.model_copy(update={"tune": False})})
    assert night_of(plain).settings["trending"] == {"days": 10.0}  # candidates.popular_days
    assert night_of(plain).settings["item_knn"] == generators.MEMBERS["item_knn"].grid[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"markov": {"span": 4}},
        {"als": {"size": 3}},
        {"ease": {"limit": 4}},
        {"text": {"length": 2}},
        {"user_knn": {"limit": 9, "neighbours": 3}},
    ],
    ids=str,
)
def test_a_whole_number_in_the_yaml_is_a_whole_number(tiny, settings):
    config = make_config(tiny).model_dump(mode="json", by_alias=True)
    config["candidates"]["generators"] = settings
    planned = night_of(type(make_config(tiny)).model_validate(config))
    cut = planned.train[0]
    for name, score in planned.stage(cut.day, cut.known, []).scores(cut.part.histories).items():
        assert np.isfinite(score.whole()).all(), name


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_an_empty_split_is_named(tiny, split):
    examples = make_examples()
    with pytest.raises(NotEnoughDataError, match=split):
        night_of(make_config(tiny), examples=examples[examples["split"] != split])


def test_targets_that_nobody_knows_are_too_little_to_learn_from(tiny, tmp_path):
    examples = make_examples()
    examples["targets"] = [np.array(["unheard of"], dtype=object)] * len(examples)
    off = {"retriever": {"enabled": False}}
    with pytest.raises(NotEnoughDataError, match="two people"):
        nights.run(tmp_path / "v1", make_config(tiny, **off), examples=examples)
    assert list(tmp_path.iterdir()) == []


def test_a_shop_of_one_person_or_one_item_is_too_small_to_learn_from(tiny, tmp_path):
    alone = make_events(people=PEOPLE[:1], visits=30)
    single = make_events().assign(item_id=ITEMS[0])
    for events, items in ((alone, make_items()), (single, make_items()[:1]), (single, make_items()[:0])):
        with pytest.raises(NotEnoughDataError, match="two people"):
            nights.run(tmp_path / "v1", make_config(tiny), events, make_examples(events), items=items)
    assert [file.name for file in tmp_path.iterdir()] == [".v1.parts"]  # the retrievers, for the next try


def test_a_shop_of_two_people_trains(tiny, tmp_path):
    events = make_events(people=PEOPLE[:2], visits=30)
    nights.run(tmp_path / "v1", make_config(tiny, retriever={"enabled": False}), events, make_examples(events))
    assert checked(tmp_path / "v1")


# --- a language model, and what is filtered -----------------------------------------------------------------


@pytest.fixture(scope="module")
def filtered(tiny, tmp_path_factory):
    """A night whose lists leave out what was bought, with a language model."""
    out = tmp_path_factory.mktemp("filtered") / "v1"
    examples = make_examples()
    config = make_config(tiny, filtered=["buy"], language_model="always", retriever={"enabled": False})
    nights.run(out, config, examples=examples)
    return out


def test_what_was_bought_is_in_no_list_where_it_is_filtered(filtered):
    opened, world = Bundle.open(filtered), make_world()
    assert opened.recipe.hidden == [0] and opened.retrievers("serving") == []
    (cut,) = cuts_of(world, make_examples(cuts=CUTS[-1:]))
    ranked = recommender_at(world, cut, opened).rank(cut.part.histories, cut.on_shelf)
    bought = cut.part.histories.keep(cut.part.histories.types == 0).matrix()
    assert len(ranked.found) and bought.nnz
    assert not np.asarray(bought[ranked.found.person, ranked.found.item]).any()


def test_a_language_model_is_kept_and_reads_slates(filtered):
    predictor = Predictor.load(filtered, 1)
    assert predictor.model is not None and checked(filtered).language_model
    planned = night_of(make_config(filtered, filtered=["buy"]))
    stage = planned.stage(planned.valid.day, planned.valid.known, [])
    slates = planned.slates(stage, Bundle.open(filtered).ranker(), planned.valid, 3).slates
    assert all(
        ((p > 0) & (p < 1)).all() and len(p) == len(s.texts)
        for p, s in zip(predictor.score(slates), slates, strict=True)
    )


def test_the_recipe_tells_what_the_language_model_brought_by_slice(filtered):
    told = Bundle.open(filtered).recipe.report["language_model"]
    assert told["users"] > 0 and told["doubt"] and told["slices"] == {}  # fewer people than promotion.min_users


@pytest.mark.parametrize("wish", ["auto", "never"])
@pytest.mark.parametrize("at", ["train", "valid"])
def test_a_night_whose_slates_hold_no_hit_keeps_its_ranker(tiny, tmp_path, monkeypatch, at, wish):
    labelled = nightly.labelled_slates

    def without_hits(world, cut, *given):
        made = labelled(world, cut, *given)
        return [replace(slate, labels=0 * slate.labels) for slate in made] if cut.split == at else made

    monkeypatch.setattr(nightly, "labelled_slates", without_hits)
    config, lines, out = make_config(tiny, language_model=wish, retriever={"enabled": False}), [], tmp_path / "v1"
    report = nights.run(out, config, lines=lines)
    assert not report.language_model and not checked(out).language_model and Bundle.open(out).ranker()
    told = Bundle.open(out).recipe.report["language_model"]
    assert "slates with 0 positives among" in told["doubt"]
    assert sum(told["doubt"] in line for line in lines) == 1


# --- small parts --------------------------------------------------------------------------------------------


def test_the_best_of_each_with_their_scores():
    person, item, score = np.array([0, 0, 2]), np.array([4, 1, 3]), np.array([0.5, 0.75, -1.0], dtype=np.float32)
    found = Candidates(person, item, np.zeros((0, 0), np.float32), np.zeros(3, int))
    made = Shortlist.of(Ranked(found, score), 3, 2)
    lists, scores = made.items, made.scores
    assert lists.tolist() == [[1, 4], [-1, -1], [3, -1]]
    assert np.array_equal(scores, np.array([[0.75, 0.5], [np.nan] * 2, [-1, np.nan]], np.float32), equal_nan=True)
    nothing = Candidates(*(np.zeros(0, int),) * 2, np.zeros((0, 0), np.float32), np.zeros(0, int))
    assert np.isnan(Shortlist.of(Ranked(nothing, np.zeros(0, np.float32)), 2, 2).scores).all()


def test_a_list_as_the_language_model_gets_it():
    assert len(FEATURES) == 2
    assert ranker_features(np.array([2.0, 1.0, -1.0], np.float32)).tolist() == [
        [2, 1],
        [1, 0.5],
        [-1, pytest.approx(1 / 3)],
    ]
    assert ranker_features(np.zeros(0, np.float32)).shape == (0, 2)


def test_the_model_keeps_a_table_without_each_source(night):
    report = Bundle.open(night[0]).recipe.report
    assert set(report["without"]) == {"", "retriever", *report["sources"]}
    assert all(0 <= value <= 1 for value in report["without"].values())


def test_the_recipe_is_json_and_comes_back(night):
    recipe = Bundle.open(night[0]).recipe
    content = json.loads((night[0] / "recommender" / "recipe.json").read_text())
    assert bundle.Recipe(**content) == recipe
    assert isinstance(Bundle.open(night[0]).ranker(), Ranker)


# --- a night that was killed ---------------------------------------------------------------------------------


def test_a_killed_night_leaves_no_artefact_and_goes_on_to_the_same(night, tiny, dying):
    child, out = dying
    assert child.wait(timeout=240) == -signal.SIGKILL
    assert [file.name for file in out.parent.iterdir()] == [".v1.parts"]
    lines = []
    nights.run(out, make_config(tiny), lines=lines)
    assert sum(line.startswith("resumed after epoch") for line in lines) == 2
    assert checked(out).files == checked(night[0]).files
    assert [file.name for file in out.parent.iterdir()] == ["v1"]
