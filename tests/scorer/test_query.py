"""A list for a query: likeness first, then the graph and popularity, and nothing that is not on the shelf."""

from dataclasses import replace

import numpy as np
from scipy import sparse

from lakerec.features import Stock
from lakerec.generators.base import Shelf
from lakerec.generators.popularity import DailyCounts
from lakerec.scorer.query import answer
from lakerec.scorer.serving_day import ShelfOfDay

ITEMS = ["train", "railway", "soup", "spoon", "book"]
TEXT = np.array([[1, 0, 0], [0.8, 0.6, 0], [0, 0, 1], [0, 0.1, 0.99], [0, 1, 0]], dtype=np.float32)
QUERY = np.array([1, 0, 0], dtype=np.float32)


def shelf_of(graph=None, counts=(), on_shelf=None) -> ShelfOfDay:
    """A day with five items; `counts` are (item, times chosen)."""
    items, times = [item for item, _ in counts], [count for _, count in counts]
    daily = DailyCounts.of_counts(items, [10.0] * len(items), times, len(ITEMS))
    unknown = np.full(len(ITEMS), np.nan)
    mask = np.ones(len(ITEMS), dtype=bool) if on_shelf is None else np.array(on_shelf)
    stock = Stock(daily, unknown, unknown)
    nothing = np.zeros((0, len(ITEMS)), dtype=np.float32)
    return ShelfOfDay(ITEMS, ITEMS, Shelf(TEXT, graph), stock, mask, nothing, {"buy": 1.0}, ["buy"], 11.0)


def test_the_likest_texts_come_first():
    found = answer(shelf_of(), QUERY, 3)
    assert [hit.item_id for hit in found][:2] == ["train", "railway"]
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
    assert found[0].cosine == 1.0


def test_what_is_not_on_the_shelf_is_never_shown():
    day = shelf_of(on_shelf=[False, True, True, True, True])
    assert answer(day, QUERY, 10)[0].item_id == "railway"
    assert len(answer(day, QUERY, 10)) == 4
    assert answer(replace(day, on_shelf=np.zeros(5, dtype=bool)), QUERY, 10) == []


def test_of_equal_likeness_the_more_popular_is_first():
    equal = replace(shelf_of(counts=[(3, 9)]), shelf=Shelf(np.repeat(TEXT[:1], 5, axis=0)))
    assert answer(equal, QUERY, 1)[0].item_id == "spoon"


def test_a_neighbour_of_the_hits_in_the_graph_rises():
    graph = sparse.csr_matrix(np.array([[1], [1], [0], [0], [1]], dtype=np.float32))
    plain, tied = ({hit.item_id: hit.score for hit in answer(shelf_of(g), QUERY, 5)} for g in (None, graph))
    assert tied["book"] > plain["book"] and tied["soup"] < plain["soup"]
