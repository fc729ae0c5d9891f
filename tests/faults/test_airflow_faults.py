"""Airflow's own processes die: a task's, whose spark-submit lives on, and the scheduler in the middle of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from benchmarks.speed.airflow_run import airflow, up
from stages import DAYS, NEXT, state
from tests.conftest import DAY, LAKE_STEPS, ROOT, Shop, Start, day_after
from tests.processes import wait_until

from lakerec.lake import file_lease
from lakerec.session import write_properties

PYTHON = ROOT / ".venv-airflow" / "bin" / "python"
pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-airflow: run make install"),
]
STEP = "ingest_events"
# What Airflow runs of a task: the operator, rendered, in a process of its own.
TASK = """
import sys
from collections import defaultdict
from types import SimpleNamespace
sys.path.insert(0, {dags!r})
from common.operators import MARK, LakerecJob
task = LakerecJob(task_id={step!r}, start={start!r}, end={end!r})
task.application_args[1], task.env_vars[MARK] = {config!r}, {mark!r}
task.execute({{"outlet_events": defaultdict(lambda: SimpleNamespace(add_partitions=list))}})
"""


def task(start: Start, shop: Shop, name: str) -> subprocess.Popen:
    """An attempt of the task."""
    write_properties(shop.config, shop.folder / "state" / "spark.conf")
    days, config = {"start": str(DAY), "end": str(day_after(DAYS))}, str(shop.folder / "config.yaml")
    code = TASK.format(dags=str(ROOT / "dags"), step=STEP, config=config, mark=str(shop.folder), **days)
    known = {
        "AIRFLOW_HOME": str(shop.folder / "airflow"),
        "AIRFLOW__CORE__UNIT_TEST_MODE": "True",
        "AIRFLOW_CONN_SPARK_DEFAULT": '{"conn_type": "spark", "host": "local[2]"}',
        "LAKEREC_HOME": str(ROOT),
        "LAKEREC_STATE": str(shop.folder / "state"),
    }
    return start([str(PYTHON), "-c", code], shop.folder / f"{name}.txt", **known)


def drivers(shop: Shop) -> list[psutil.Process]:
    """The Python drivers of the job that run for this lake."""
    job, config = str(ROOT / "jobs" / f"{STEP}.py"), str(shop.folder / "config.yaml")
    lines = [(one, one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]
    return [one for one, line in lines if line[1:2] == [job] and config in line]


def test_the_retry_of_a_task_that_was_killed_is_no_second_writer(before: Callable[..., Shop], start: Start, stages):
    shop = before(STEP)
    with file_lease(shop.folder / "lake", "a long run", "r", 0):
        first = task(start, shop, "first")
        (orphan,) = wait_until(lambda: drivers(shop), first)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        time.sleep(1)
        assert orphan.is_running()  # its spark-submit lives on
        second = task(start, shop, "second")
        wait_until(lambda: [one for one in drivers(shop) if one != orphan], second)
        assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
    assert second.wait(300) == 0, (shop.folder / "second.txt").read_text()
    quiet = Shop(stages[NEXT[STEP]], shop.spark)
    assert state(shop, "bronze.events") == state(quiet, "bronze.events")
    assert len({row["run_id"] for row in shop.rows("ops.runs")}) == 1


@pytest.fixture()
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """That of an Airflow of the test's own."""
    with airflow(tmp_path) as known:
        yield known


def test_a_scheduler_killed_in_the_middle_of_a_run_and_started_again_ends_it_right(
    before: Callable[..., Shop], start: Start, environment: dict[str, str]
):
    shop, quiet = before("ingest_events"), before("ingest_events", "quiet")
    up(environment, shop.config.file)
    trigger = [str(ROOT / "scripts" / "trigger.sh"), "reco_daily", "--day", str(DAY)]
    run = start(trigger, shop.folder / "run.txt", **environment)
    assert wait_until(lambda: list(shop.folder.glob("lake/bronze/events/_delta_log/*.json")), run, 300)
    scheduler = Path(environment["LAKEREC_STATE"]) / "airflow" / "processes" / "scheduler"
    os.kill(int(scheduler.read_text().split()[0]), signal.SIGKILL)
    up(environment, shop.config.file)
    assert run.wait(1200) == 0, (shop.folder / "run.txt").read_text()
    quiet.run(*LAKE_STEPS, "embed_items", "score_candidates")
    names = ("bronze.events", "silver.events", "quarantine.events", "ml.sequences", "gold.recommendations")
    assert state(shop, *names) == state(quiet, *names)
    known = {row["job"] for row in shop.rows("ops.runs")}
    assert {"ingest_events", "conform_events", "score_candidates", "publish_recommendations"} <= known
