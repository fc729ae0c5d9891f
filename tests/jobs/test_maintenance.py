"""Upkeep of a real lake: what goes, what stays, and that the jobs go on as if nothing had been done."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.conftest import DAY, LAKE_STEPS, ROOT, SHORT_LIVED, Shop, day_after, event

from lakerec import models, quality
from lakerec.cli import STEPS
from lakerec.lake import Window
from lakerec.restore import restore
from lakerec.sizes import SIZES
from lakerec.tables import sql_text

DAYS = 4
LISTS = "gold.recommendations"


def old_lists(shop: Shop) -> None:
    """Lists of three users on early days: u1 also later ones, u2 no later one, and the fallback each day."""
    made = [(n, user) for n, users in {0: "u1 u2 *", 1: "u1 *", 2: "u3 *"}.items() for user in users.split()]
    fields = {"item_id": "i1", "score": 0.5, "source": "text", "propensity": 1.0, "model_version": "popularity"}
    rows = [{"as_of_date": day_after(n), "user_id": user, "rank": 1, **fields} for n, user in made]
    shop.job("score_candidates").lake.append_rows(LISTS, rows)


def latest(shop: Shop) -> list:
    """The view recommendations_latest."""
    lists = shop.job("look").lake.read(LISTS)
    return sorted(shop.spark.sql(sql_text("views", "recommendations_latest"), recommendations=lists).collect())


def log_of(shop: Shop, name: str) -> list[Path]:
    return sorted((shop.folder / "lake" / name.replace(".", "/") / "_delta_log").iterdir())


def sizes_of(shop: Shop) -> list[tuple]:
    return [(row["as_of_date"], row["table_name"]) for row in shop.rows(SIZES)]


def aged(shop: Shop, name: str, days: int) -> None:
    """A table's log as if its commits were so many days older."""
    for file in log_of(shop, name):
        os.utime(file, (time.time() - days * 86400,) * 2)


@pytest.mark.long
def test_a_week_of_days_is_compacted_and_no_newest_list_is_lost(shop: Shop):
    shop.settings["retention"] = {LISTS: 2, "quarantine.events": 2}
    for n in range(DAYS):
        shop.deliver(day_after(n), [event(n, day=day_after(n))])
    shop.run("ingest_events", days=DAYS)
    lake = shop.job("conform_events").lake
    lake.append_rows("quarantine.events", [{"ingest_date": day_after(n), "row_number": 1} for n in range(DAYS)])
    old_lists(shop)
    for _ in range(2):
        lake.record([lake.run.row("ok", {})])
    before = latest(shop)
    counts = shop.run("maintain_lake", days=DAYS)
    assert latest(shop) == before
    # u1's first list is superseded, and so is the fallback of the first two days, whose lists are past two days.
    assert {(row["as_of_date"], row["user_id"]) for row in shop.rows(LISTS)} == {
        (DAY, "u2"), (day_after(1), "u1"), (day_after(2), "u3"), (day_after(2), "*"),
    }  # fmt: skip
    assert {row["ingest_date"] for row in shop.rows("quarantine.events")} == {day_after(2), day_after(3)}
    assert counts["rows_expired"] == 3 + 2 and counts["files_merged"] >= 3
    assert sum(row["job"] == "conform_events" for row in shop.rows("ops.runs")) == 2
    sizes = {row["table_name"]: row for row in shop.rows(SIZES)}
    events = sizes["bronze.events"]
    assert (events["rows"], events["files"], events["small_files"], events["partitions"]) == (4, 4, 0, 4)
    assert (events["first_day"], events["last_day"], events["commits"]) == (DAY, day_after(3), 1)
    assert sizes["ops.runs"]["files"] == 1 and sizes["_models"]["files"] == 0


@pytest.mark.long
def test_a_log_of_many_commits_becomes_short_and_the_jobs_go_on(shop: Shop):
    shop.deliver(DAY, [event(1)])
    shop.run("ingest_events")
    lake = shop.job("ingest_events").lake
    for _ in range(12):
        lake.replace("bronze.events", lake.read("bronze.events"), Window(DAY, day_after(1)))
    aged(shop, "bronze.events", 60)
    newest, files = lake.version("bronze.events"), len(log_of(shop, "bronze.events"))
    shop.run("maintain_lake")
    look = shop.job("look").lake
    assert (look.version("bronze.events"), files > 30) == (newest, True)
    assert len(log_of(shop, "bronze.events")) < 12
    assert look.read("bronze.events").count() == 1
    assert look.history("bronze.events")[0]["job"] == "ingest_events"
    assert look.writer("bronze.events", 3) == ""
    shop.deliver(DAY, [event(1), event(2)])
    shop.run("ingest_events")
    assert shop.version("bronze.events") == newest + 1 and len(shop.rows("bronze.events")) == 2


@pytest.mark.long
def test_versions_and_commits_are_kept_as_long_as_the_yaml_says(shop: Shop):
    shop.settings |= SHORT_LIVED
    shop.deliver(DAY, [event(1)])
    shop.run("ingest_events")
    shop.run("ingest_events")
    folder = shop.folder / "lake" / "bronze" / "events"
    assert len(list(folder.glob("ingest_date=*/*.parquet"))) == 2
    time.sleep(1)
    shop.run("maintain_lake")
    assert len(list(folder.glob("ingest_date=*/*.parquet"))) == 1 and len(shop.rows("bronze.events")) == 1
    told = log_of(shop, "bronze.events")[-1].parent
    assert any("interval 259200 seconds" in file.read_text() for file in told.glob("*.json"))
    version = shop.version("bronze.events")
    shop.run("maintain_lake")
    assert shop.version("bronze.events") == version and len(shop.rows(SIZES)) == len({*sizes_of(shop)})


def test_a_restore_behind_an_upkeep_names_the_days_that_had_lost_rows(shop: Shop):
    shop.settings["retention"] = {"quarantine.events": 2}
    lake = shop.job("conform_events").lake
    lake.append_rows("quarantine.events", [{"ingest_date": day_after(n), "row_number": 1} for n in range(DAYS)])
    assert shop.run("maintain_lake", days=DAYS)["rows_expired"] == 2
    told = restore(shop.job("restore"), "quarantine.events", 0, None, STEPS)
    assert f"days {DAY} .. {day_after(1)} may have changed" in told and len(shop.rows("quarantine.events")) == DAYS


def test_examples_of_a_snapshot_that_was_built_anew_go_when_they_are_old(shop: Shop):
    shop.settings["retention"] = {"ml.examples": 2}
    lake = shop.job("build_examples").lake
    cut = {"replaced": day_after(1), "replaced of late": day_after(2), "newest": day_after(0)}
    lake.append_rows(
        "ml.examples", [{"snapshot_id": one, "cut_date": day, "split": s} for one, day in cut.items() for s in "ab"]
    )
    lake.append_rows("ml.snapshots", [{"snapshot_id": "newest", "as_of_date": day_after(1), "rows": 2}])
    assert shop.run("maintain_lake", days=DAYS)["rows_expired"] == 2
    assert {row["snapshot_id"] for row in shop.rows("ml.examples")} == {"replaced of late", "newest"}
    assert len(shop.rows("ml.snapshots")) == 1


def test_upkeep_above_a_dead_run_does_not_hide_it(shop: Shop):
    shop.deliver(DAY, [event(1)])
    shop.run("ingest_events", "conform_events")
    dead = shop.job("conform_events")
    dead.run.owed = {DAY: {"read": 1, "written": 1, "duplicate": 0, "quarantined": 0, "bad": 0}}
    dead.lake.replace("silver.events", dead.lake.read("silver.events"), Window(day_after(-2), day_after(1)))
    shop.spark.sql(f"ALTER TABLE delta.`{dead.lake.path('silver.events')}` SET TBLPROPERTIES ('told' = 'by others')")
    shop.run("conform_events")
    (line,) = [row for row in shop.rows("ops.runs") if row["run_id"] == dead.run.run_id]
    assert line["rows_read"] == 1 and "completed_by" in dict(line["details"])


def test_data_docs_show_the_newest_results_only(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quality, "SHOWN", 2)
    shop.run("ingest_catalogue")
    for _ in range(3):
        shop.run("conform_catalogue")
    site = shop.folder / "lake/_dq/gx/uncommitted/data_docs/local_site"
    pages = sorted(site.glob("validations/**/*.html"))
    assert len(pages) == 2
    index = (site / "index.html").read_text()
    assert all(page.parent.name in index for page in pages) and "silver.items" in index


@pytest.mark.long
def test_a_model_that_never_served_goes_with_its_figures(shop: Shop):
    from lakerec.scorer import registry

    shop.deliver(DAY, [event(1)])
    shop.run("ingest_events")
    lake = shop.job("look").lake
    for version in ("served", "refused", "young"):
        file = models.folder(lake, version) / "manifest.json"
        file.parent.mkdir(parents=True)
        file.write_text("{}")
        registry.register(models.tracking_uri(lake), version, file.parent, {})
        client = registry._client(models.tracking_uri(lake))
        client.set_tag(client.create_run("0").info.run_id, "version", version)
        if version != "young":
            for place in (file, file.parent):
                os.utime(place, (time.time() - 31 * 86400,) * 2)
    models.promote(lake, "served", DAY, "test")
    assert shop.run("maintain_lake")["models_removed"] == 1
    assert sorted(p.name for p in models.folder(lake, "x").parent.iterdir()) == ["served", "young"]
    left = {version.tags["version"] for version in client.search_model_versions(f"name = '{registry.MODEL}'")}
    every = client.search_runs(["0"], run_view_type=3)  # deleted ones too
    assert left == {"served", "young"} and {run.data.tags["version"] for run in every} == left


DAILY = (*LAKE_STEPS, "score_candidates")
TABLES = ("bronze.events", "silver.events", "silver.items", "ml.sequences", "quarantine.events")


@pytest.mark.long
def test_days_that_are_rebuilt_beside_the_upkeep_end_in_the_same_lake(shop: Shop, tmp_path: Path):
    shop.settings |= {"lease": {"wait_seconds": 300}, "maintenance": {"versions_days": 7}}
    for n in range(DAYS):
        day = day_after(n)
        shop.deliver(day, [event(10 * n + m, user=f"u{m % 3}", day=day) for m in range(9)] + ["torn"])
        shop.run(*DAILY, start=day)
    quiet = {name: shop.rows(name) for name in TABLES}
    lists = [{k: v for k, v in row.items() if k != "run_id"} for row in shop.rows(LISTS)]
    code = (
        "import sys; from datetime import date, timedelta; from pathlib import Path\n"
        "from lakerec import job; from lakerec.config import load_config; from lakerec.lake import Window\n"
        "from lakerec.session import build_session\n"
        "config = load_config(Path(sys.argv[1])); spark = build_session(config, 'beside')\n"
        "print('ready', flush=True)\n"
        f"for n in range({DAYS}):\n"
        f"    start = date.fromisoformat('{DAY}') + timedelta(days=n)\n"
        "    day = Window(start, start + timedelta(1))\n"
        f"    for step in {DAILY}: job.body(step)(job.start(config, spark, step, day))\n"
    )
    assert shop.config.lake
    with (shop.folder / "log").open("w") as log:
        command = [sys.executable, "-c", code, str(shop.folder / "config.yaml")]
        beside = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, text=True)
        while "ready" not in (shop.folder / "log").read_text():
            assert beside.poll() is None, (shop.folder / "log").read_text()[-2000:]
            time.sleep(0.1)
        upkeeps = 0
        while beside.poll() is None:
            shop.run("maintain_lake", days=DAYS)
            upkeeps += 1
        assert beside.wait() == 0, (shop.folder / "log").read_text()[-2000:]
    assert upkeeps > 0
    assert {name: shop.rows(name) for name in TABLES} == quiet
    assert [{k: v for k, v in row.items() if k != "run_id"} for row in shop.rows(LISTS)] == lists
    assert shop.run("audit_lake", days=DAYS)["failed"] == 0
    runs = [(row["run_id"], row["ingest_date"]) for row in shop.rows("ops.runs")]
    assert len(set(runs)) == len(runs)
