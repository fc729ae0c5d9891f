"""Many days in a real Airflow: `airflow backfill create` beside the day on schedule; reco_backfill that has to stop."""

from __future__ import annotations

import json
import os
import shutil
from datetime import timedelta
from http.server import HTTPServer
from pathlib import Path

import pytest
from benchmarks.speed.airflow_run import airflow, asked, called, listed, serving_database, up
from tests.conftest import DAY, LAKE_STEPS, ROOT, Shop, day_after, event
from tests.dags.test_alerts import Web, serving
from tests.processes import wait_until

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not (ROOT / ".venv-airflow").exists(), reason="no .venv-airflow: run make install"),
]
DAYS, AT_ONCE = 6, 4
MANY = int(os.environ.get("LAKEREC_BACKFILL_DAYS", DAYS))  # of the first test
POLL = 2.0  # seconds between two questions to Airflow
TABLES = ("bronze.events", "quarantine.events", "silver.events", "silver.items", "ml.sequences")
DONE = {"success", "failed"}
OTHERS = {"scorer_nightly", "freshness_check"}


def deliver(shop: Shop, days: int = DAYS) -> None:
    """Days with late events and a torn row each."""
    shop.write("items.csv.gz", "item_id,title", [f"i{n},thing number {n}" for n in range(10)])
    for n in range(days):
        rows = [event(100 * n + m, user=f"u{m % 5}", day=day_after(n)) for m in range(20)]
        late = [event(100 * n + 50, user="u1", day=day_after(n - 1))] if n else []
        shop.deliver(day_after(n), [*rows, *late, "torn"])


def test_days_at_once_beside_the_scheduled_day_make_the_tables_of_one_window(shop: Shop, tmp_path):
    deliver(shop, MANY)
    shop.settings |= {"spark": {"reuse": True, "driver_memory": "2g"}, "lease": {"wait_seconds": 60}}
    with airflow(tmp_path / "airflow", schedules="on") as known:
        up(known, shop.config.file)
        wait_until(lambda: {one["dag_id"] for one in asked(known, "dags")["dags"]} > OTHERS, every=POLL)
        asked(known, "dags/freshness_check", {"is_paused": True})
        days = ["--from-date", str(DAY), "--to-date", str(day_after(MANY)), "--max-active-runs", str(AT_ONCE)]
        called(known, "airflow.sh", "backfill", "create", "--dag-id", "reco_daily", *days)

        def ended() -> list[dict]:
            runs = listed(known, "dags/reco_daily/dagRuns", "dag_runs")
            return runs if len(runs) > MANY and {run["state"] for run in runs} <= DONE else []

        runs = wait_until(ended, seconds=1200 + 200 * MANY, every=POLL)
        tasks = listed(known, "dags/reco_daily/dagRuns/~/taskInstances", "task_instances")
        nights = wait_until(lambda: asked(known, "dags/scorer_nightly/dagRuns")["dag_runs"], every=POLL)
    assert {run["state"] for run in runs} == {"success"}
    scheduled = [run["data_interval_start"][:10] for run in runs if run["run_type"] == "scheduled"]
    assert len(runs) - len(scheduled) == MANY and scheduled
    # The scheduled day started a night, which knows its day; no rebuilt day did.
    assert [(night["run_type"], night["partition_key"]) for night in nights] == [("asset_triggered", max(scheduled))]
    # Whatever the order, no publication is red: an older day than the one that is served is skipped.
    published = [one for one in tasks if one["task_id"] == "publish_recommendations"]
    assert len(published) == len(runs) and {one["state"] for one in published} <= {"success", "skipped"}
    # A day's lists came behind those of the days before it.
    wrote = [row for row in shop.rows("ops.runs") if row["job"] == "score_candidates"]
    ends = {row["window_start"]: row["started_at"] + timedelta(seconds=row["seconds"]) for row in wrote}
    past = [day_after(n) for n in range(MANY)]
    assert [ends[day] for day in past] == sorted(ends[day] for day in past)
    whole = Shop(tmp_path / "whole", shop.spark, shop.settings)
    deliver(whole, MANY)
    whole.run(*LAKE_STEPS, days=MANY)
    assert {name: shop.rows(name) for name in TABLES} == {name: whole.rows(name) for name in TABLES}
    assert {row["as_of_date"] for row in shop.rows("gold.recommendations")} >= set(past)
    assert str(max(row["as_of_date"] for row in shop.rows("gold.recommendations"))) == max(scheduled)


def home(folder: Path, hours: float) -> Path:
    """The project, but for reco_backfill: it is late after so many hours."""
    folder.mkdir()
    for each in ROOT.iterdir():
        if each.name not in {"dags", ".lakerec"}:
            (folder / each.name).symlink_to(each)
    shutil.copytree(ROOT / "dags", folder / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    text = (file := folder / "dags" / "reco_backfill.py").read_text()
    assert "hours=24" in text
    file.write_text(text.replace("hours=24", f"hours={hours}"))
    return folder


def test_a_chunk_that_fails_is_told_of_keeps_the_lists_back_and_goes_on_when_it_is_cleared(shop: Shop, tmp_path):
    deliver(shop)
    broken, chunk = shop.folder / "events" / f"{day_after(2)}.csv.gz", 1
    whole_file = broken.read_bytes()
    shop.deliver(day_after(2), ["1,u1"], header="event_id,user_id")
    shop.settings |= {"spark": {"reuse": True, "driver_memory": "2g"}, "alerts": {"webhook": "lakerec_alerts"}}
    conf = {"start": str(DAY), "end": str(day_after(DAYS)), "chunk_days": 2}
    with serving(HTTPServer(("127.0.0.1", 0), Web)) as web:
        place = tmp_path / "airflow"
        hook = json.dumps({"conn_type": "http", "host": f"http://127.0.0.1:{web.server_port}/hook"})
        about = {"LAKEREC_HOME": str(home(tmp_path / "home", 0.01)), "AIRFLOW_CONN_LAKEREC_ALERTS": hook}
        with airflow(place, LAKEREC_SERVING_URI=serving_database(place), **about) as known:
            up(known, shop.config.file)
            with pytest.raises(AssertionError, match=r"trigger\.sh ended with 1:"):
                called(known, "trigger.sh", "reco_backfill", "--conf", json.dumps(conf))
            (run,) = asked(known, "dags/reco_backfill/dagRuns")["dag_runs"]
            path = f"dags/reco_backfill/dagRuns/{run['dag_run_id']}"

            def tasks() -> dict[tuple[str, int], dict]:
                found = listed(known, f"{path}/taskInstances", "task_instances")
                return {(one["task_id"], one["map_index"]): one for one in found}

            before = tasks()
            wait_until(lambda: len(web.got) == 2, seconds=60)
            told = {text.splitlines()[0]: text for text in (one["text"] for one in web.got)}
            # The other chunks are done; no list was written.
            assert {key[1] for key, one in before.items() if one["state"] == "failed"} == {chunk}
            assert [before["build_sequences", n]["state"] for n in (0, 1, 2)] == [
                "success",
                "upstream_failed",
                "success",
            ]
            assert before["ingest_events", chunk]["try_number"] == 1
            assert before["score_candidates", -1]["state"] == "upstream_failed"
            assert shop.rows("gold.recommendations") == []
            broken.write_bytes(whole_file)
            asked(known, f"{path}/clear", {"dry_run": False, "only_failed": True}, "POST")
            wait_until(lambda: asked(known, path)["state"] in DONE, seconds=900, every=POLL)
            after = tasks()
            assert asked(known, path)["state"] == "success"
    assert any("reco_backfill is late" in head for head in told)
    (failed,) = [text for head, text in told.items() if "reco_backfill.ingest_events failed" in head]
    assert str(broken) in failed and "docs/operations.md#sourceerror" in failed
    green = [key for key, one in before.items() if one["state"] == "success"]
    assert {key: after[key]["end_date"] for key in green} == {key: before[key]["end_date"] for key in green}
    whole = Shop(tmp_path / "whole", shop.spark, shop.settings)
    deliver(whole)
    whole.run(*LAKE_STEPS, days=DAYS)
    assert {name: shop.rows(name) for name in TABLES} == {name: whole.rows(name) for name in TABLES}
    jobs = [row["job"] for row in shop.rows("ops.runs") if row["status"] == "ok"]
    assert jobs.count("score_candidates") == jobs.count("publish_recommendations") == 1
    assert {row["as_of_date"] for row in shop.rows("gold.recommendations")} == {day_after(DAYS - 1)}
