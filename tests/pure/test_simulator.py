"""The simulator: same bytes, planted counts, planted preferences."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter, defaultdict
from datetime import date, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakerec.errors import UsageError
from lakerec.simulator import BAD, DIRT, EMPTY_DAY, EVENT_COLUMNS, DayCounts, SimulationSummary, simulate

START, DAYS, USERS, ITEMS, SEED = date(2025, 1, 1), 15, 300, 200, 7
LATE_DAYS = 3


@pytest.fixture(scope="module")
def summary(tmp_path_factory) -> SimulationSummary:
    return simulate(tmp_path_factory.mktemp("demo"), START, DAYS, USERS, ITEMS, SEED)


@pytest.fixture(scope="module")
def truth(summary) -> dict:
    return json.loads((summary.out / "truth.json").read_text())


@pytest.fixture(scope="module")
def good(summary) -> list[dict[str, str]]:
    """The rows a careful reader keeps, in order of time."""
    known = known_items(summary.out)
    seen: set[str] = set()
    rows = []
    for day in summary.days:
        for cells in event_rows(summary.out, day):
            if judge(cells, day, known, seen) in ("good", "late"):
                rows.append(dict(zip(EVENT_COLUMNS.split(","), cells, strict=True)))
    return sorted(rows, key=lambda r: (r["event_time"], r["event_id"]))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def table(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text, delimiter=delimiter))


def event_rows(out: Path, day: date) -> list[list[str]]:
    header, *lines = gzip.decompress((out / f"events/{day}.csv.gz").read_bytes()).decode().splitlines()
    assert header == EVENT_COLUMNS
    return [line.split(",") for line in lines]


def known_items(out: Path) -> set[str]:
    return {row["item_id"] for path in (out / "items").iterdir() for row in table(path)}


def judge(cells: list[str], day: date, known: set[str], seen: set[str]) -> str:
    """What a row is, found from the file alone: an oracle that shares nothing with the simulator."""
    if len(cells) != len(EVENT_COLUMNS.split(",")):
        return "unparsable"
    event_id, user, item, kind, time, *_, agent, _list_id = cells
    if "bot" in agent:
        return "bot"
    if not user:
        return "no_user"
    if item not in known and kind != "search":
        return "unknown_item"
    try:
        lag = (day - datetime.strptime(time, "%Y-%m-%d %H:%M:%S").date()).days
    except ValueError:
        return "bad_time"
    if not 0 <= lag <= LATE_DAYS:
        return "future" if lag < 0 else "too_late"
    if event_id in seen:
        return "redelivered" if lag else "duplicates"
    seen.add(event_id)
    return "late" if lag else "good"


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate(tmp_path / name, START, 6, 30, 40, seed)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert a["events/2025-01-02.csv.gz"] != c["events/2025-01-02.csv.gz"]


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**40), users=st.integers(1, 15), items=st.integers(20, 60), short=st.integers(1, 8),
    more=st.integers(1, 6),
)  # fmt: skip
def test_a_longer_simulation_begins_with_the_same_files(tmp_path_factory, seed, users, items, short, more):
    first, second = tmp_path_factory.mktemp("short"), tmp_path_factory.mktemp("long")
    simulate(first, START, short, users, items, seed)
    simulate(second, START, short + more, users, items, seed)
    longer = contents(second)
    beyond = {str(START + timedelta(days=short + n)) for n in range(more)}
    assert contents(first) == {name: data for name, data in longer.items() if Path(name).name[:10] not in beyond}


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**40), users=st.integers(1, 120), items=st.integers(20, 80), days=st.integers(1, 9))
def test_counts_match_the_files(tmp_path_factory, seed, users, items, days):
    summary = simulate(tmp_path_factory.mktemp("any"), START, days, users, items, seed)
    assert summary.days == counted(summary)


def test_counts_of_the_demo_match_the_files(summary):
    assert summary.days == counted(summary)
    assert summary.total.written == sum(day.written for day in summary.days.values())


def counted(summary: SimulationSummary) -> dict[date, DayCounts]:
    known, seen, days = known_items(summary.out), set(), {}
    for day in summary.days:
        rows = event_rows(summary.out, day)
        kinds = Counter(judge(cells, day, known, seen) for cells in rows)
        written = kinds.pop("good", 0)
        days[day] = DayCounts(rows=len(rows), **kinds)
        assert days[day].written == written + days[day].late
    return days


def test_every_kind_of_dirt_is_there_and_little_of_it(summary):
    total = summary.total
    assert all(getattr(total, kind) > 0 for kind in (*DIRT, "no_user", "bot"))
    assert all(day.bad < 0.03 * day.rows for day in summary.days.values() if day.rows)
    assert 0.015 < total.bad / total.rows < 0.025
    assert total.bad == sum(getattr(total, kind) for kind in BAD)


def test_one_day_between_the_first_and_the_last_is_empty(summary):
    empty = [number for number, day in enumerate(summary.days.values()) if not day.rows]
    assert empty == [EMPTY_DAY]
    assert all(1_500 <= day.rows <= 4_000 for day in summary.days.values() if day.rows)


def test_both_ways_of_breaking_a_line_occur(summary):
    lengths = Counter(len(cells) for day in summary.days for cells in event_rows(summary.out, day))
    assert set(lengths) == {1, 3, 10}


def test_impressions_and_searches_carry_what_is_theirs(good):
    for row in good:
        assert bool(row["position"]) == bool(row["list_id"]) == (row["event_type"] == "impression")
        assert bool(row["query"]) == (not row["item_id"]) == (row["event_type"] == "search")
    lists = defaultdict(list)
    for row in good:
        if row["event_type"] == "impression":
            lists[row["list_id"]].append(row)
    assert all(len({row["item_id"] for row in rows}) == len(rows) for rows in lists.values())


def test_a_purchase_follows_a_cart_and_a_cart_a_view(good):
    """Not always: the view itself may have been spoilt."""
    before = {"cart": "view", "purchase": "cart"}
    seen, followed = set(), []
    for row in good:
        kind, key = row["event_type"], (row["user_id"], row["item_id"], row["event_time"][:10])
        if kind in before:
            followed.append((before[kind], *key) in seen)
        seen.add((kind, *key))
    assert sum(followed) > 0.93 * len(followed) > 300


def test_purchases_fall_in_the_planted_categories_before_and_after_a_drift(good, truth):
    hits = defaultdict(list)
    for row in good:
        if row["event_type"] == "purchase":
            user, item = truth["users"][row["user_id"]], truth["items"][row["item_id"]]
            drifted = user["drift_date"] is not None and row["event_time"][:10] >= user["drift_date"]
            hits[drifted].append(item["category"] in user["categories_after" if drifted else "categories"])
    assert sum(hits[False]) > 0.9 * len(hits[False]) > 300
    assert sum(hits[True]) > 0.6 * len(hits[True]) > 10  # staples of before stay


def test_views_follow_the_taste(good, truth):
    """The share of views that match the user's audience is well above that of impressions."""
    match = {kind: [truth["users"][r["user_id"]]["audience"] == truth["items"][r["item_id"]]["audience"]
                    for r in good if r["event_type"] == kind] for kind in ("impression", "view")}  # fmt: skip
    share = {kind: sum(hits) / len(hits) for kind, hits in match.items()}
    assert share["view"] > 1.3 * share["impression"]


def test_the_next_type_follows_the_last(good, truth):
    last, steps = {}, []
    for row in good:
        if row["event_type"] == "view":
            type_ = truth["items"][row["item_id"]]["type"]
            if row["user_id"] in last:
                steps.append(truth["follows"][last[row["user_id"]]] == type_)
            last[row["user_id"]] = type_
    assert sum(steps) > 0.35 * len(steps)  # by chance: under 0.1


def test_items_high_in_the_list_are_viewed_more(good):
    shown, viewed = Counter(), Counter()
    views = {(r["user_id"], r["item_id"], r["event_time"][:10]) for r in good if r["event_type"] == "view"}
    for row in good:
        if row["event_type"] == "impression":
            shown[row["position"]] += 1
            viewed[row["position"]] += (row["user_id"], row["item_id"], row["event_time"][:10]) in views
    rate = {position: viewed[position] / shown[position] for position in shown}
    assert rate["1"] > 1.5 * rate["6"]


def test_consumables_are_bought_again(good, truth):
    bought = Counter((r["user_id"], r["item_id"]) for r in good if r["event_type"] == "purchase")
    again = Counter(truth["items"][item]["interval"] > 0 for (_, item), times in bought.items() if times > 1)
    assert again[True] > 30
    assert not again[False]


def test_popularity_and_activity_have_long_tails(good):
    for column in ("item_id", "user_id"):
        counts = sorted(Counter(r[column] for r in good if r["item_id"]).values(), reverse=True)
        assert sum(counts[: len(counts) // 5]) > 0.45 * sum(counts)


def test_the_catalogue_grows_shrinks_and_is_corrected(summary):
    paths = sorted((summary.out / "items").iterdir())
    first, last = ({r["item_id"]: r for r in table(path)} for path in (paths[0], paths[-1]))
    assert paths[0].name == f"{START}.csv.gz" and len(paths) < DAYS
    assert last.keys() - first.keys() and first.keys() - last.keys()
    corrected = {i for i in first.keys() & last.keys() if first[i]["title"] != last[i]["title"]}
    assert corrected and all(" fro " in first[i]["title"] and " for " in last[i]["title"] for i in corrected)
    assert all(a.read_bytes() != b.read_bytes() for a, b in pairwise(paths))


def test_events_name_items_on_sale_that_day(summary, good):
    on_sale: set[str] = set()
    for day in summary.days:
        path = summary.out / f"items/{day}.csv.gz"
        on_sale = {row["item_id"] for row in table(path)} if path.exists() else on_sale
        items = {r["item_id"] for r in good if r["event_time"].startswith(str(day)) and r["item_id"]}
        assert items <= on_sale


def test_users_appear_before_their_events_and_profiles_follow_the_drift(summary, good, truth):
    first, profiles = {}, defaultdict(dict)
    for path in sorted((summary.out / "users").iterdir()):
        for row in table(path):
            first.setdefault(row["user_id"], path.name[:10])
            profiles[row["user_id"]][path.name[:10]] = row["profile"]
    assert len(first) == USERS
    assert all(first[r["user_id"]] <= r["event_time"][:10] for r in good)
    drifts = {
        u: t["drift_date"] for u, t in truth["users"].items() if t["drift_date"] and t["drift_date"] < "2025-01-16"
    }
    assert drifts and all(profiles[user][day] != profiles[user][first[user]] for user, day in drifts.items())


def test_the_graph_links_every_item_and_ends_in_one_root(summary):
    entity = {row["item_id"]: row["entity"] for row in table(summary.out / "kg/links.tsv.gz", "\t")}
    triples = table(summary.out / "kg/triples.tsv.gz", "\t")
    relations = defaultdict(set)
    for row in triples:
        relations[row["head"]].add(row["relation"])
    item_relations = {"instance_of", "has_brand", "has_material", "for_audience"}
    assert len(entity) == ITEMS and all(relations[e] == item_relations for e in entity.values())
    parent = {r["head"]: r["tail"] for r in triples if r["relation"] in ("instance_of", "subcategory_of")}
    assert {parent[parent[parent[e]]] for e in entity.values()} == {"category/everything"}


@pytest.mark.parametrize(
    "wrong", [{"days": 0}, {"users": 0}, {"items": 19}, {"seed": -1}], ids=lambda wrong: next(iter(wrong))
)
def test_sizes_that_make_no_sense_are_refused(tmp_path, wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        simulate(tmp_path, START, **{"days": 1, "users": 1, "items": 20, "seed": 0} | wrong)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_another_simulation_is_refused_and_the_same_one_extended(tmp_path):
    simulate(tmp_path, START, 1, 5, 20, 1)
    simulate(tmp_path, START, 2, 5, 20, 1)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="another simulation"):
        simulate(tmp_path, START, 1, 5, 20, 2)
    assert contents(tmp_path) == before
