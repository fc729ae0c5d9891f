"""A day's lists: the file that the workers read, and that a list is a matter of the user alone."""

import shutil
from dataclasses import fields, replace

import nights
import numpy as np
import pandas as pd
import pytest
from nights import (
    ITEMS,
    LAST,
    NEWCOMER,
    PEOPLE,
    WEIGHTS,
    make_config,
    make_events,
    make_examples,
    make_items,
    make_world,
    readings_of,
    shelf_of,
)
from scipy import sparse

from lakerec.features import FILL
from lakerec.generators.nearest import Approximate
from lakerec.generators.popularity import ALWAYS
from lakerec.scorer import evaluation, recommender
from lakerec.scorer.bundle import Bundle
from lakerec.scorer.final import Shortlist
from lakerec.scorer.nightly import cuts_of, ranker_features
from lakerec.scorer.prediction import Predictor
from lakerec.scorer.serving_day import INVERTED, ScoringDay, ShelfOfDay, pattern_shares
from lakerec.scorer.slates import Slate
from lakerec.scoring import list_scorer
from lakerec.world import day_number

PER_USER = 6


@pytest.fixture(scope="module")
def spoken(tiny, tmp_path_factory):
    """The artefact of a night with a language model."""
    out = tmp_path_factory.mktemp("spoken") / "v1"
    nights.run(out, make_config(tiny, language_model="always", retriever={"enabled": False}))
    return out


@pytest.fixture(scope="module", params=["ranker alone", "language model"])
def served(request, night, spoken, tmp_path_factory):
    """Artefact, the day's file, and what is read from both."""
    artefact = night[0] if request.param == "ranker alone" else spoken
    file = tmp_path_factory.mktemp("day") / "deep" / "shelf.npz"
    shelf_of(make_world()).save(file)
    return artefact, file, ScoringDay.load(artefact, file), Predictor.load(artefact, 1)


@pytest.fixture(scope="module")
def frame():
    return readings_of(make_events())


def by_user(lists):
    """Each user's rows (item, score, source) in order."""
    rows = zip(lists["user_id"], lists["item_id"], lists["score"], lists["source"], strict=True)
    found = {}
    for user, *told in rows:
        found.setdefault(user, []).append(tuple(told))
    return found


def same(one, other):
    """The same items and sources of the same users in the same order, and like scores.

    Not to the last bit: how a product of matrices (text, als, retriever) rounds depends on the people beside.
    """
    one, other = by_user(one), by_user(other)
    assert one.keys() == other.keys()
    told = [([(i, s) for i, _, s in one[user]], [(i, s) for i, _, s in other[user]]) for user in one]
    scores = [[[p for _, p, _ in lists[user]] for lists in (one, other)] for user in one]
    return all(a == b for a, b in told) and all(np.allclose(a, b, atol=1e-5) for a, b in scores)


# --- the file -----------------------------------------------------------------------------------------------


def equal(one, other):
    """Whether two days hold the same, arrays and matrices by value."""
    if sparse.issparse(one):
        return one.shape == other.shape and (one != other).nnz == 0 and one.dtype == other.dtype
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if hasattr(one, "__dataclass_fields__"):
        return all(equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    return one == other


@pytest.mark.parametrize("listed", [True, False], ids=["catalogue and graph", "events only"])
def test_a_day_comes_back_from_its_file(tmp_path, listed):
    items = make_items() if listed else make_items().iloc[:0]
    world = (
        make_world(items=items)
        if listed
        else nights.world(make_events(), items, {}, nights.make_triples().iloc[:0], WEIGHTS)
    )
    day = shelf_of(world)
    assert (day.shelf.graph is not None) == (day.shelf.first_seen is not None) == listed
    day.save(tmp_path / "a" / "b.npz")
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["b.npz"]
    again = ShelfOfDay.load(tmp_path / "a" / "b.npz")
    for field in fields(ShelfOfDay):
        assert equal(getattr(again, field.name), getattr(day, field.name)), field.name
    assert not equal(replace(again, at=again.at + 1).at, day.at)


def test_the_shares_of_patterns_in_the_order_of_the_items():
    codes = {"a": 0, "b": 1}
    found = pattern_shares({2: {"b": 3, "gone": 5}, 0: {"a": 1, "b": 1}}, codes, 3)
    assert found.tolist() == [[0.5, 0.5, 0], [0, 0, 0], [0, 1, 0]]
    assert pattern_shares({}, codes, 3).shape == (0, 3)


# --- lists --------------------------------------------------------------------------------------------------


def test_the_histories_of_a_frame_are_those_of_the_world(served, frame):
    found, wanted = served[2].histories(frame), make_world().known(LAST)
    assert np.array_equal(found.starts[:-1], wanted.starts) and found.lengths[-1] == 0
    for name in ("items", "times", "weights", "types"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name)), name
    assert np.array_equal(found.groups[:-1], wanted.groups) and found.groups[-1] == -1
    assert (found.at == wanted.at[0]).all() and found.profiles is None


def test_the_lists_of_a_frame_are_those_computed_directly(served, frame):
    artefact, _, day, predictor = served
    world = make_world()
    shelf = shelf_of(world)
    made = Bundle.open(artefact).recommender("serving", shelf.shelf, shelf.stock, shelf.patterns)
    ranked = made.rank(world.known(LAST), world.on_shelf(LAST))
    items, places = ranked.tops(len(PEOPLE), PER_USER)
    wanted = {}
    for row, user in enumerate(PEOPLE):
        mine, where = items[row][items[row] >= 0], places[row][places[row] >= 0]
        texts = [str(text) for text in world.texts(LAST)[mine]]
        told = frame["history"][row]
        slate = Slate(user, told, texts, ranker_features(ranked.score[where]), None, 0)
        (chance,) = predictor.score([slate])
        if day.final is not None:
            alone = Shortlist(mine[None], ranked.score[where][None])
            read = predictor.corrections([slate])
            table = alone.table(read, world.known(LAST).select([row]), shelf.stock)
            score = table[:, 0] + day.final.ranker.score(table)
            place = np.empty(len(mine), dtype=int)
            place[np.lexsort((mine, -score))] = np.arange(1, len(mine) + 1)
            chance = day.final.calibration.probabilities(score, place)
        names = [made.stage.names[source] for source in ranked.found.source[where]]
        wanted[user] = [(ITEMS[i], p, s) for i, p, s in zip(mine, chance, names, strict=True)]
    lists = day.lists(frame, predictor, PER_USER)
    assert list(lists.columns) == ["user_id", "item_id", "score", "source"] and lists["score"].dtype == np.float32
    found = by_user(lists)
    assert list(found) == [*PEOPLE, NEWCOMER]
    for user in PEOPLE:
        assert [(i, s) for i, _, s in found[user]] == [(i, s) for i, _, s in wanted[user]]
        assert np.allclose([p for _, p, _ in found[user]], [p for _, p, _ in wanted[user]], atol=1e-6)


@pytest.fixture
def flat(night):
    """A predictor whose features told nothing: no language model, and both weights are 0."""
    return Predictor(replace(Predictor.load(night[0], 1).manifest, prior=[0.0, 0.0, -2.0]))


def test_a_list_keeps_the_rankers_order_where_the_features_told_nothing(night, flat, frame, tmp_path):
    shelf_of(make_world()).save(tmp_path / "day.npz")
    day = ScoringDay.load(night[0], tmp_path / "day.npz")
    items, _ = day.recommender.rank(day.histories(frame), day.day.on_shelf).tops(len(frame), PER_USER)
    served = day.lists(frame, flat, PER_USER).sort_values(["score", "item_id"], ascending=[False, True])
    for user, row in zip(frame["user_id"], items, strict=True):
        mine, count = served[served["user_id"] == user], int((row >= 0).sum())
        assert mine["item_id"].tolist()[:count] == [ITEMS[item] for item in row[:count]]
        assert np.allclose(mine["score"][:count], 1 / (1 + np.exp(2)), atol=1e-6)
        assert (np.diff(mine["score"][:count]) < 0).all() and not mine["score"][count:].any()


def test_what_is_judged_keeps_it_too(night, flat):
    world, opened = make_world(), Bundle.open(night[0])
    (cut,) = cuts_of(world, make_examples(cuts=nights.CUTS[-1:]))
    made = evaluation.recommender_at(world, cut, opened)
    (judged,) = evaluation.model(world, cut, "v", made, flat, opened, PER_USER, 4)
    ranked = made.rank(cut.part.histories, cut.on_shelf)
    items, behind = ranked.tops(len(cut.part), PER_USER)[0], ranked.ranks(cut.part)
    assert np.array_equal(judged.lists, items[:, :4])
    for rank, user, item, rest in zip(judged.ranks, cut.part.target_users, cut.part.target_items, behind, strict=True):
        found = np.flatnonzero(items[user] == item)
        assert rank == (found[0] + 1 if len(found) else rest)


def test_a_list_holds_no_item_twice_and_not_more_than_asked_for(served, frame):
    lists = served[2].lists(frame, served[3], PER_USER)
    assert not lists.duplicated(["user_id", "item_id"]).any()
    assert lists.groupby("user_id").size().max() == PER_USER
    assert ((lists["score"] > 0) & (lists["score"] < 1)).all()
    assert by_user(served[2].lists(frame, served[3], 2)).keys() == by_user(lists).keys()


def test_cutting_the_frame_in_pieces_gives_the_same_rows(served, frame):
    artefact, file, day, predictor = served
    whole = day.lists(frame, predictor, PER_USER)
    score = list_scorer(str(artefact), str(file), 1, PER_USER)
    pieces = pd.concat([score(piece) for piece in (frame[:1], frame[1:9], frame[9:10], frame[10:])])
    assert same(pieces, whole)
    mixed = frame.sample(frac=1, random_state=3)
    assert same(day.lists(mixed, predictor, PER_USER), whole)


@pytest.fixture
def large(monkeypatch):
    """Every catalogue is one whose scores are not written down."""
    monkeypatch.setattr(recommender, "LARGE", 0)


def test_the_lists_of_a_large_catalogue_are_those_of_a_small_one(served, frame, monkeypatch):
    artefact, file, day, predictor = served
    profiles = frame.assign(profile=[day.day.shelf.text[n % 5] if n % 2 else None for n in range(len(frame))])
    for given in (frame, profiles):
        small = day.lists(given, predictor, PER_USER)
        with monkeypatch.context() as patched:
            patched.setattr(recommender, "LARGE", 0)
            assert same(ScoringDay.load(artefact, file).lists(given, predictor, PER_USER), small)


def test_beyond_it_inverted_files_are_searched_and_say_what_they_find(served, frame, tmp_path, large):
    artefact, file, day, predictor = served
    lines = []
    shutil.copy(file, tmp_path / "shelf.npz")
    (tmp_path / INVERTED).mkdir()
    (tmp_path / INVERTED / "text.faiss").write_bytes(b"half a file")  # of a run that ended amid it
    ScoringDay.invert(artefact, tmp_path / "shelf.npz", frame, lines.append)
    sources = {"als", "text", "retriever"} & set(day.recommender.stage.names)
    assert {each.stem for each in (tmp_path / INVERTED).iterdir()} == sources  # one for both that compare texts
    assert {line.split(":")[0] for line in lines} == sources
    assert all("recall@" in line and f"of {day.day.on_shelf.sum()} items" in line for line in lines)
    found = ScoringDay.load(artefact, tmp_path / "shelf.npz")
    searched = []
    with pytest.MonkeyPatch.context() as patched:
        search = Approximate.search
        patched.setattr(Approximate, "search", lambda self, *given: searched.append(self) or search(self, *given))
        assert same(found.lists(frame, predictor, PER_USER), day.lists(frame, predictor, PER_USER))
    assert len({id(each) for each in searched}) == len(sources)


def test_what_is_not_to_be_shown_and_what_is_off_the_shelf_is_in_no_list(served, frame):
    _, _, day, predictor = served
    before = by_user(day.lists(frame, predictor, PER_USER))
    taken = [
        np.array([item for item, *_ in before[user][:2]] + ["unheard of"], dtype=object) for user in frame["user_id"]
    ]
    taken[0], taken[1] = None, np.array([], dtype=object)
    after = by_user(day.lists(frame.assign(taken=taken), predictor, PER_USER))
    for user, gone in zip(frame["user_id"], taken, strict=True):
        assert not {item for item, *_ in after[user]} & set(() if gone is None else gone)
    assert [after[user] for user in PEOPLE[:2]] == [before[user] for user in PEOPLE[:2]]
    off = replace(day, day=replace(day.day, on_shelf=np.array(ITEMS) != before[PEOPLE[0]][0][0]))
    assert before[PEOPLE[0]][0][0] not in set(off.lists(frame, predictor, PER_USER)["item_id"])


def test_a_list_is_filled_up_by_what_the_persons_pattern_chose_then_by_what_everyone_did(served, frame):
    day = served[2]
    histories = day.histories(frame)
    nothing = np.zeros(0, dtype=np.int64)
    count = len(ITEMS)
    person, item = day._fill(histories, (nothing, nothing), np.full((len(frame), count), -1))
    popular = day.day.stock.daily.within(day.day.at, ALWAYS)
    for row in (0, 1, len(frame) - 1):
        mine, group = item[person == row], histories.groups[row]
        shares = day.day.patterns[group][mine] if group >= 0 else np.zeros(len(mine))
        assert (np.diff(shares) <= 0).all() and len(mine) > 5
        for share in np.unique(shares):
            assert (np.diff(popular[mine[shares == share]]) <= 0).all()
    assert histories.groups[0] >= 0 > histories.groups[len(frame) - 1]
    assert item[person == 0].tolist() != item[person == len(frame) - 1].tolist()


def test_what_fills_a_list_up_stands_behind_all_else_in_its_order(served, frame):
    """Lists are sorted by their scores: equal ones would be sorted by the items' names."""
    _, _, day, predictor = served
    found = day.lists(frame, predictor, len(ITEMS))
    some = found[found["source"] == FILL]
    assert len(some) > len(some["user_id"].unique())
    for user, mine in found.groupby("user_id"):
        fill = mine[mine["source"] == FILL]
        scores = fill["score"].to_numpy()
        assert (scores > 0).all() and (np.diff(scores) < 0).all(), user
        assert scores.max(initial=0) < mine[mine["source"] != FILL]["score"].min()


def test_who_has_had_everything_has_no_rows_and_takes_none_from_others(served, frame):
    _, _, day, predictor = served
    taken = [np.array(ITEMS, dtype=object) if n == 3 else None for n in range(len(frame))]
    found = by_user(day.lists(frame.assign(taken=taken), predictor, PER_USER))
    wanted = by_user(day.lists(frame, predictor, PER_USER))
    assert set(wanted) - set(found) == {PEOPLE[3]}
    assert all([i for i, *_ in found[user]] == [i for i, *_ in wanted[user]] for user in found)
    everybody = frame.assign(taken=[np.array(ITEMS, dtype=object)] * len(frame))
    nothing = day.lists(everybody, predictor, PER_USER)
    assert len(nothing) == 0 and list(nothing.columns) == ["user_id", "item_id", "score", "source"]


def test_unknown_items_and_kinds_in_a_history_are_left_out(served, frame):
    _, _, day, predictor = served
    odd = frame.copy()
    for row in range(len(PEOPLE)):
        odd.at[row, "items"] = np.append(frame["items"][row], ["unheard of", "gone"])
        odd.at[row, "types"] = np.append(frame["types"][row], ["buy", "view"])
        odd.at[row, "days"] = np.append(frame["days"][row], [day_number(LAST) + 0.5] * 2)
    assert same(day.lists(odd, predictor, PER_USER), day.lists(frame, predictor, PER_USER))
    histories = day.histories(
        frame.assign(types=[None if t is None else np.full(len(t), "dance") for t in frame["types"]])
    )
    assert not histories.weights.any() and np.isfinite(recommended(day, histories)).all()


def recommended(day, histories):
    """The scores of everybody's candidates."""
    return day.recommender.rank(histories, day.day.on_shelf).score


@pytest.mark.parametrize("nothing", [None, np.nan, np.array([], dtype=object)], ids=["null", "nan", "empty"])
def test_null_arrays_are_no_events_and_the_list_is_what_is_popular_or_new(served, frame, nothing):
    _, _, day, predictor = served
    columns = ("items", "types", "days", "taken", "profile")
    odd = frame[:2].assign(
        **{name: pd.Series([nothing] * 2, dtype=object) for name in columns},
        history=[None, np.nan],
        pattern=[None, np.nan],
    )
    found = by_user(day.lists(odd, predictor, PER_USER))
    assert (
        len(found) == 2
        and found[PEOPLE[0]] == found[PEOPLE[1]] == by_user(day.lists(frame, predictor, PER_USER))[NEWCOMER]
    )
    assert {source for _, _, source in found[PEOPLE[0]]} <= {"popular", "new", "retriever"}


def test_one_user_with_only_returns_gets_a_list(served, frame):
    _, _, day, predictor = served
    one = frame[:1].assign(types=[np.full(len(frame["types"][0]), "return", dtype=object)])
    assert len(day.lists(one, predictor, PER_USER)) == PER_USER


def test_a_history_longer_than_the_retrievers_window_is_read_by_its_end(night, served, frame):
    _, _, day, predictor = served
    count = 300
    long = frame[:1].assign(
        items=[np.array([ITEMS[n % 5] for n in range(count)], dtype=object)],
        types=[np.full(count, "buy", dtype=object)],
        days=[np.linspace(day_number(LAST) - 30, day_number(LAST), count)],
    )
    lists = day.lists(long, predictor, PER_USER)
    assert len(lists) == PER_USER and np.isfinite(lists["score"]).all()


def test_an_item_that_came_since_the_training_may_be_shown(served, frame):
    """It stands behind the model's items; what it is and how new it is speaks for it."""
    artefact, _, _, predictor = served
    came = (
        make_items()
        .iloc[:1]
        .assign(item_id="zz new", valid_from=day_number(LAST), first_seen=day_number(LAST), told="red novelty")
    )
    opened = Bundle.open(artefact)
    world = make_world(items=pd.concat([make_items(), came]), base=opened.items, base_nodes=opened.nodes)
    shelf = shelf_of(world)
    day = ScoringDay(shelf, opened.recommender("serving", shelf.shelf, shelf.stock, shelf.patterns))
    assert shelf.items[-1] == "zz new" and shelf.texts[-1] == "red novelty"
    lists = day.lists(frame, predictor, len(ITEMS))
    assert "zz new" in set(lists["item_id"]) and np.isfinite(lists["score"]).all()


def test_an_item_without_text_or_price_is_scored(served, frame):
    lists = served[2].lists(frame, served[3], len(ITEMS))
    assert ITEMS[-1] in set(lists["item_id"]) and ITEMS[0] in set(lists["item_id"])


def test_types_are_coded_as_the_model_learned_them(night, tmp_path, frame):
    """An event type that the configuration has got since must not shift the codes of the others."""
    file = tmp_path / "day.npz"
    grown = {**WEIGHTS, "cart": 3.0}
    shelf_of(make_world(), weights=grown, kinds=sorted(grown)).save(file)
    day = ScoringDay.load(night[0], file)
    known = day.histories(frame)
    assert np.array_equal(known.types, make_world().known(LAST).types)
    predictor = Predictor.load(night[0], 1)
    carts = frame.assign(types=[None if t is None else np.append(t[:-1], "cart") for t in frame["types"]])
    lists = day.lists(carts, predictor, PER_USER)
    assert len(lists) and np.isfinite(lists["score"]).all()


def test_a_profile_is_read(tiny, tmp_path, frame):
    """A person of no events and a profile like the first taste's texts is shown that taste."""
    vectors = nights.make_vectors()
    people = pd.DataFrame(
        {
            "user_id": PEOPLE[:6],
            "valid_from": 0,
            "valid_to": np.nan,
            "text_hash": [f"hash {5 * (n % 3)}" for n in range(6)],
        }
    )
    config = make_config(tiny, generators=["popular", "profile", "ease"], retriever={"enabled": False})
    nights.run(tmp_path / "v1", config, people=people)
    world = make_world(people=people)
    shelf = shelf_of(world)
    opened = Bundle.open(tmp_path / "v1")
    day = ScoringDay(shelf, opened.recommender("serving", shelf.shelf, shelf.stock, shelf.patterns))
    told = frame.assign(profile=[vectors[f"hash {5 * (n % 3)}"] if n < 6 else None for n in range(len(frame))])
    assert np.array_equal(day.histories(told).profiles[:-1], world.known(LAST).profiles)
    blank = told.iloc[[0, 24]].assign(items=None, types=None, days=None, profile=[vectors["hash 0"], None])
    with_profile, without = (day.histories(blank.iloc[[n]]) for n in (0, 1))
    profile = day.recommender.stage.members["profile"]
    assert profile.score(with_profile).argmax() < 5 and not profile.score(without).any()


def test_the_examples_of_the_shop_are_those_of_its_events():
    """The builder of these tests: targets lie behind the cuts."""
    told = make_examples()
    assert set(told["split"]) == {"train", "valid", "test"} and (told["targets"].map(len) > 0).all()
