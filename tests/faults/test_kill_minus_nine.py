"""A job killed -9, at whatever moment and however often, and then run to its end leaves the lake of a quiet run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import psutil
import psycopg
import pytest
from stages import DAYS, NEXT, Stages, state
from tests.conftest import Shop, Start, day_after
from tests.processes import ended, job_command, kill, said, session, wait_until

from lakerec import postgres
from lakerec.errors import ProcessLostError
from lakerec.serving import FALLBACK_USER, LOCK, Recommendation, publish
from lakerec.session import write_properties

pytestmark = pytest.mark.faults
MOMENTS = 8
TABLES = {
    "ingest_events": ("bronze.events",),
    "ingest_catalogue": ("bronze.items",),
    "conform_events": ("silver.events", "quarantine.events"),
    "conform_catalogue": ("silver.items",),
    "build_sequences": ("ml.sequences",),
    "embed_items": ("ml.item_embeddings",),
    "train_scorer": (),
    "score_candidates": ("gold.recommendations",),
}
COUNTED = ("read", "written", "duplicate", "quarantined")
SECONDS = 15  # in which a process that was asked to end, or whose driver is dead, is gone
Before = Callable[..., Shop]


def run(start: Start, shop: Shop, step: str) -> subprocess.Popen:
    """The job as a process."""
    return start(job_command(shop, step, days=DAYS), shop.folder / "out.txt")


def folder(shop: Shop, name: str) -> Path:
    return shop.folder / "lake" / name.replace(".", "/")


def commits(shop: Shop, name: str) -> set[Path]:
    return set((folder(shop, name) / "_delta_log").glob("*.json"))


def data(shop: Shop, name: str) -> set[Path]:
    return {file for file in folder(shop, name).rglob("*.parquet") if "_delta_log" not in file.parts}


def counts(shop: Shop, step: str) -> dict:
    """Counts of each ingest day, the same in all of its runs; `read = written + duplicate + quarantined`."""
    found: dict = {}
    for row in shop.rows("ops.runs"):
        if row["job"] == step and row["ingest_date"]:
            told = tuple(row[f"rows_{name}"] for name in COUNTED)
            assert row["status"] == "ok" and told[0] == sum(n or 0 for n in told[1:])
            assert found.setdefault(row["ingest_date"], told) == told
    return found


def weights(shop: Shop) -> dict[str, dict[str, str]]:
    """The hashes of each model's files."""
    found = (shop.folder / "lake" / "_models").glob("*/manifest.json")
    return {file.parent.name: json.loads(file.read_text())["files"] for file in found}


def assert_quiet(shop: Shop, step: str, stages: Stages) -> None:
    """The lake is that of a quiet run, nothing is left over, and the ledger has every run that committed."""
    quiet, names = Shop(stages[NEXT[step]], shop.spark), TABLES[step]
    assert state(shop, *names) == state(quiet, *names)
    assert counts(shop, step) == counts(quiet, step)
    runs = {row["run_id"] for row in shop.rows("ops.runs")}
    for name in names[:1]:  # what comes before it is no result yet
        assert {commit["run_id"] for commit in shop.job("audit").lake.history(name, 100)} <= runs
    assert weights(shop) == weights(quiet)
    assert [*shop.folder.glob("lake/_scoring/*"), *shop.folder.glob("lake/_models/.*")] == []


@pytest.mark.parametrize("step", TABLES)
def test_killed_at_moments_all_over_its_run(step: str, before: Before, start: Start, stages: Stages):
    began = time.monotonic()
    ended(start, before(step, "quiet"), step, DAYS)
    seconds, shop, draw, died = time.monotonic() - began, before(step), random.Random(step), 0
    for moment in range(MOMENTS):
        process, began = run(start, shop, step), time.monotonic()
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds * (0.25 + 0.75 * (moment + draw.random()) / MOMENTS))
            seconds = time.monotonic() - began  # it came to its end: a machine with neighbours is not always as fast
        died += process.poll() is None
        kill(process, whole=moment % 2 == 0)  # else its JVM is left to find out
    # A training goes on where it was, so that it may be done before the last moment.
    assert died > (1 if step == "train_scorer" else MOMENTS // 2)
    ended(start, shop, step, DAYS)
    assert_quiet(shop, step, stages)


COMMITTING = [step for step in TABLES if step != "train_scorer"]


@pytest.mark.parametrize("step", COMMITTING)
def test_killed_between_the_data_and_the_commit(step: str, before: Before, start: Start, stages: Stages):
    shop, name = before(step), TABLES[step][0]
    files, known = data(shop, name), commits(shop, name)
    process = run(start, shop, step)
    assert wait_until(lambda: data(shop, name) - files, process)
    kill(process)
    assert commits(shop, name) == known and data(shop, name) > files
    ended(start, shop, step, DAYS)
    assert_quiet(shop, step, stages)


@pytest.mark.parametrize("step", COMMITTING)
def test_killed_between_the_commit_and_the_ledger(step: str, before: Before, start: Start, stages: Stages):
    shop, name = before(step), TABLES[step][0]
    known, ledger = commits(shop, name), commits(shop, "ops.runs")
    process = run(start, shop, step)
    assert wait_until(lambda: commits(shop, name) - known, process)
    kill(process)
    assert commits(shop, "ops.runs") == ledger
    dead = shop.job("audit").lake.history(name)[0]["run_id"]
    ended(start, shop, step, DAYS)
    assert_quiet(shop, step, stages)
    assert all("completed_by" in dict(row["details"]) for row in shop.rows("ops.runs") if row["run_id"] == dead)


@pytest.mark.parametrize("step", ["conform_events", "score_candidates"])
def test_the_lease_of_a_killed_driver_is_held_until_its_jvm_can_write_no_more(step: str, before: Before, start: Start):
    shop, name = before(step), TABLES[step][0]
    files = data(shop, name)
    process = run(start, shop, step)
    assert wait_until(lambda: data(shop, name) - files, process)
    kill(process, whole=False)
    job = shop.job("audit")
    with job.lake.lease():
        seen = commits(shop, name)
        wait_until(lambda: not alive(process), seconds=SECONDS)
        assert commits(shop, name) == seen


def alive(process: subprocess.Popen) -> list[psutil.Process]:
    """What still runs of a process's session."""
    found = []
    for pid in session(process):
        with suppress(psutil.NoSuchProcess):
            if (one := psutil.Process(pid)).status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


def workers(process: subprocess.Popen) -> list[int]:
    """The Python workers of a job's Spark: the children of its daemon."""
    parents: dict[int, int] = {}
    for one in alive(process):
        with suppress(psutil.Error):  # it may end while it is looked at
            if "lakerec.daemon" in one.cmdline():
                parents[one.pid] = one.ppid()
    return [pid for pid, parent in parents.items() if parent in parents]


def jvm(process: subprocess.Popen) -> list[int]:
    return [one.pid for one in alive(process) if one.name() == "java"]


@pytest.mark.parametrize("who", [workers, jvm])
def test_a_process_of_sparks_killed_while_scoring(who, before: Before, start: Start, stages: Stages):
    shop = before("score_candidates")
    shop.settings["spark"] = {"master": "local[1]"}  # a bucket behind the other
    process = run(start, shop, "score_candidates")
    victims = wait_until(lambda: workers(process) and who(process), process)
    assert victims and wait_until(lambda: list(shop.folder.glob("lake/_scoring/*/bucket-*.parquet")), process)
    for pid in victims:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(2)  # one that had just done its bucket has been given the next: Spark replaces an idle one
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    assert process.wait(60) == ProcessLostError.exit_code
    assert "run again" in said((shop.folder / "out.txt").read_text(), "ProcessLostError")
    assert shop.rows("gold.recommendations") == []
    assert "were scored by a run that did not end" in ended(start, shop, "score_candidates", DAYS)
    assert_quiet(shop, "score_candidates", stages)


def submitted(start: Start, shop: Shop, step: str) -> subprocess.Popen:
    """The job by spark-submit, as Airflow starts it: the JVM is its first process, Python a child."""
    write_properties(shop.config, conf := shop.folder / "spark.conf")
    python, *rest = job_command(shop, step, days=DAYS)
    command = [str(Path(python).with_name("spark-submit")), "--properties-file", str(conf), *rest]
    return start(command, shop.folder / "out.txt", PYSPARK_PYTHON=python)


def events_files(shop: Shop) -> set[Path]:
    return data(shop, "silver.events")


def events_commits(shop: Shop) -> set[Path]:
    return commits(shop, "silver.events")


def drafts(shop: Shop) -> set[Path]:
    return set(shop.folder.glob("lake/_models/.*"))


@pytest.mark.parametrize("begin", [run, submitted])
@pytest.mark.parametrize(
    ("step", "seen"),
    [("conform_events", events_files), ("conform_events", events_commits), ("train_scorer", drafts)],
)
def test_asked_to_end_it_ends_soon_with_the_lease_free_and_the_table_whole(
    step: str, seen, begin, before: Before, start: Start, stages: Stages
):
    shop = before(step)
    there = seen(shop)
    process = begin(start, shop, step)
    assert wait_until(lambda: seen(shop) - there, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) != 0
    wait_until(lambda: not alive(process), seconds=SECONDS)
    shop.settings["lease"] = {"wait_seconds": 0}
    with shop.job("audit").lake.lease():
        kept = state(shop, "silver.events")
    assert kept in [state(Shop(stages[at], shop.spark), "silver.events") for at in (step, NEXT[step])]
    shop.settings["lease"] = {"wait_seconds": 60}
    ended(start, shop, step, DAYS)
    assert_quiet(shop, step, stages)


@pytest.fixture()
def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with the lists of the day before."""
    uri = postgres.ensure_database(postgres.start(tmp_path / "server"), "serving")
    monkeypatch.setenv("LAKEREC_SERVING_URI", uri)
    yesterday = day_after(DAYS - 2)
    old = [Recommendation(user, 1, "old", 0.5, "s", 1.0, "r", "v", yesterday, "old") for user in (FALLBACK_USER, "u1")]
    publish(uri, iter(old), yesterday, len(old))
    yield uri
    postgres.stop(tmp_path / "server")


def served(uri: str) -> list[tuple]:
    with psycopg.connect(uri) as connection:
        return connection.execute("select user_id, rank, item_id from serving.recommendations").fetchall()


def test_killed_while_publishing(serving: str, before: Before, start: Start):
    step = "publish_recommendations"
    shop, old = before(step), served(serving)
    new = sorted((row["user_id"], row["rank"], row["item_id"]) for row in shop.rows("gold.recommendations"))
    with psycopg.connect(serving) as other:  # all is staged, and the transaction waits for this lock
        other.execute("select pg_advisory_xact_lock(%s)", [LOCK])
        process = run(start, shop, step)
        wait_until(lambda: waiting(serving), process)
        kill(process)
        assert served(serving) == old
    process, began = run(start, shop, step), time.monotonic()
    assert wait_until(lambda: sorted(served(serving)) != sorted(old), process, seconds=120), began
    kill(process)  # between PostgreSQL's commit and the ledger
    assert sorted(served(serving)) == new
    assert step not in {row["job"] for row in shop.rows("ops.runs")}
    ended(start, shop, step, DAYS)
    assert sorted(served(serving)) == new
    (row,) = [row for row in shop.rows("ops.runs") if row["job"] == step]
    assert (row["rows_read"], row["rows_written"]) == (len(new), 0)


def waiting(uri: str) -> bool:
    with psycopg.connect(uri) as looking:
        found = looking.execute("select count(*) from pg_stat_activity where wait_event = 'advisory'").fetchone()
    return found == (1,)


def test_one_run_started_twice_at_once(before: Before, start: Start, stages: Stages):
    for wait_seconds, code in ((0, {0, 20}), (60, {0})):
        shop = before("conform_events", f"twice-{wait_seconds}")
        shop.settings["lease"] = {"wait_seconds": wait_seconds}
        command = job_command(shop, "conform_events", days=DAYS)
        both = [start(command, shop.folder / f"out-{n}.txt") for n in range(2)]
        assert {one.wait(300) for one in both} == code
        if wait_seconds == 0:
            text = "".join((shop.folder / f"out-{n}.txt").read_text() for n in range(2))
            assert "is held by conform_events (run conform_events-" in said(text, "LakeBusyError")
        assert_quiet(shop, "conform_events", stages)


def test_a_window_killed_and_one_of_a_later_day_run_before_it_is_taken_up(before: Before, start: Start, stages: Stages):
    shop = before("conform_events")
    process = run(start, shop, "conform_events")
    assert wait_until(lambda: commits(shop, "quarantine.events"), process)
    kill(process)
    shop.run("conform_events", start=day_after(DAYS) - timedelta(days=1))
    ended(start, shop, "conform_events", DAYS)
    assert state(shop, "silver.events") == state(Shop(stages["conform_catalogue"], shop.spark), "silver.events")
