"""The order of days, killed runs, two runs at once: each ends in the lake that one quiet window makes."""

from __future__ import annotations

import fcntl
import itertools
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.conftest import DAY, LAKE_STEPS, ROOT, Shop, day_after, event

import conform_catalogue
import train_scorer
from lakerec import lake as lake_module
from lakerec import models, postgres
from lakerec.config import load_config
from lakerec.errors import ConfigError, LakeBusyError, StaleRunError
from lakerec.job import Job
from lakerec.lake import Window, file_lease, held, own_files

DAYS = 5
CATALOGUE = ("ingest_catalogue", "conform_catalogue")
DAILY = ("ingest_events", "conform_events", "build_sequences")
TABLES = ("silver.events", "silver.items", "ml.sequences", "quarantine.events")


def deliver(shop: Shop) -> None:
    """Five days with late events, an event delivered twice, a search without an item and a torn row."""
    for n in range(DAYS):
        day = day_after(n)
        rows = [event(10 * n + m, user=f"u{m % 4}", day=day, kind="view" if m % 3 else "purchase") for m in range(12)]
        if n:
            before = day_after(n - 1)
            rows += [event(900 + n, user="u9", day=before), event(10 * (n - 1) + 1, user="u1", day=before, kind="view")]
        shop.deliver(day, [*rows, "torn"])


def gold(shop: Shop) -> list[dict]:
    """gold.recommendations, run_id apart."""
    return [{k: v for k, v in row.items() if k != "run_id"} for row in shop.rows("gold.recommendations")]


@pytest.fixture(scope="module")
def model(spark, tmp_path_factory) -> Path:
    """A small scorer trained on the five days, kept outside any lake."""
    shop = Shop(tmp_path_factory.mktemp("model"), spark)
    shop.write("items.csv.gz", "item_id,title", [f"i{n},thing number {n}" for n in range(10)])
    deliver(shop)
    shop.run(*LAKE_STEPS, "build_examples", "train_scorer", days=DAYS)
    (folder,) = (shop.folder / "lake" / models.FOLDER).iterdir()
    return folder


def promoted(shop: Shop, model: Path) -> None:
    """The same ml.promotions in every lake: the small scorer serves from the second day on."""
    target = shop.folder / "lake" / models.FOLDER
    target.mkdir(parents=True, exist_ok=True)
    (target / model.name).symlink_to(model)
    job = shop.job("promote_scorer", start=day_after(1))
    models.promote(job.lake, model.name, day_after(1), "test")


@pytest.fixture(scope="module")
def reference(spark, tmp_path_factory, model: Path) -> dict[str, list[dict]]:
    """What one window over all days makes."""
    shop = Shop(tmp_path_factory.mktemp("window"), spark)
    shop.write("items.csv.gz", "item_id,title", [f"i{n},thing number {n}" for n in range(10)])
    deliver(shop)
    promoted(shop, model)
    shop.run(*LAKE_STEPS, "score_candidates", days=DAYS, every_day=True)
    return {name: shop.rows(name) for name in TABLES} | {"gold": gold(shop)}


ORDERS = {
    "forwards": pytest.param((0, 1, 2, 3, 4), marks=pytest.mark.long),
    "backwards": pytest.param((4, 3, 2, 1, 0), marks=pytest.mark.long),
    "mixed, one twice": (2, 0, 4, 4, 1, 3),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_days_in_any_order_make_the_lake_of_one_window(shop: Shop, reference, order: tuple[int, ...]):
    deliver(shop)
    shop.run(*CATALOGUE)
    for n in order:
        shop.run(*DAILY, start=day_after(n))
    assert {name: shop.rows(name) for name in TABLES} == {name: reference[name] for name in TABLES}


def test_lists_of_each_day_do_not_depend_on_the_order_either(shop: Shop, model: Path, reference):
    deliver(shop)
    promoted(shop, model)
    shop.run(*LAKE_STEPS, days=DAYS)
    for n in (3, 1, 4, 0, 2, 3):
        shop.run("score_candidates", start=day_after(n), every_day=True)
    assert gold(shop) == reference["gold"]
    lists = {(str(row["as_of_date"]), row["user_id"]) for row in gold(shop)}
    assert (str(DAY), "*") in lists and (str(DAY), "u1") not in lists and (str(day_after(1)), "u1") in lists


def test_a_second_run_waits_for_the_lease_and_then_names_its_holder(shop: Shop):
    shop.deliver(DAY, [event(1)])
    held = pytest.raises(LakeBusyError, match=r"held by conform_events \(run the-first-run, process \d+")
    with file_lease(shop.folder / "lake", "conform_events", "the-first-run", 0), held:
        shop.run("ingest_events")
    assert shop.run("ingest_events")["read"] == 1


def test_the_lease_of_a_postgresql_names_its_holder_and_fences_its_jvm_too(shop: Shop, server, monkeypatch):
    monkeypatch.setenv("LEASE", postgres.ensure_database(postgres.start(server), "lease"))
    shop.settings["lease"] = {"uri_env": "LEASE", "wait_seconds": 1}
    with shop.job("conform_events").lake.lease():
        told = r"held by conform_events \(run .*, process \d+ of PostgreSQL, since .*Wait for it to end"
        with pytest.raises(LakeBusyError, match=told), held(shop.config, "build_sequences", "second"):
            pytest.fail("two hold the lease")
        with (shop.folder / "lake" / "_lease.jvm").open("r+") as lock, pytest.raises(BlockingIOError):
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with held(shop.config, "build_sequences", "third"):
        pass


def test_a_folder_of_files_is_one_lakes(shop: Shop, tmp_path: Path):
    shop.settings["files"] = str(tmp_path / "files")
    for _ in range(2):
        own_files(shop.config)
    own_files(load_config(shop.config.file, str(tmp_path / "other")))  # it has a folder of its own below
    shop.settings["lake"] = "another"
    with (
        pytest.raises(
            ConfigError, match=f"files holds the models of the lake {tmp_path}/lake, not of .*/another: give"
        ),
        shop.job("look").lake.lease(),
    ):
        raise AssertionError("the lease was given")
    (tmp_path / "files" / "_lake").unlink()
    own_files(shop.config)


def test_a_version_is_trained_by_one_run_at_a_time(shop: Shop, monkeypatch):
    first, second = shop.job("train_scorer"), shop.job("train_scorer")

    def trained(job: Job, snapshot: str, out: Path) -> dict[str, str]:
        held = rf"the training of {out.name} is held by train_scorer \(run {job.run.run_id}, process \d+, since"
        with pytest.raises(LakeBusyError, match=held):
            train_scorer.run(second)
        out.mkdir()
        (out / "manifest.json").write_text("{}")
        return {"version": out.name}

    monkeypatch.setattr(models, "snapshot_of", lambda *_: "snapshot")
    monkeypatch.setattr(train_scorer, "_trained", trained)
    version = train_scorer.run(first)["version"]
    assert train_scorer.run(second) == {"version": version, "already": "trained"}


def test_a_training_of_torchruns_is_refused_before_it_reads_or_locks_anything(shop: Shop, monkeypatch):
    monkeypatch.setattr(models, "snapshot_of", lambda *_: pytest.fail("read"))
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match=r"scorer\.training\.processes: .* without torchrun and set this to 4"):
        train_scorer.run(shop.job("train_scorer"))
    monkeypatch.setenv("WORLD_SIZE", "1")
    models.check_one_process(shop.config)


def test_the_lease_of_a_killed_process_is_free(shop: Shop):
    lake = shop.folder / "lake"
    code = (
        "import pathlib, time; from lakerec.lake import file_lease\n"
        f"with file_lease(pathlib.Path({str(lake)!r}), 'a', 'b', 0): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(LakeBusyError), file_lease(lake, "c", "d", 0):
        pass
    holder.kill()
    holder.wait()
    with file_lease(lake, "c", "d", 0):
        pass


def test_a_slow_run_does_not_overwrite_what_a_newer_one_made(shop: Shop):
    shop.deliver(DAY, [event(1)])
    shop.run(*LAKE_STEPS)
    slow = shop.job("build_sequences")
    old = slow.lake.read("silver.events").collect()
    assert len(old) == 1
    slow_rows = slow.lake.read("ml.sequences")
    shop.deliver(DAY, [event(1), event(2)])
    shop.run(*LAKE_STEPS)
    with pytest.raises(StaleRunError, match=r"newer versions of .*silver.events"):
        slow.lake.replace("ml.sequences", slow_rows, Window(DAY, day_after(1)))
    assert [row["events"] for row in shop.rows("ml.sequences")] == [2]


def test_nor_what_a_newer_one_made_of_a_table_that_was_not_there_before(shop: Shop):
    shop.deliver(DAY, [event(1)])
    shop.run("ingest_events", "ingest_catalogue")
    slow = shop.job("build_sequences")
    assert not slow.lake.read("silver.events").count()
    slow_rows = slow.lake.read("ml.sequences")
    shop.run(*LAKE_STEPS[2:])
    assert not slow.lake.read("silver.events").count() and "silver.events" not in slow.run.inputs
    with pytest.raises(StaleRunError, match=r"newer versions of .*silver.events"):
        slow.lake.replace("ml.sequences", slow_rows, Window(DAY, day_after(1)))


@pytest.mark.long
def test_nor_does_it_overlook_a_newer_one_behind_many_commits(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lake_module, "LOOK_BACK", 1)
    shop.deliver(DAY, [event(1)])
    shop.run(*LAKE_STEPS)
    slow = shop.job("build_sequences")
    slow_rows = [slow.lake.read(name) for name in ("silver.events", "ml.sequences")][1]
    shop.deliver(DAY, [event(1), event(2)])
    shop.run(*LAKE_STEPS)
    for n in (1, 2):
        shop.deliver(day_after(n), [event(10 * n, day=day_after(n))])
        shop.run(*LAKE_STEPS, start=day_after(n))
    with pytest.raises(StaleRunError, match=r"newer versions of .*silver.events"):
        slow.lake.replace("ml.sequences", slow_rows, Window(DAY, day_after(1)))
    late = shop.job("build_sequences")
    late.run.started_at += timedelta(days=1)  # nothing has been written since
    late.lake.read("silver.events")
    assert len(list(late.lake._since("ml.sequences"))) == 1


def test_a_run_that_died_before_its_record_is_recorded_by_the_next(shop: Shop):
    shop.deliver(DAY, [event(1)])
    shop.run("ingest_events")
    job = shop.job("ingest_events")
    job.lake.replace("bronze.events", job.lake.read("bronze.events"), Window(DAY, day_after(1)))
    dead, committed = job.run.run_id, datetime.now(UTC)
    assert dead not in {row["run_id"] for row in shop.rows("ops.runs")}
    time.sleep(0.1)
    shop.run("ingest_events")
    (line,) = [row for row in shop.rows("ops.runs") if row["run_id"] == dead]
    assert line["status"] == "ok" and "completed_by" in dict(line["details"])
    assert job.run.started_at < line["started_at"] <= committed and line["seconds"] == 0


def test_a_run_that_waited_while_another_died_is_told_as_the_newer_one(shop: Shop):
    shop.deliver(DAY, [event(1)])
    shop.run("ingest_events")
    waited, job = shop.job("ingest_events"), shop.job("ingest_events")
    job.lake.replace("bronze.events", job.lake.read("bronze.events"), Window(DAY, day_after(1)))
    waited.lake.complete("bronze.events")
    (line,) = [row for row in shop.rows("ops.runs") if row["run_id"] == job.run.run_id]
    assert line["started_at"] < waited.run.started_at


def rebuilt(shop: Shop, *names: str, whole: bool = True) -> Job:
    """A run of conform_catalogue that committed these tables and died; `whole`: they are all it had to commit."""
    job = shop.job("conform_catalogue")
    job.lake.complete(*conform_catalogue.TABLES)
    for name in names:
        job.run.unfinished = not whole or name != names[-1]
        job.lake.replace(name, job.lake.read(name))
    return job


def test_runs_of_several_tables_that_died_are_recorded_each_with_all_that_it_committed(shop: Shop):
    told = {"path": "users.csv.gz", "columns": {"user_id": "user", "text": "about"}, "mode": "snapshot"}
    shop.settings["sources"]["users"] = shop.settings["sources"]["items"] | told
    shop.write("users.csv.gz", "user,about", ["u1,likes trains"])
    shop.run("ingest_catalogue", "conform_catalogue")
    dead = [rebuilt(shop, "silver.items", "silver.users") for _ in range(2)]  # the second completes the first, and dies
    shop.run("conform_catalogue", "conform_catalogue")
    for n, job in enumerate(dead, 1):
        (line,) = [row for row in shop.rows("ops.runs") if row["run_id"] == job.run.run_id]
        assert dict(line["outputs"]) == {"silver.items": n, "silver.users": n}
        assert line["status"] == "ok" and "completed_by" in dict(line["details"])
    assert len(shop.rows("ops.runs")) == 6


def test_a_run_that_died_or_failed_between_its_tables_is_not_recorded_as_whole(shop: Shop):
    shop.run("ingest_catalogue", "conform_catalogue")
    failed = rebuilt(shop, "silver.items", whole=False)
    failed.lake.record_stop("failed", {"error": "SourceError"})
    dead = rebuilt(shop, "silver.items", whole=False)
    shop.run("conform_catalogue")
    found = [row["status"] for row in shop.rows("ops.runs") if row["run_id"] in (failed.run.run_id, dead.run.run_id)]
    assert found == ["failed"]


def test_a_run_that_completes_another_and_fails_says_so_of_itself(shop: Shop):
    shop.run("ingest_catalogue", "conform_catalogue")
    dead = rebuilt(shop, "silver.items")
    failed = rebuilt(shop)
    failed.lake.record_stop("failed", {"error": "SourceError"})
    found = {row["run_id"]: row["status"] for row in shop.rows("ops.runs")}
    assert (found[dead.run.run_id], found[failed.run.run_id]) == ("ok", "failed")


def test_a_run_with_commits_to_come_is_not_taken_for_one_that_died(shop: Shop):
    """Lists of each day of a window: between two of its commits another run of the same job writes its own."""
    shop.deliver(DAY, [event(1), event(2)])
    shop.run(*LAKE_STEPS, "score_candidates")
    slow = shop.job("score_candidates", days=2, every_day=True)
    lists = slow.lake.read("gold.recommendations")
    slow.run.unfinished = True
    slow.lake.replace("gold.recommendations", lists, Window(DAY, day_after(1)))
    shop.run("score_candidates", start=day_after(1))
    slow.run.unfinished = False
    slow.lake.record([slow.run.row("ok", {"written": 1})])
    assert sum(row["run_id"] == slow.run.run_id for row in shop.rows("ops.runs")) == 1


def test_a_slow_conform_is_refused_where_a_later_day_has_rewritten_its_days(shop: Shop):
    shop.deliver(DAY, [event(1)])
    shop.run("ingest_events", "conform_events")
    slow = shop.job("conform_events")
    rows = slow.lake.read("silver.events")
    assert slow.lake.read("bronze.events").count() == 1
    shop.deliver(day_after(2), [event(2)])  # two days late
    shop.run("ingest_events", "conform_events", start=day_after(2))
    with pytest.raises(StaleRunError, match=r"newer versions of .*bronze\.events"):
        slow.lake.replace("silver.events", rows, Window(day_after(-2), day_after(1)))
    # Days that nobody has touched since are its own to write.
    slow.lake.replace("silver.events", rows.where("false"), Window(day_after(-5), day_after(-1)))
    assert len(shop.rows("silver.events")) == 2


def test_what_a_dead_conform_counted_is_recorded_by_the_next(shop: Shop):
    shop.deliver(DAY, [event(1), event(2, user="")])
    shop.run("ingest_events", "conform_events")
    job = shop.job("conform_events")
    job.run.owed = {DAY: {"read": 2, "written": 1, "duplicate": 0, "quarantined": 1, "bad": 0}}
    job.lake.replace("silver.events", job.lake.read("silver.events"), Window(day_after(-2), day_after(1)))
    shop.run("conform_events")
    (line,) = [row for row in shop.rows("ops.runs") if row["run_id"] == job.run.run_id]
    counts = {name: line[f"rows_{name}"] for name in job.run.owed[DAY]}
    assert (line["ingest_date"], counts) == (DAY, job.run.owed[DAY])


def test_a_new_model_reaches_every_user_the_next_day_and_a_day_scored_again_is_the_same(shop: Shop, model: Path):
    deliver(shop)
    promoted(shop, model)
    shop.run(*LAKE_STEPS, "score_candidates", days=DAYS)
    everyone = {"u0", "u1", "u2", "u3", "u9"}

    def listed(n: int) -> dict[str, str]:
        rows = [row for row in shop.rows("gold.recommendations") if row["as_of_date"] == day_after(n)]
        return {row["user_id"]: row["model_version"] for row in rows if row["user_id"] != "*"}

    assert listed(DAYS - 1) == dict.fromkeys(everyone, model.name)
    whole = gold(shop)
    shop.run("score_candidates", start=day_after(DAYS - 1))
    assert gold(shop) == whole
    shop.run("score_candidates", start=day_after(DAYS))
    assert listed(DAYS) == {}
    # Days that are rebuilt: whoever was active on them gets a list of what they hold now.
    shop.run("score_candidates", start=day_after(DAYS - 1), days=2)
    active = {row["user_id"] for row in shop.rows("ml.sequences") if row["as_of_date"] == day_after(DAYS - 1)}
    assert listed(DAYS) == dict.fromkeys(active, model.name)
    # The night after day 4: its lists are out, and a new model passes the gate as of that day.
    (shop.folder / "lake" / models.FOLDER / "second").symlink_to(model)
    models.promote(shop.job("promote_scorer").lake, "second", day_after(DAYS - 1), "test")
    shop.run("score_candidates", start=day_after(DAYS))
    assert listed(DAYS) == dict.fromkeys(everyone, "second")


@pytest.mark.parametrize(
    "mark", ["bronze/events/_delta_log", "quarantine/events/_delta_log"], ids=["ingest", "conform"]
)
def test_kill_minus_nine_in_the_middle_and_run_again(shop: Shop, reference, mark: str):
    deliver(shop)
    assert shop.config.lake
    command = [sys.executable, "-m", "lakerec.cli", "run", "--config", str(shop.folder / "config.yaml")]
    command += ["--start", str(DAY), "--end", str(day_after(DAYS)), "--until", "build_sequences"]
    with (shop.folder / "log").open("w") as log:
        victim = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        for _ in itertools.count():
            if (shop.folder / "lake" / mark).exists() or victim.poll() is not None:
                break
            time.sleep(0.02)
        assert victim.poll() is None, (shop.folder / "log").read_text()[-2000:]
        os.killpg(victim.pid, signal.SIGKILL)
        victim.wait()
    shop.run(*LAKE_STEPS, days=DAYS)
    assert {name: shop.rows(name) for name in TABLES} == {name: reference[name] for name in TABLES}


def test_a_run_is_known_by_its_commits(shop: Shop):
    shop.deliver(DAY, [event(1)])
    shop.run("ingest_events", "conform_events")
    (commit,) = shop.job("audit").lake.history("silver.events")
    assert commit["job"] == "conform_events" and commit["inputs"]["bronze.events"] == 0
    assert commit["replaced"] == [str(day_after(-2)), str(day_after(1))]
