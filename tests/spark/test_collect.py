"""From tables to a world and to a day's shelf: both know the same, whatever the order of the rows."""

import hashlib
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
from tests.spark.rows import event, small_frame

from lakerec import collect as module
from lakerec.collect import collect, item_columns, readings, shelf_of_day, strangers
from lakerec.config import ITEM_ENTITY, Config
from lakerec.generators.popularity import ALWAYS, DailyCounts, PatternPopular
from lakerec.scorer.serving_day import ScoringDay
from lakerec.world import day_number, end_of

DAY = date(2024, 3, 10)
WEIGHTS = {"view": 1, "buy": 5, "return": -5, "search": 0, "wish": 0}
VECTOR = [0.6, 0.8]
LIKES = hashlib.sha256(b"likes red").hexdigest()


def on(days: int) -> date:
    """A day relative to the day."""
    return DAY + timedelta(days=days)


def config(**sections) -> Config:
    """A deployment whose lists leave out what was wished for."""
    columns = dict.fromkeys(("event_id", "user_id", "item_id", "event_type", "event_time"), "x")
    source = {"events": {"path": "{date}.csv", "columns": columns}}
    policy = {"policy": {"filter_types": ["wish"]}}
    return Config.model_validate({"lake": "lake", "sources": source, "event_types": WEIGHTS, **policy, **sections})


class Tables:
    """A lake of frames, and the versions that were asked for."""

    def __init__(self, frame, tables, mix=False):
        self.frame, self.tables, self.mix, self.asked = frame, tables, mix, {}

    def exists(self, name):
        return bool(self.tables.get(name))

    def read(self, name, version=None):
        self.asked[name] = version
        rows = self.tables.get(name, [])
        if self.mix:
            rows = sorted(rows, key=lambda row: hash((repr(row), 7)))
            return self.frame(name, rows).repartition(3)
        return self.frame(name, rows).coalesce(1)


EVENTS = [
    *(event(user, f"i{(n * m) % 4}", on(-n), 10 * n + m) for n in range(5) for m, user in enumerate("uvw")),
    event("u", "i1", on(-3), 9, "view", arrived=on(-1)),
    event("v", "i2", on(-2), 9, "return"),
    event("v", "brought back", on(-2), 19, "return"),
    event("w", "i3", on(-2), 29, "wish"),
    event("w", "wished", on(-2), 39, "wish"),
    event("w", "i3", on(-2), 49, "search"),
    event("w", "searched", on(-2), 50, "search"),
    event("w", "i3", on(-2), 51, "dance"),
    event("w", None, on(-2), 52, "search"),
    event("w", "", on(-2), 53, "view"),
    event("u", "i0", on(-1), 5, arrived=on(1)),
    event("late", "i0", on(0), 5, arrived=on(2)),
    event("u", "tomorrow", on(1), 5),
]


def version(name, since, until=None, first=None, text="", **attributes):
    """A row of silver.items."""
    told = {"title": f"title {name}", "text": text, "attributes": attributes, "text_hash": f"hash {text}"}
    return {"item_id": name, "valid_from": since, "valid_to": until, "first_seen": first or since, **told}


ITEMS = [
    version("i0", on(-30), on(-2), text="red", price="3.5", brand="x"),
    version("i0", on(-2), None, on(-30), text="blue", price="4", brand="x"),
    version("i1", on(-20), on(-1), text="red", price="oops", brand="x"),
    version("i2", on(-9), text="green", brand="y"),
    version("never chosen", on(0), text="", price="-1", brand="y"),
    version("i3", on(-20), on(1), brand="z"),
    version("i3", on(1), first=on(-20), text="red", brand="y"),
    version("tomorrow", on(1), text="red", brand="x"),
]
GRAPH = [
    *((item, ITEM_ENTITY, f"e {item}", on(-9)) for item in ("i0", "i1", "i2", "brought back", "unheard of")),
    *((f"e {item}", "by", "maker", on(-9)) for item in ("i0", "i1", "brought back")),
    ("e i2", "by", "maker", on(1)),
    ("e i1", "follows", "e i2", on(-9)),
    ("e i2", "follows", "e i1", on(-9)),
]


def profile(user, since, until, text, first=None):
    """A row of silver.users."""
    return {"user_id": user, "valid_from": since, "valid_to": until, "text": text, "first_seen": first or since}


def tables_of(listed=True, graph=True):
    """Every table that a day looks at."""
    hashed = {text: f"hash {text}" for text in ("red", "blue")} | {"likes red": LIKES}
    vectors = [{"model_id": "m1", "text_hash": name, "vector": VECTOR} for name in hashed.values()]
    patterns = [("u", on(-5), 0), ("u", on(-1), 1), ("v", on(-1), 0), ("w", on(1), 1), ("v", on(1), 1)]
    shares = [(on(-5), 0, "i0", 0.5), (on(-1), 0, "i2", 0.25), (on(-1), 1, "gone", 0.75), (on(1), 0, "i1", 1.0)]
    return {
        "silver.events": EVENTS,
        "silver.items": ITEMS if listed else [],
        "silver.kg": [dict(zip(("head", "relation", "tail", "first_seen"), row, strict=True)) for row in GRAPH]
        if graph
        else [],
        "silver.users": [
            profile("u", on(-9), on(1), "likes red"),
            profile("u", on(1), None, "likes blue"),
            profile("v", on(-9), None, ""),
            profile("stranger", on(-4), None, "likes red", on(-6)),
            profile("mute stranger", on(-4), None, None),
            profile("next stranger", on(1), None, "likes red"),
        ],
        "ml.item_embeddings": [*vectors, {"model_id": "another", "text_hash": "hash green", "vector": VECTOR}],
        "ml.user_patterns": [{"user_id": u, "as_of_date": d, "pattern_id": p} for u, d, p in patterns],
        "ml.behaviour_patterns": [
            {"as_of_date": d, "pattern_id": p, "popular": [{"item_id": i, "score": s}]} for d, p, i, s in shares
        ],
    }


@pytest.fixture(autouse=True)
def one_model(monkeypatch):
    """The name of the language model without its weights."""
    monkeypatch.setattr(module, "model_id", lambda name: "m1")


@pytest.fixture(scope="module", params=["catalogue and graph", "catalogue", "events only"])
def both(request, frame):
    """The world and the shelf of one day, from the same tables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "model_id", lambda name: "m1")
        lake = Tables(frame, tables_of(request.param != "events only", request.param == "catalogue and graph"))
        base, nodes = ["i2", "retired long ago", "i0"], ["by|maker"]
        world = collect(lake, config(), on(2), base, nodes)
        return world, shelf_of_day(lake, config(), DAY, base, nodes), request.param


def test_the_shelf_of_a_day_is_that_of_the_world(both):
    """The world was collected two days later: what came since stands behind and says nothing of the day."""
    world, day, _ = both
    known, shelf = world.known(DAY), world.shelf(DAY)
    stock, codes = world.stock(DAY, DailyCounts.of(known)), [world.item_codes[item] for item in day.items]
    assert day.items[:3] == world.items[:3].tolist() == ["i2", "retired long ago", "i0"]
    assert set(world.items) - set(day.items) <= {"tomorrow"}
    others = [code for code in range(len(world.items)) if code not in codes]
    assert np.array_equal(day.on_shelf, world.on_shelf(DAY)[codes]) and not world.on_shelf(DAY)[others].any()
    assert np.array_equal(day.texts, world.texts(DAY)[codes])
    assert np.array_equal(day.stock.first_seen, stock.first_seen[codes], equal_nan=True)
    assert np.array_equal(day.stock.price, stock.price[codes], equal_nan=True)
    for days in (1.0, 2.0, 5.0, ALWAYS):
        assert np.array_equal(day.stock.daily.within(day.at, days), stock.daily.within(known.at[0], days)[codes])
    assert day.kinds == world.kinds and day.weights == WEIGHTS and (known.at == day.at).all()
    assert (day.shelf.first_seen is None) == (shelf.first_seen is None)
    if shelf.first_seen is not None:
        assert np.array_equal(day.shelf.first_seen, shelf.first_seen[codes], equal_nan=True)


def test_texts_and_graph_of_a_day_are_those_of_the_world(both):
    world, day, kind = both
    shelf, codes = world.shelf(DAY), [world.item_codes[item] for item in day.items]
    if kind != "events only":
        assert np.array_equal(day.shelf.text, shelf.text[codes]) and day.shelf.text.any()
    assert (day.shelf.graph is None) == (shelf.graph is None) == (kind == "events only")
    if shelf.graph is not None:
        one, other = day.shelf.graph.toarray(), shelf.graph[codes].toarray()
        width = min(one.shape[1], other.shape[1])
        assert np.array_equal(one[:, :1], other[:, :1])  # the model's nodes keep their places
        assert sorted(map(tuple, one[:, :width].T)) == sorted(map(tuple, other[:, :width].T))


def test_a_readings_histories_are_those_of_the_world(both, frame, spark):
    world, day, kind = both
    lake = Tables(frame, tables_of(kind != "events only", kind == "catalogue and graph"))
    due = small_frame(spark, [(user,) for user in ("w", "u", "v", "late", "stranger")], "user_id string")
    sequences = frame("ml.sequences", [{"user_id": "u", "as_of_date": on(-n), "text": f"text {n}"} for n in (-1, 0, 3)])
    rows = readings(lake, config(), DAY, due, lake.read("silver.events"), sequences).toPandas()
    rows = rows.sort_values("user_id", ignore_index=True)
    assert list(rows.columns) == list(module.READ)
    assert rows["user_id"].tolist() == ["late", "stranger", "u", "v", "w"]
    found, wanted = ScoringDay(day, None).histories(rows), world.known(DAY)
    for place, user in enumerate(rows["user_id"]):
        mine = found.select([place])
        if user not in world.user_codes:
            assert len(mine.items) == 0
            continue
        theirs = wanted.select([world.user_codes[user]])
        assert [day.items[item] for item in mine.items] == [world.items[item] for item in theirs.items], user
        for name in ("times", "weights", "types", "groups", "at"):
            assert np.array_equal(getattr(mine, name), getattr(theirs, name)), (user, name)
        assert np.array_equal(mine.profiles, theirs.profiles)
    told = {row["user_id"]: row for row in rows.to_dict("records")}
    assert told["u"]["history"] == "text 0" and told["v"]["history"] is None
    assert sorted(told["w"]["taken"]) == ["i3", "wished"] and told["u"]["taken"] is None
    assert np.allclose(told["stranger"]["profile"], VECTOR) and told["v"]["profile"] is None
    assert told["late"]["items"] is None


def test_a_patterns_shares_are_those_of_the_newest_patterns_known(both):
    """As the generator counts them that the ranker has learned with."""
    world, day, _ = both
    codes = [world.item_codes[item] for item in day.items]
    fitted = PatternPopular.fit(world.known(DAY), world.shelf(DAY)).shares
    assert np.array_equal(day.patterns, fitted[:, codes]) and np.allclose(day.patterns.sum(axis=1), 1)
    assert not np.array_equal(*day.patterns)


def test_neither_the_order_of_the_rows_nor_their_partitions_change_anything(frame):
    one, other = (collect(Tables(frame, tables_of(), mix), config(), on(2)) for mix in (False, True))
    for name in ("users", "items", "vectors"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    for name in ("events", "versions", "edges", "patterns", "people"):
        assert getattr(one, name).equals(getattr(other, name)), name
    assert (one.kinds, one.nodes) == (other.kinds, other.nodes)


def test_which_events_are_known_and_kept(frame):
    found = collect(Tables(frame, tables_of()), config(), DAY)
    known = found.known(DAY)
    kinds = {found.kinds[kind] for kind in known.types}
    assert kinds == {"view", "buy", "return", "wish"}  # not the search: it weighs nothing and nothing filters by it
    assert {"searched", "tomorrow", ""}.isdisjoint(found.items) and {"wished", "brought back"} < set(found.items)
    assert "late" not in found.users
    late = found.known(on(-2)), found.known(on(-1))
    counts = [len(histories.items[histories.types == found.kinds.index("view")]) for histories in late]
    assert counts == [0, 1]
    events = [row for row in EVENTS if row["ingest_date"] <= DAY and row["event_type"] in kinds and row["item_id"]]
    assert len(known.items) == len(events)
    assert dict(zip(known.types.tolist(), known.weights.tolist(), strict=True)) == {
        found.kinds.index(kind): WEIGHTS[kind] for kind in kinds
    }


def test_what_is_told_later_than_the_day_is_not_collected(frame):
    found = collect(Tables(frame, tables_of()), config(), DAY)
    assert (found.versions["valid_from"] <= day_number(DAY)).all() and (found.edges["since"] <= day_number(DAY)).all()
    assert (found.patterns["day"] <= day_number(DAY)).all() and (found.people["valid_from"] <= day_number(DAY)).all()
    assert len(found.vectors) == 3  # those of another model are left


def test_the_tables_are_read_in_the_versions_of_the_snapshot(frame):
    lake = Tables(frame, {})
    pinned = {"silver.events": 3, "silver.kg": 0, "ml.user_patterns": 7}
    world = collect(lake, config(), DAY, versions=pinned)
    assert {name: asked for name, asked in lake.asked.items() if asked is not None} == pinned
    assert set(lake.asked) == set(module.INPUTS) - {"ml.sequences"}
    assert len(world.users) == len(world.items) == 0


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo", "UTC"])
def test_a_day_is_one_of_the_sessions_time_zone(frame, spark, zone):
    from zoneinfo import ZoneInfo

    before = spark.conf.get("spark.sql.session.timeZone")
    moment = datetime(2024, 3, 10, 2, 30, 15, tzinfo=UTC)
    local = moment.astimezone(ZoneInfo(zone))
    row = event("u", "a", local.date()) | {"event_time": moment, "ingest_date": local.date() + timedelta(days=1)}
    try:
        spark.conf.set("spark.sql.session.timeZone", zone)
        world = collect(Tables(frame, {"silver.events": [row]}), config(), on(5))
    finally:
        spark.conf.set("spark.sql.session.timeZone", before)
    second = local.hour * 3600 + local.minute * 60 + local.second
    assert world.events["day"].tolist() == [pytest.approx(day_number(local.date()) + second / 86400, abs=1e-9)]
    assert world.events["ingest"].tolist() == [day_number(local.date()) + 1]
    assert world.known(on(5)).at.tolist() == [end_of(on(5))]


def test_the_columns_of_an_item(frame):
    rows = [
        version("priced", DAY, on(1), on(-3), "text", price="12.5", brand="x"),
        version("unpriced", DAY, text="", price="oops"),
        {"item_id": "bare", "valid_from": DAY, "first_seen": DAY},
    ]
    found = {row["item_id"]: row for row in item_columns(frame("silver.items", rows)).collect()}
    assert {name: row["price"] for name, row in found.items()} == {"priced": 12.5, "unpriced": None, "bare": None}
    assert {name: row["told"] for name, row in found.items()} == {
        "priced": "text",
        "unpriced": "title unpriced",
        "bare": "bare",
    }
    days = [day_number(day) for day in (DAY, on(1), on(-3))]
    assert [found["priced"][name] for name in ("valid_from", "valid_to", "first_seen")] == days
    assert found["bare"]["valid_to"] is None


def test_strangers_have_a_profile_and_no_event(frame, spark):
    known = small_frame(spark, [("u",), ("v",)], "user_id string")
    found = strangers(Tables(frame, tables_of()), DAY, known).collect()
    assert [tuple(row) for row in found] == [("stranger", on(-6))]
