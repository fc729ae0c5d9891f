"""Every audit finds what it is for: each in a real lake that is broken in just that way."""

from __future__ import annotations

import shutil
from datetime import datetime
from typing import Any

import pytest
from tests.conftest import DAY, LAKE_STEPS, Shop, day_after, event

from lakerec import audits
from lakerec.errors import ContractError, DataQualityError
from lakerec.tables import SQL, table_names

DAYS = 3
NOON = datetime(2026, 3, 2, 12)
MODEL = {"as_of_date": day_after(1), "user_id": "u1", "item_id": "i1", "score": 0.5, "model_version": "popularity"}
SEQUENCE = {"as_of_date": day_after(9), "user_id": "u1", "item_ids": ["i1"], "event_types": ["view"]}
PLACE = {"as_of_date": DAY, "user_id": "u1", "pattern_id": 7, "similarity": 0.5}
EVENT = {"event_date": DAY, "event_id": "x", "user_id": "u1", "item_id": "i1", "event_type": "view"}
EVENT |= {"event_time": NOON, "ingest_date": DAY}
VERSION = {"valid_from": day_after(1), "text": "x", "title": "x"}

# For each audit: the table, and rows that break it when they are appended to a lake that is whole.
BROKEN: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "silver.events.id_on_two_days": ("silver.events", [EVENT, EVENT | {"event_date": day_after(1)}]),
    "silver.events.day_of_event": ("silver.events", [EVENT | {"ingest_date": day_after(-1)}]),
    "ops.runs.every_row_accounted_for": (
        "ops.runs",
        [{"run_id": "r", "ingest_date": DAY, "rows_read": 5, "rows_written": 3, "rows_quarantined": 1}],
    ),
    "gold.recommendations.ranks_without_a_hole": ("gold.recommendations", [MODEL | {"rank": n} for n in (1, 3)]),
    "gold.recommendations.fallback_in_every_day": (
        "gold.recommendations",
        [MODEL | {"as_of_date": day_after(-1), "rank": 1}],
    ),
    "gold.recommendations.day_known": ("gold.recommendations", [MODEL | {"as_of_date": day_after(DAYS), "rank": 1}]),
    "gold.recommendations.model_promoted": ("gold.recommendations", [MODEL | {"model_version": "v1", "rank": 1}]),
    "ml.sequences.arrays_of_one_length": ("ml.sequences", [SEQUENCE | {"event_times": [], "values": [None]}]),
    "ml.sequences.newest_has_every_event": (
        "ml.sequences",
        [SEQUENCE | {"event_times": [NOON], "values": [None], "events": 1}],
    ),
    "silver.items.versions_without_overlap": ("silver.items", [VERSION | {"item_id": "i1"}]),
    "silver.users.versions_without_overlap": (
        "silver.users",
        [VERSION | {"user_id": "u1", "valid_to": DAY}],
    ),
    "ml.user_patterns.pattern_known": ("ml.user_patterns", [PLACE]),
    "quarantine.events.rule_named": ("quarantine.events", [{"ingest_date": DAY, "failed_rules": []}]),
}


@pytest.fixture(scope="module")
def whole(spark, tmp_path_factory) -> Shop:
    """A lake of three days that breaks nothing."""
    shop = Shop(tmp_path_factory.mktemp("whole"), spark)
    shop.write("items.csv.gz", "item_id,title", [f"i{n},thing number {n}" for n in range(10)])
    for n in range(DAYS):
        day = day_after(n)
        shop.deliver(day, [event(10 * n + m, user=f"u{m % 2}", day=day) for m in range(6)] + ["torn"])
        shop.run(*LAKE_STEPS, "score_candidates", start=day)
    return shop


@pytest.fixture
def broken(whole: Shop, tmp_path) -> Shop:
    """A lake of the same, to be broken."""
    shutil.copytree(whole.folder, tmp_path, dirs_exist_ok=True)
    return Shop(tmp_path, whole.spark, whole.settings)


def findings(shop: Shop, name: str) -> audits.Finding:
    job = shop.job("audit_lake", days=DAYS)
    return audits.found(audits.query_audit(job.lake, name, job.window.end))


def test_every_query_is_tested_here():
    assert set(BROKEN) == {file.stem for file in (SQL / "audits").glob("*.sql")}


@pytest.mark.parametrize("name", BROKEN)
def test_an_audit_finds_what_breaks_it_and_nothing_in_a_whole_lake(whole: Shop, broken: Shop, name: str):
    assert findings(whole, name).broken == 0
    table, rows = BROKEN[name]
    broken.job("look").lake.append_rows(table, rows)
    found = findings(broken, name)
    assert found.broken == 1 and found.examples[0] in found.line()


def test_what_was_repeated_in_any_table_is_found_by_its_key(broken: Shop):
    lake = broken.job("look").lake
    there = [name for name in table_names() if lake.exists(name)]
    for name in there:
        assert audits.found(audits.key_audit(name, lake.read(name))).broken == 0
        first = lake.read(name).limit(1)
        found = audits.found(audits.key_audit(name, lake.read(name).unionAll(first)))
        assert (found.broken, found.failed) == (1, True), name
    assert len(there) >= 8


def test_a_lake_that_is_whole_is_green_and_one_that_is_broken_red_with_the_row(broken: Shop):
    counts = broken.run("audit_lake", days=DAYS)
    assert counts["failed"] == 0 and counts["audits"] > 15
    outcomes = [row for row in broken.rows("ops.dq_results") if row["kind"] == "audit"]
    assert len(outcomes) == counts["audits"] and all(row["success"] for row in outcomes)
    broken.job("look").lake.append_rows("gold.recommendations", [MODEL | {"rank": 2}])
    with pytest.raises(
        DataQualityError, match=rf"ranks_without_a_hole: 1 rows: .*as_of_date {day_after(1)}, user_id u1"
    ):
        broken.run("audit_lake", days=DAYS)
    (row,) = [row for row in broken.rows("ops.dq_results") if not row["success"] and row["kind"] == "audit"]
    assert (row["table_name"], row["rule"]) == ("gold.recommendations", "ranks_without_a_hole")
    assert [run["status"] for run in broken.rows("ops.runs") if run["run_id"] == row["run_id"]] == ["rejected"]


def test_what_is_only_told_is_not_red(broken: Shop):
    broken.job("look").lake.append_rows("silver.events", BROKEN["silver.events.id_on_two_days"][1])
    found = findings(broken, "silver.events.id_on_two_days")
    assert (found.broken, found.failed) == (1, False)


def test_a_query_without_its_head_is_refused(broken: Shop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(audits, "sql_text", lambda kind, name: "SELECT 1")
    with pytest.raises(ContractError, match=r"sql/audits/a\.b\.c\.sql"):
        audits.query_audit(broken.job("look").lake, "a.b.c", DAY)
