"""Every audit finds what it is for: each in a real lake that is broken in just that way."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
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
    "ml.sequences.arrays_of_one_length": ("ml.sequences", [SEQUENCE | {"as_of_date": DAY, "event_times": []}]),
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


# A day whose counts did not add up, and the run that has rebuilt it since: the ledger keeps both. And a run that failed
# behind its commit and was completed by the next.
REPAIRED: list[dict[str, Any]] = [
    {"job": "conform_events", "ingest_date": day_after(-9), "rows_read": 5}
    | {"run_id": name, "rows_written": written, "started_at": datetime(2026, 3, hour, tzinfo=UTC)}
    for name, written, hour in (("old", 3, 1), ("new", 5, 2))
] + [{"job": "build_sequences", "run_id": "stopped", "status": status} for status in ("failed", "ok")]


def outcomes(shop: Shop) -> dict[str, dict]:
    """The outcomes of the last audit in ops.dq_results, by TABLE.RULE."""
    last = max((run for run in shop.rows("ops.runs") if run["job"] == "audit_lake"), key=lambda run: run["started_at"])
    rows = [row for row in shop.rows("ops.dq_results") if row["run_id"] == last["run_id"]]
    return {f"{row['table_name']}.{row['rule']}": row for row in rows}


@pytest.fixture(scope="module")
def whole(spark, tmp_path_factory) -> Shop:
    """A lake of three days that breaks nothing; its audit was green."""
    shop = Shop(tmp_path_factory.mktemp("whole"), spark)
    shop.write("items.csv.gz", "item_id,title", [f"i{n},thing number {n}" for n in range(10)])
    for n in range(DAYS):
        shop.deliver(day_after(n), [event(10 * n + m, f"u{m % 2}", day_after(n)) for m in range(6)] + ["torn"])
    shop.run(*LAKE_STEPS, "score_candidates", days=DAYS)
    shop.job("look").lake.append_rows("ops.runs", REPAIRED)
    assert shop.run("audit_lake", days=DAYS)["failed"] == 0
    return shop


@pytest.fixture(scope="module")
def broken(whole: Shop, tmp_path_factory) -> Shop:
    """The same with a row repeated in every table, and what breaks each query; its audit was red."""
    folder = tmp_path_factory.mktemp("broken")
    shutil.copytree(whole.folder, folder, dirs_exist_ok=True)
    shop = Shop(folder, whole.spark, whole.settings)
    lake = shop.job("look").lake
    for name in table_names():
        rows = [row for table, more in BROKEN.values() if table == name for row in more]
        if rows:
            lake.append_rows(name, rows)
        if lake.exists(name):
            lake.append(name, lake.read(name, lake.version(name)).limit(1))
    told = rf"ranks_without_a_hole: \d rows: .*as_of_date {day_after(1)}, user_id u1"
    with pytest.raises(DataQualityError, match=told) as red:
        shop.run("audit_lake", days=DAYS)
    assert "(bronze.events: unique(" in str(red.value).splitlines()[0]
    assert "id_on_two_days" not in str(red.value) and "newest_has_every_event" not in str(red.value)
    return shop


def test_every_query_is_tested_here():
    assert set(BROKEN) == {file.stem for file in (SQL / "audits").glob("*.sql")}


def test_a_whole_lake_is_green_and_every_outcome_is_kept(whole: Shop):
    found = outcomes(whole)
    assert found and all(row["success"] and row["observed"] == 0 for row in found.values())
    there = {name for name in table_names() if whole.rows(name)} - {"ops.dq_results"}
    assert {name for name in BROKEN if name.rsplit(".", 1)[0] in there} <= set(found)
    assert {row["table_name"] for row in found.values() if row["rule"].startswith("unique(")} >= there


@pytest.mark.parametrize("name", BROKEN)
def test_an_audit_finds_what_breaks_it(broken: Shop, name: str):
    assert outcomes(broken)[name]["success"] is False


def test_a_row_that_is_there_twice_is_found_in_every_table(broken: Shop):
    unique = {row["table_name"]: row for row in outcomes(broken).values() if row["rule"].startswith("unique(")}
    assert len(unique) >= 10 and [name for name, row in unique.items() if row["success"]] == []


def test_a_red_audit_is_told_in_the_ledger(broken: Shop):
    (run_id,) = {row["run_id"] for row in outcomes(broken).values()}
    assert [row["status"] for row in broken.rows("ops.runs") if row["run_id"] == run_id] == ["rejected"]


def test_a_query_without_its_head_is_refused(whole: Shop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(audits, "sql_text", lambda kind, name: "SELECT 1")
    with pytest.raises(ContractError, match=r"sql/audits/a\.b\.c\.sql"):
        audits.query_audit(whole.job("look").lake, "a.b.c", DAY)
