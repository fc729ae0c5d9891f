"""The job: patterns of the last day and of a training's cuts, made once, and the same again."""

from __future__ import annotations

from datetime import date

import pytest
from tests.conftest import LAKE_STEPS, Shop, day_after, event

DAYS = 4
CUTS = [day_after(0), day_after(1), day_after(2)]
LAST = day_after(DAYS - 1)


def titles() -> list[str]:
    """Five lamps and five cakes."""
    return [f"i{n},{'garden lamp' if n < 5 else 'birthday cake'} {'abcdefghij'[n] * 3}" for n in range(10)]


def deliver(shop: Shop, days: int = DAYS) -> None:
    """On each day all buy, half of them lamps and half of them cakes; on the first day only two people do."""
    shop.write("items.csv.gz", "item_id,title", titles())
    for n in range(days):
        buyers = range(8) if n else (0, 4)
        rows = [(m, (m + n) % 5 if m < 4 else 5 + (m + 2 * n) % 5) for m in buyers]
        rows += [(m, m % 4 if m < 4 else 5 + m % 4) for m in buyers]
        shop.deliver(
            day_after(n), [event(100 * n + i, f"u{m}", day_after(n), f"i{k}") for i, (m, k) in enumerate(rows)]
        )


@pytest.fixture(scope="module")
def built(spark, tmp_path_factory) -> tuple[Shop, dict]:
    """A lake of four days with their patterns, and what the first run said."""
    shop = Shop(tmp_path_factory.mktemp("patterns"), spark)
    shop.settings["patterns"] = {"ks": [2], "cuts": True}
    deliver(shop)
    return shop, shop.run(*LAKE_STEPS, "build_patterns", days=DAYS)


def by_day(rows: list[dict]) -> dict[date, int]:
    """How many rows each day has."""
    days = [row["as_of_date"] for row in rows]
    return {day: days.count(day) for day in sorted(set(days))}


def test_the_last_day_and_the_cuts_with_enough_users_have_patterns(built):
    shop, counts = built
    assert (counts["days"], counts["written"], counts["patterns"]) == (3, 24, 2)
    assert by_day(shop.rows("ml.user_patterns")) == dict.fromkeys((*CUTS[1:], LAST), 8)
    assert by_day(shop.rows("ml.behaviour_patterns")) == dict.fromkeys((*CUTS[1:], LAST), 2)


def test_the_language_model_tells_lamps_from_cakes(built):
    shop, _ = built
    mine = {row["user_id"]: row["pattern_id"] for row in shop.rows("ml.user_patterns") if row["as_of_date"] == LAST}
    assert len({mine[f"u{n}"] for n in range(4)}) == len({mine[f"u{n}"] for n in range(4, 8)}) == 1
    names = {row["pattern_id"]: row for row in shop.rows("ml.behaviour_patterns") if row["as_of_date"] == LAST}
    lamps, cakes = names[mine["u0"]], names[mine["u4"]]
    assert {"garden", "lamp"} < set(lamps["terms"]) and {"birthday", "cake"} < set(cakes["terms"])
    assert {entry["item_id"] for entry in lamps["popular"]} <= {f"i{n}" for n in range(5)}


def test_a_second_run_builds_the_last_day_alone_and_the_same(built):
    shop, first = built
    before = shop.rows("ml.behaviour_patterns"), shop.rows("ml.user_patterns")
    again = shop.run("build_patterns", days=DAYS)
    assert (shop.rows("ml.behaviour_patterns"), shop.rows("ml.user_patterns")) == before
    assert (again["days"], again["written"], again["model"]) == (1, 8, first["model"])
    told = [row for row in shop.rows("ops.runs") if row["job"] == "build_patterns"]
    assert [row["rows_written"] for row in sorted(told, key=lambda row: row["started_at"])][:2] == [24, 8]


def test_a_day_built_alone_is_the_same_and_knows_nothing_of_what_came_later(built, spark, tmp_path):
    shop, _ = built
    alone = Shop(tmp_path, spark, shop.settings)
    deliver(alone, DAYS - 1)
    alone.run(*LAKE_STEPS, "build_patterns", days=DAYS - 1)
    for name in ("ml.behaviour_patterns", "ml.user_patterns"):
        theirs = [row for row in shop.rows(name) if row["as_of_date"] == CUTS[2]]
        assert [row for row in alone.rows(name) if row["as_of_date"] == CUTS[2]] == theirs


def test_switched_off_it_writes_nothing_and_says_so(shop: Shop, capsys):
    shop.settings["patterns"] = {"enabled": False}
    assert shop.run("build_patterns")["written"] == 0
    assert "patterns.enabled is false" in capsys.readouterr().out
    assert shop.version("ml.behaviour_patterns") == shop.version("ops.runs") == -1


def test_a_lake_without_users_has_no_patterns(shop: Shop, capsys):
    counts = shop.run("build_patterns")
    assert (counts["days"], counts["patterns"]) == (0, 0) and "0 users" in capsys.readouterr().out
    assert shop.rows("ml.behaviour_patterns") == []
