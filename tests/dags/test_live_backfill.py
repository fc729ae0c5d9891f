"""`airflow backfill create`, several days at once beside the day on schedule and its night, in a real Airflow."""

from __future__ import annotations

from datetime import timedelta

import pytest
from benchmarks.speed.airflow_run import airflow, asked, called, up
from tests.conftest import DAY, LAKE_STEPS, ROOT, Shop, day_after, event
from tests.processes import wait_until

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not (ROOT / ".venv-airflow").exists(), reason="no .venv-airflow: run make install"),
]
DAYS, AT_ONCE = 6, 4
TABLES = ("bronze.events", "quarantine.events", "silver.events", "silver.items", "ml.sequences")
DONE = {"success", "failed"}
OTHERS = {"scorer_nightly", "freshness_check"}


def deliver(shop: Shop) -> None:
    """Days with late events and a torn row each."""
    shop.write("items.csv.gz", "item_id,title", [f"i{n},thing number {n}" for n in range(10)])
    for n in range(DAYS):
        rows = [event(100 * n + m, user=f"u{m % 5}", day=day_after(n)) for m in range(20)]
        late = [event(100 * n + 50, user="u1", day=day_after(n - 1))] if n else []
        shop.deliver(day_after(n), [*rows, *late, "torn"])


def test_days_at_once_beside_the_scheduled_day_make_the_tables_of_one_window(shop: Shop, tmp_path):
    deliver(shop)
    shop.settings |= {"spark": {"reuse": True, "driver_memory": "2g"}, "lease": {"wait_seconds": 60}}
    with airflow(tmp_path / "airflow", schedules="on") as known:
        up(known, shop.config.file)
        wait_until(lambda: {one["dag_id"] for one in asked(known, "dags")["dags"]} > OTHERS)
        asked(known, "dags/freshness_check", {"is_paused": True})
        days = ["--from-date", str(DAY), "--to-date", str(day_after(DAYS)), "--max-active-runs", str(AT_ONCE)]
        called(known, "airflow.sh", "backfill", "create", "--dag-id", "reco_daily", *days)

        def ended() -> list[dict]:
            runs = asked(known, "dags/reco_daily/dagRuns?limit=100")["dag_runs"]
            return runs if len(runs) > DAYS and {run["state"] for run in runs} <= DONE else []

        runs = wait_until(ended, seconds=2400)
        tasks = asked(known, "dags/reco_daily/dagRuns/~/taskInstances?limit=1000")["task_instances"]
        nights = wait_until(lambda: asked(known, "dags/scorer_nightly/dagRuns")["dag_runs"])
    assert {run["state"] for run in runs} == {"success"}
    scheduled = [run["data_interval_start"][:10] for run in runs if run["run_type"] == "scheduled"]
    assert len(runs) - len(scheduled) == DAYS and scheduled
    # The scheduled day started a night, which knows its day; no rebuilt day did.
    assert [(night["run_type"], night["partition_key"]) for night in nights] == [("asset_triggered", max(scheduled))]
    # The site's lists are of the newest day that was published, and no older one came over them.
    published = [one for one in tasks if one["task_id"] == "publish_recommendations"]
    assert {one["state"] for one in published} <= {"success", "skipped"}
    # A day's lists came behind those of the days before it.
    wrote = [row for row in shop.rows("ops.runs") if row["job"] == "score_candidates"]
    ends = {row["window_start"]: row["started_at"] + timedelta(seconds=row["seconds"]) for row in wrote}
    past = [day_after(n) for n in range(DAYS)]
    assert [ends[day] for day in past] == sorted(ends[day] for day in past)
    whole = Shop(tmp_path / "whole", shop.spark, shop.settings)
    deliver(whole)
    whole.run(*LAKE_STEPS, days=DAYS)
    assert {name: shop.rows(name) for name in TABLES} == {name: whole.rows(name) for name in TABLES}
    assert {row["as_of_date"] for row in shop.rows("gold.recommendations")} >= set(past)
    assert str(max(row["as_of_date"] for row in shop.rows("gold.recommendations"))) == max(scheduled)
