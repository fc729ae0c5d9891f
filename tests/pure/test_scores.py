"""Each kind of scores tells what its array would: the best, mean and deviation, the score of a pair."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from lakerec import features, generators
from lakerec.features import Stock, feature_names
from lakerec.generators import scores as module
from lakerec.generators.base import Shelf
from lakerec.generators.scores import Allowed, Columns, Index, Links, Products, Rows, Sparse, Whole
from lakerec.histories import Histories

PEOPLE, ITEMS = 5, 40


def numbers(rng, *shape, wide=3, empty=0.5):
    """Small whole numbers, many of them 0: ties are many, and every order of summation gives the same."""
    return (rng.integers(-wide, wide + 1, shape) * (rng.random(shape) > empty)).astype(np.float32)


def of_kind(kind, rng, items, empty):
    """Scores of a kind, of people some of whom are told nothing."""
    if kind == "rows":
        return Rows(numbers(rng, 3, items, empty=empty), rng.integers(0, 3, PEOPLE))
    if kind == "sparse":
        return Sparse(sparse.csr_matrix(np.abs(numbers(rng, PEOPLE, items, empty=empty))))
    if kind == "columns":
        codes = np.sort(rng.permutation(items)[: rng.integers(0, items + 1)])
        return Columns(numbers(rng, PEOPLE, len(codes), empty=empty), codes, items)
    if kind == "links":
        people, members = numbers(rng, PEOPLE, 6, empty=empty), numbers(rng, items, 6, empty=empty)
        return Links(sparse.csr_matrix(people), sparse.csr_matrix(members))
    people, vectors = numbers(rng, PEOPLE, 4, empty=empty), numbers(rng, items, 4, empty=empty)
    if kind == "products":
        return Products(people, Index(vectors))
    biases = numbers(rng, items, empty=empty)
    return Products(people, Index(vectors, biases), numbers(rng, PEOPLE).astype(np.float64))


KINDS = ("rows", "sparse", "columns", "links", "products", "products with biases")


@st.composite
def cases(draw, kind):
    """Scores and what is allowed: parts of the shelf, pairs that are closed, whole people who may have nothing."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    items = draw(st.integers(1, ITEMS))
    shelf = rng.random(items) < draw(st.sampled_from([0.3, 1.0]))
    closed = np.nonzero(rng.random((PEOPLE, items)) < draw(st.sampled_from([0.0, 0.2, 0.9])))
    told = of_kind(kind, rng, items, draw(st.sampled_from([0.0, 0.6, 0.95])))
    return told, Allowed.of(PEOPLE, shelf, *closed), draw(st.integers(1, items))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", [7, module.PIECE])
def test_every_kind_is_its_array(kind, piece, monkeypatch):
    monkeypatch.setattr(module, "PIECE", piece)
    monkeypatch.setattr(module, "SPARE", 1)

    @settings(max_examples=60, deadline=None, database=None)
    @given(cases(kind))
    def check(case):
        told, allowed, depth = case
        whole = Whole(told.whole())
        mine, array = told.survey(allowed, depth), whole.survey(allowed, depth)
        for name in ("person", "item", "rank"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(array, name), err_msg=name)
        np.testing.assert_allclose(mine.mean, array.mean, atol=1e-5)
        np.testing.assert_allclose(mine.std, array.std, atol=1e-3)
        person, item = np.nonzero(np.ones(whole.scores.shape, bool))
        np.testing.assert_allclose(told.at(person, item), whole.at(person, item), atol=1e-6)

    check()


@pytest.mark.parametrize("kind", ["rows", "sparse", "columns", "links", "products"])
def test_of_what_came_since_nothing_is_said(kind):
    told = of_kind(kind, np.random.default_rng(1), 9, 0.3)
    wide = told.widened(12)
    assert np.array_equal(wide.whole()[:, :9], told.whole()) and not wide.whole()[:, 9:].any()
    allowed = Allowed.of(PEOPLE, np.ones(12, bool), np.array([0]), np.array([2]))
    mine, array = wide.survey(allowed, 12), Whole(wide.whole()).survey(allowed, 12)
    assert mine.item.tolist() == array.item.tolist() and mine.person.tolist() == array.person.tolist()


def test_what_is_allowed_as_a_mask_and_of_some():
    allowed = Allowed.of(3, np.array([1, 0, 1, 1], bool), np.array([2, 0, 0, 0]), np.array([3, 2, 1, 2]))
    assert allowed.mask.tolist() == [[1, 0, 0, 1], [1, 0, 1, 1], [1, 0, 1, 0]]
    assert allowed.counts.tolist() == [2, 3, 2] and allowed.most_closed == 1
    assert allowed.columns(np.array([0, 3])).tolist() == [[1, 1], [1, 1], [1, 0]]
    assert allowed.some(1, 3).mask.tolist() == allowed.mask[1:].tolist()


def test_an_index_is_made_anew_for_another_shelf_and_for_more_silent_items(monkeypatch):
    monkeypatch.setattr(module, "SPARE", 4)
    vectors = np.zeros((50, 2), np.float32)
    vectors[7] = 1
    index, shelf = Index(vectors), np.ones(50, bool)
    one = index.on(shelf, 5)
    assert index.on(shelf.copy(), 4) is one and len(one.catalogue) == 9  # the item that is heard, 8 of the silent
    assert index.on(shelf, 9) is not one
    assert 7 not in index.on(np.arange(50) != 7, 5).catalogue.codes


def test_a_process_holds_the_searches_of_one_stage_and_those_that_were_given(monkeypatch):
    monkeypatch.setattr(module, "SEARCHES", 2)
    indexes, shelf, other = [Index(np.eye(3, dtype=np.float32)) for _ in range(4)], np.ones(3, bool), np.arange(3) > 0
    given = object()
    indexes[0].use(shelf, lambda catalogue: given if len(catalogue) == 3 else None)
    for index in indexes:
        index.on(other, 1)
    assert [index._exact is not None for index in indexes] == [False, False, True, True]
    assert indexes[0].on(shelf, 1) is given and indexes[0].on(other, 1) is not given
    assert indexes[0].on(shelf, module.SPARE + 1) is given  # none of its items is silent: it has them all


def test_what_was_given_without_some_silent_items_is_not_asked_for_more_of_them(monkeypatch):
    monkeypatch.setattr(module, "SPARE", 4)
    vectors, shelf, given = np.zeros((50, 2), np.float32), np.ones(50, bool), object()
    vectors[7] = 1
    index = Index(vectors)
    index.use(shelf, lambda catalogue: given)
    assert index.on(shelf, 4) is given and index.on(shelf, 5) is not given


def test_the_normaliser_is_that_of_a_softmax_whatever_the_pieces(monkeypatch):
    rng = np.random.default_rng(0)
    index, people = Index(rng.normal(size=(30, 3)).astype(np.float32), rng.normal(size=30)), rng.normal(size=(4, 3))
    logits = people @ index.vectors.T + index.biases
    monkeypatch.setattr(module, "PIECE", 20)
    np.testing.assert_allclose(index.normaliser(people), np.log(np.exp(logits).sum(axis=1)), rtol=1e-6)


def shop(items=60, people=12, count=300):
    """Histories with returns, patterns and profiles; one person without events; a shelf with texts and a graph."""
    rng = np.random.default_rng(3)
    columns = rng.integers(0, people - 1, count), rng.integers(0, items - 5, count), rng.uniform(0, 400, count)
    known = Histories.of_events(*columns, people, items, weights=rng.choice([1.0, -1.0], count, p=[0.9, 0.1]), at=400.0)
    text = rng.normal(size=(items, 6)).astype(np.float32)
    text[::7] = 0
    graph = sparse.csr_matrix((rng.random((items, 5)) < 0.3).astype(np.float32))
    groups, profiles = rng.integers(-1, 3, people).astype(np.int32), rng.normal(size=(people, 6)).astype(np.float32)
    profiles[::2] = 0
    stock = Stock.of(known, rng.uniform(1, 9, items))
    return replace(known, groups=groups, profiles=profiles), Shelf(text, graph), stock


@pytest.mark.parametrize("grown", [0, 4])
def test_candidates_and_their_features_do_not_depend_on_whether_arrays_are_written(grown):
    known, shelf, stock = shop()
    items = known.n_items - grown
    before = replace(known.keep(known.items < items), n_items=items)
    few = Shelf(shelf.text[:items], shelf.graph[:items])
    members = {}
    for name, member in generators.MEMBERS.items():
        if member.kind.fresh:
            members[name] = generators.fit(name, known, shelf)
        else:
            members[name] = generators.restore(name, generators.fit(name, before, few).state(), len(shelf))
    allowed = Allowed.of(len(known), np.arange(known.n_items) % 9 > 0, known.users[::2], known.items[::2])
    found = [
        features.candidates(told, known, allowed, shelf, stock, 8)
        for told in (
            {name: Whole(member.score(known)) for name, member in members.items()},
            {name: member.said(known) for name, member in members.items()},
        )
    ]
    assert np.array_equal(found[0].person, found[1].person) and np.array_equal(found[0].item, found[1].item)
    assert np.array_equal(found[0].source, found[1].source) and len(found[0]) > 100
    for place, name in enumerate(feature_names(list(members))):
        one, other = found[0].features[:, place], found[1].features[:, place]
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4, err_msg=name)
