"""The world at a cut: what arrives later changes nothing of it, and codes follow a model's."""

from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakerec.config import ITEM_ENTITY
from lakerec.features import Stock
from lakerec.generators.base import Shelf
from lakerec.generators.popularity import DailyCounts
from lakerec.world import EPOCH, World, day_number, end_of, world

WEIGHTS = {"view": 1.0, "buy": 5.0, "return": -5.0, "search": 0.0}
CUT = date(2026, 3, 10)
TODAY = day_number(CUT)
VECTORS = {f"text {n}": np.eye(4, dtype=np.float32)[n] for n in range(4)}
ITEMS, USERS = ["a", "b", "c", "d"], ["u", "v", "w"]


def events_of(rows):
    """The frame that event_columns gives: (user, item, kind, day, ingest), in a total order."""
    names = ["user_id", "item_id", "event_type", "day", "ingest"]
    frame = pd.DataFrame(rows, columns=names).astype({"day": float, "ingest": int})
    return frame.sort_values(["day", "user_id", "item_id"], kind="stable").reset_index(drop=True)


def version(item, since, until=np.nan, first=None, text=0, price=np.nan, **attributes):
    """A row of item_columns."""
    first = since if first is None else first
    told = {"told": f"{item} since {since}", "text_hash": f"text {text}", "price": price, "attributes": attributes}
    return {"item_id": item, "valid_from": since, "valid_to": until, "first_seen": first, **told}


def items_of(*rows):
    """The frame that item_columns gives."""
    return pd.DataFrame(rows, columns=list(version("a", 0)))


def triples_of(*rows):
    """Rows (head, relation, tail, since) of silver.kg."""
    return pd.DataFrame(rows, columns=["head", "relation", "tail", "since"])


def made(events=(), items=(), triples=(), vectors=None, **more) -> World:
    """A world from rows."""
    frames = events_of(list(events)), items_of(*items), VECTORS if vectors is None else vectors, triples_of(*triples)
    return world(*frames, WEIGHTS, **more)


def day(number):
    """A day number as a date."""
    return EPOCH + timedelta(days=number)


def told(found: World, histories):
    """Each user's events by id; who has none is left out."""
    spans = zip(found.users, histories.starts, histories.starts[1:], strict=False)
    columns = list(zip(histories.items, histories.times, histories.weights, histories.types, strict=True))
    lists = {
        user: [(found.items[i], float(t), float(w), found.kinds[k]) for i, t, w, k in columns[a:b]]
        for user, a, b in spans
    }
    return {user: mine for user, mine in lists.items() if mine}


def edges(found: World, shelf: Shelf):
    """(item, node) pairs by name."""
    if shelf.graph is None:
        return set()
    return {(found.items[i], found.nodes[n]) for i, n in zip(*shelf.graph.nonzero(), strict=True)}


def by_item(found: World, values, default=np.nan):
    """A dict of what differs from `default`."""
    return {i: float(v) for i, v in zip(found.items, values, strict=True) if not np.array_equal(v, default, True)}


def state(found: World, cut=CUT):
    """Everything that a cut's training looks at, by id: codes may differ between worlds."""
    known, shelf = found.known(cut), found.shelf(cut)
    stock = found.stock(cut, DailyCounts.of(known))
    users = {name for name, size in zip(found.users, known.lengths, strict=True) if size}
    vectors = {i: v.tolist() for i, v in zip(found.items, shelf.text, strict=True) if v.any()}
    profiles = np.zeros((len(found.users), 1)) if known.profiles is None else known.profiles
    return {
        "known": told(found, known),
        "at": set(known.at.tolist()) - {end_of(cut)},
        "groups": {u: int(g) for u, g in zip(found.users, known.groups, strict=True) if u in users},
        "profiles": {u: p.tolist() for u, p in zip(found.users, profiles, strict=True) if p.any() and u in users},
        "on_shelf": {i for i, on in zip(found.items, found.on_shelf(cut), strict=True) if on},
        "text": vectors,
        "graph": edges(found, shelf),
        "listed": {} if shelf.first_seen is None else by_item(found, shelf.first_seen),
        "first": by_item(found, stock.first_seen),
        "price": by_item(found, stock.price),
        "counts": by_item(found, stock.daily.within(TODAY + 99, 200), 0.0),
        "texts": {i: t for i, t in zip(found.items, found.texts(cut), strict=True) if t != i},
    }


# --- no leak ------------------------------------------------------------------------------------------------


SETTLED = st.lists(
    st.tuples(
        st.sampled_from(USERS),
        st.sampled_from(ITEMS),
        st.sampled_from(sorted(WEIGHTS)),
        st.integers(-40, 0),
        st.booleans(),
    ),
    max_size=12,
)
PLANTED = st.lists(
    st.tuples(
        st.sampled_from([*USERS, "newcomer", "a newcomer"]),
        st.sampled_from([*ITEMS, "future", "linked", "A"]),
        st.sampled_from(sorted(WEIGHTS)),
        st.integers(-40, 3),
        st.integers(1, 3),
    ),
    min_size=1,
    max_size=6,
)
GRAPH = [
    *((item, ITEM_ENTITY, f"e{item}", TODAY - 9) for item in ["a", "b", "c", "linked"]),
    ("ea", "made_by", "acorn", TODAY - 9),
    ("eb", "made_by", "acorn", TODAY - 3),
    ("ec", "made_by", "acorn", TODAY + 1),
    ("elinked", "seen_in", "attic", TODAY - 9),
    ("ea", "seen_in", "attic", TODAY - 9),
    ("ea", "follows", "eb", TODAY - 9),
    ("ec", "follows", "eb", TODAY - 9),
]
CATALOGUE = [
    version("a", TODAY - 30, TODAY - 2, text=0, price=3.0, brand="x"),
    version("a", TODAY - 2, TODAY + 2, TODAY - 30, text=1, price=4.0, brand="x"),
    version("b", TODAY - 20, TODAY - 5, text=2, price=5.0, brand="x"),
    version("c", TODAY - 1, text=3, price=6.0, brand="y"),
]
LATER = [
    version("a", TODAY + 2, first=TODAY - 30, text=3, price=9.0, brand="z"),
    version("b", TODAY + 1, first=TODAY - 20, text=0, price=9.0, brand="z"),
    version("d", TODAY + 1, text=0, price=9.0, brand="y"),
    version("e", TODAY + 1, text=0, price=9.0, brand="x"),
]


def rows_of(drawn):
    """Events that have arrived by the cut: some a day late."""
    return [(u, i, k, TODAY + d - late + 0.5, TODAY + d) for u, i, k, d, late in drawn]


def later_rows(drawn):
    """Events that arrive behind the cut, whenever they happened."""
    return [(u, i, k, min(TODAY + d, TODAY + late) + 0.25, TODAY + late) for u, i, k, d, late in drawn]


@pytest.mark.parametrize("listed", [True, False], ids=["catalogue", "events only"])
@settings(max_examples=25, deadline=None)
@given(SETTLED, PLANTED)
def test_an_event_that_arrives_behind_a_cut_changes_nothing_at_it(listed, settled, planted):
    items = CATALOGUE if listed else []
    before = made(rows_of(settled), items, GRAPH)
    after = made([*rows_of(settled), *later_rows(planted)], items, GRAPH)
    assert state(after) == state(before)
    assert len(after.events) == len(before.events) + len(planted)


def test_what_is_told_of_items_people_and_graph_behind_a_cut_changes_nothing_at_it():
    rows = [(u, i, "buy", TODAY - n - 0.5, TODAY - n) for n, (u, i) in enumerate(zip("uvwuvw", "abcdab", strict=True))]
    patterns = pd.DataFrame({"user_id": ["u", "v", "u"], "day": [TODAY - 1, TODAY - 1, TODAY], "pattern_id": [1, 2, 3]})
    people = people_of(("u", TODAY - 5, TODAY + 1, 0), ("v", TODAY - 9, TODAY - 2, 1))
    before = made(rows, CATALOGUE, GRAPH, patterns=patterns, people=people)
    more = pd.DataFrame({"user_id": ["u", "w"], "day": [TODAY + 1] * 2, "pattern_id": [5, 6]})
    changed = pd.concat([people, people_of(("u", TODAY + 1, np.nan, 2), ("w", TODAY + 3, np.nan, 3))])
    late = [("eb", "seen_in", "attic", TODAY + 1), ("d", ITEM_ENTITY, "ea", TODAY + 1)]
    after = made(rows, [*CATALOGUE, *LATER], [*GRAPH, *late], patterns=pd.concat([patterns, more]), people=changed)
    assert state(after) == state(before)
    assert state(after, day(TODAY + 3)) != state(before, day(TODAY + 3))


def test_a_late_event_is_known_from_the_day_it_arrives():
    found = made([("u", "a", "buy", TODAY - 6.5, TODAY - 1), ("u", "b", "buy", TODAY - 3.5, TODAY - 4)])
    lists = [told(found, found.known(day(TODAY + n))).get("u", []) for n in (-5, -4, -2, -1)]
    assert [[item for item, *_ in mine] for mine in lists] == [[], ["b"], ["b"], ["a", "b"]]


def test_what_is_known_on_a_day_is_scored_as_of_its_end():
    found = made([("u", "a", "buy", TODAY + 86399 / 86400, TODAY), ("v", "b", "buy", TODAY - 1.0, TODAY)])
    known = found.known(CUT)
    assert (known.at == end_of(CUT)).all() and (known.at >= known.times.max()).all() and known.at[0] < TODAY + 1
    daily = DailyCounts.of(known)
    windows = [daily.within(known.at[0], days).tolist() for days in (1.0, 2.0)]
    assert windows == [[1, 0], [1, 1]]  # of one day: the day itself


# --- the catalogue ------------------------------------------------------------------------------------------


def test_a_version_holds_from_its_first_day_to_the_day_before_its_end():
    items = [
        version("a", TODAY, TODAY + 2, text=1, price=2.0),
        version("a", TODAY + 2, first=TODAY, text=2, price=3.0),
    ]
    found = made([], items)
    prices = [found.stock(day(TODAY + n), DailyCounts.of(found.known(CUT))).price.tolist() for n in (0, 1, 2, 9)]
    assert prices == [[2.0], [2.0], [3.0], [3.0]]
    assert [found.shelf(day(TODAY + n)).text[0].argmax() for n in (0, 1, 2)] == [1, 1, 2]
    assert not found.on_shelf(day(TODAY - 1)).any() and found.shelf(day(TODAY - 1)).first_seen is None
    assert found.texts(day(TODAY + 2)).tolist() == [f"a since {TODAY + 2}"]
    assert found.texts(day(TODAY - 1)).tolist() == ["a"]


def test_a_retired_item_is_off_the_shelf_and_what_nobody_lists_never_was_on_it():
    rows = [("u", "a", "buy", TODAY - 1.5, TODAY - 1), ("u", "unlisted", "buy", TODAY - 1.5, TODAY - 1)]
    found = made(rows, [version("a", TODAY - 9, TODAY), version("b", TODAY - 9)])
    assert found.items.tolist() == ["a", "b", "unlisted"]
    assert found.on_shelf(CUT).tolist() == [False, True, False]
    assert found.on_shelf(day(TODAY - 1)).tolist() == [True, True, False]


def test_a_retired_item_keeps_its_last_text_and_price_in_peoples_histories():
    items = [version("a", TODAY - 9, TODAY - 5, text=1, price=1.0), version("a", TODAY - 5, TODAY, text=2, price=3.0)]
    found = made([], [*items, version("a", TODAY + 1, text=3, price=9.0), version("b", TODAY - 9)])
    assert found.on_shelf(CUT).tolist() == [False, True]
    assert found.shelf(CUT).text[0].tolist() == VECTORS["text 2"].tolist()
    assert found.texts(CUT)[0] == f"a since {TODAY - 5}"
    assert found.stock(CUT, DailyCounts.of(found.known(CUT))).price[0] == 3.0
    assert found.shelf(day(TODAY + 1)).text[0].tolist() == VECTORS["text 3"].tolist()


def test_without_a_catalogue_what_had_an_event_is_on_the_shelf():
    found = made([("u", "a", "return", TODAY - 1.5, TODAY - 1), ("u", "b", "view", TODAY + 0.5, TODAY + 1)])
    assert found.on_shelf(CUT).tolist() == [True, False]
    assert found.on_shelf(day(TODAY + 1)).tolist() == [True, True]


def test_an_item_is_as_old_as_its_first_day_or_first_choice_whichever_came_first():
    rows = [("u", "a", "buy", TODAY - 9.5, TODAY - 9), ("u", "b", "buy", TODAY - 1.5, TODAY - 1)]
    rows += [("u", "d", "buy", TODAY - 2.5, TODAY - 2)]
    found = made(rows, [version(name, TODAY - 5) for name in "abc"])
    assert found.stock(CUT, DailyCounts.of(found.known(CUT))).first_seen.tolist() == [
        TODAY - 10,
        TODAY - 5,
        TODAY - 5,
        TODAY - 3,
    ]


def test_an_item_without_a_vector_has_zeros():
    found = made([("u", "x", "buy", TODAY - 0.5, TODAY)], [version("a", TODAY, text=1), version("b", TODAY, text=77)])
    assert found.shelf(CUT).text.tolist() == [VECTORS["text 1"].tolist(), [0] * 4, [0] * 4]
    assert made([], [version("a", TODAY)], vectors={}).shelf(CUT).text.tolist() == [[0]]


# --- the graph ----------------------------------------------------------------------------------------------


def links(*pairs):
    """What ties items to entities."""
    return [(item, ITEM_ENTITY, entity, TODAY - 5) for item, entity in pairs]


def graph_of(triples, items="abcdef", **more):
    """(item, node) pairs at the cut of a catalogue of items."""
    found = made([], [version(name, TODAY - 9, **more.get(name, {})) for name in items], triples)
    return edges(found, found.shelf(CUT))


def test_an_item_is_tied_to_its_entitys_neighbours_both_ways():
    triples = [*links("aA", "bB", "cC", "dD"), ("A", "by", "X", TODAY), ("B", "by", "X", TODAY)]
    triples += [("Y", "holds", "C", TODAY), ("Y", "holds", "D", TODAY), ("A", "alone", "Z", TODAY)]
    assert graph_of(triples) == {("a", "by|X"), ("b", "by|X"), ("c", "holds^-1|Y"), ("d", "holds^-1|Y")}


def test_a_cycle_ends_after_one_step():
    cycle = [("A", "next", "B", TODAY), ("B", "next", "C", TODAY), ("C", "next", "A", TODAY), ("A", "next", "A", TODAY)]
    found = graph_of(links("aA", "bB", "cC", "dA", "eB") + cycle)
    # next^-1|A would touch four of six items, next^-1|B only one.
    wanted = {"next|B": "ad", "next|A": "acd", "next|C": "be", "next^-1|C": "ad"}
    assert found == {(item, node) for node, items in wanted.items() for item in items}


def test_an_entity_without_an_item_and_an_item_without_an_entity_are_left():
    triples = [*links("aA", "bB"), ("ghost", ITEM_ENTITY, "A", TODAY - 5)]
    triples += [
        ("A", "by", "X", TODAY),
        ("B", "by", "X", TODAY),
        ("nobody", "by", "X", TODAY),
        ("nobody", "by", "W", TODAY),
    ]
    assert graph_of(triples) == {("a", "by|X"), ("b", "by|X")}
    assert graph_of([]) == set() == graph_of(links("aA", "bA"))


def test_an_edge_is_known_with_the_later_of_link_and_fact():
    triples = [("a", ITEM_ENTITY, "A", TODAY - 5), ("b", ITEM_ENTITY, "B", TODAY + 1), ("c", ITEM_ENTITY, "C", TODAY)]
    triples += [(entity, "by", "X", TODAY - 3) for entity in "ABC"]
    found = made([], [version(name, TODAY - 9) for name in "abcdef"], triples)
    # On the day before the cut only one item is tied to X: no node yet.
    assert [len(edges(found, found.shelf(day(TODAY + n)))) for n in (-4, -1, 0, 1)] == [0, 0, 2, 3]


def test_attributes_are_nodes_and_a_node_needs_two_items_and_not_most_of_them():
    attributes = {name: {"brand": "wide" if name in "abcd" else "rare"} for name in "abcdef"}
    attributes["a"] = {"brand": "wide", "colour": "red"}
    attributes["b"] = {"brand": "wide", "colour": ""}
    attributes["c"] = {"colour": "red"}
    attributes["d"] = {"colour": "blue", "brand": "wide"}
    found = graph_of([], **attributes)
    wide = {(name, "attribute brand|wide") for name in "abd"}
    rare = {(name, "attribute brand|rare") for name in "ef"}
    assert found == wide | rare | {("a", "attribute colour|red"), ("c", "attribute colour|red")}
    for name in "abcd":
        attributes[name]["brand"] = "wide"
    assert not wide & graph_of([], **attributes)


def test_how_wide_a_node_may_be_follows_from_the_items_of_the_day():
    items = [version(name, TODAY - 9, brand="x" if name in "abcd" else "y") for name in "abcdef"]
    later = [version(name, TODAY + 1, brand=f"brand of {name}") for name in "ghijkl"]
    found = made([("u", "m", "buy", TODAY + 1.5, TODAY + 1)], [*items, *later])
    assert {node for _, node in edges(found, found.shelf(CUT))} == {"attribute brand|y"}
    assert {node for _, node in edges(found, found.shelf(day(TODAY + 1)))} == {"attribute brand|x", "attribute brand|y"}


# --- codes --------------------------------------------------------------------------------------------------


def test_items_and_nodes_keep_the_order_of_a_model_and_new_ones_come_behind():
    rows = [("u", name, "buy", TODAY - 0.5, TODAY) for name in ("z", "b", "a")]
    items = [version(name, TODAY - 1, brand="x" if name in "ab" else "y") for name in "abcdefgh"]
    base, nodes = ["c", "gone", "a"], ["attribute brand|y", "attribute old|1"]
    found = made(rows, items, base=base, base_nodes=nodes)
    assert found.items.tolist() == ["c", "gone", "a", "b", "d", "e", "f", "g", "h", "z"]
    assert found.nodes == [*nodes, "attribute brand|x"]
    assert found.item_codes["z"] == 9 and found.user_codes == {"u": 0}
    assert edges(found, found.shelf(CUT)) == {("a", "attribute brand|x"), ("b", "attribute brand|x")}
    assert not found.on_shelf(CUT)[1]


def test_kinds_are_coded_and_weighed_by_the_configuration():
    rows = [("u", "a", kind, TODAY - n - 0.5, TODAY) for n, kind in enumerate(sorted(WEIGHTS))]
    found = made(rows)
    assert found.kinds == ["buy", "return", "search", "view"]
    assert told(found, found.known(CUT))["u"] == [
        ("a", TODAY - 3.5, 1.0, "view"),
        ("a", TODAY - 2.5, 0.0, "search"),
        ("a", TODAY - 1.5, -5.0, "return"),
        ("a", TODAY - 0.5, 5.0, "buy"),
    ]


def test_kinds_keep_the_codes_of_a_model_and_new_ones_come_behind():
    rows = [("u", "a", kind, TODAY - n - 0.5, TODAY) for n, kind in enumerate(sorted(WEIGHTS))]
    found = made(rows, base_kinds=["view", "gone", "buy"])
    assert found.kinds == ["view", "gone", "buy", "return", "search"]
    assert told(found, found.known(CUT)) == told(made(rows), made(rows).known(CUT))


def people_of(*rows):
    """(user, valid_from, valid_to, text) as profile_columns gives them."""
    frame = pd.DataFrame(rows, columns=["user_id", "valid_from", "valid_to", "text_hash"])
    return frame.assign(text_hash="text " + frame["text_hash"].astype(str))


def test_a_pattern_and_a_profile_are_those_of_the_day():
    rows = [(user, "a", "buy", TODAY - 9.5, TODAY - 9) for user in USERS]
    patterns = pd.DataFrame(
        {
            "user_id": ["u", "v", "u", "stranger"],
            "day": [TODAY - 5, TODAY - 5, TODAY - 1, TODAY - 1],
            "pattern_id": [4, 5, 6, 7],
        }
    )
    people = people_of(("u", TODAY - 5, TODAY - 1, 0), ("u", TODAY - 1, np.nan, 1), ("stranger", TODAY - 9, np.nan, 2))
    people = pd.concat([people, people_of(("v", TODAY - 9, np.nan, 99))])
    found = made(rows, patterns=patterns, people=people)
    assert [found.groups(day(TODAY + n)).tolist() for n in (-6, -5, -1)] == [[-1] * 3, [4, 5, -1], [6, -1, -1]]
    profiles = [found.profiles(day(TODAY + n)) for n in (-6, -2, -1)]
    assert profiles[0] is None
    assert [vectors.argmax(axis=1).tolist() for vectors in profiles[1:]] == [[0, 0, 0], [1, 0, 0]]
    assert [vectors.sum() for vectors in profiles[1:]] == [1, 1]  # the text of `v` has no vector


# --- targets ------------------------------------------------------------------------------------------------


def test_a_part_leaves_unknown_items_and_people_and_is_in_the_order_of_the_people():
    found = made([(user, item, "buy", TODAY - 0.5, TODAY) for user, item in ("vb", "ua", "wc")])
    rows = pd.DataFrame(
        {"user_id": ["w", "u", "nobody", "v"], "targets": [["c", "ghost"], ["b", "a"], ["a"], ["ghost"]]}
    )
    part = found.part(found.known(CUT), rows)
    assert [found.users[person] for person in part.people] == ["u", "v", "w"]
    assert part.target_starts.tolist() == [0, 2, 2, 3]
    assert [found.items[item] for item in part.target_items] == ["b", "a", "c"]
    assert told(found, part.histories) == {
        "u": [("a", TODAY - 0.5, 5.0, "buy")],
        "v": [("b", TODAY - 0.5, 5.0, "buy")],
        "w": [("c", TODAY - 0.5, 5.0, "buy")],
    }


def test_a_part_of_nobody_is_empty():
    found = made([("u", "a", "buy", TODAY - 0.5, TODAY)])
    part = found.part(found.known(CUT), pd.DataFrame({"user_id": [], "targets": []}))
    assert len(part) == 0 and len(part.target_items) == 0 and part.target_starts.tolist() == [0]


def test_an_empty_world_is_a_world():
    found = made()
    known, shelf = found.known(CUT), found.shelf(CUT)
    assert (len(known), known.n_items, len(shelf), shelf.graph) == (0, 0, 0, None)
    assert len(found.on_shelf(CUT)) == 0 and isinstance(found.stock(CUT, DailyCounts.of(known)), Stock)


def test_the_number_of_a_day():
    assert day_number(date(1970, 1, 1)) == 0 and day(day_number(CUT)) == CUT
