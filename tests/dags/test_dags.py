"""The DAGs, loaded and rendered in Airflow's own environment; golden files hold every command.

LAKEREC_GOLDEN=write pytest tests/dags writes the golden files anew.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lakerec.tables import table_names

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "dags"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
PYTHON = ROOT / ".venv-airflow" / "bin" / "python"
DAG_IDS = ["freshness_check", "lake_maintenance", "reco_backfill", "reco_daily", "scorer_nightly", "scorer_rollback"]
WINDOW_JOBS = [
    "ingest_events",
    "ingest_catalogue",
    "conform_events",
    "conform_catalogue",
    "build_sequences",
    "embed_items",
]
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-airflow: run make install")


def drive(home: Path, *arguments: Any, **environment: str) -> Any:
    """The driver's answer. No database is configured: parsing and rendering must need none."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "LAKEREC_"))}
    settings = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "True",
        "AIRFLOW_CONN_SPARK_DEFAULT": '{"conn_type": "spark", "host": "local[2]"}',
    }
    name, *rest = arguments
    command = [str(PYTHON), str(Path(__file__).with_name("driver.py")), name, *map(json.dumps, rest)]
    done = subprocess.run(command, env=clean | settings | environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.rsplit("ANSWER ", 1)[1])


@cache
def loaded(home: Path, **environment: str) -> Any:
    return drive(home, "load", **environment)


@pytest.fixture(scope="session")
def bag(home) -> Any:
    return loaded(home, LAKEREC_HOME="/srv/lakerec")


def test_every_dag_loads_and_imports_nothing_heavy(bag) -> None:
    assert (bag["errors"], bag["heavy"], sorted(bag["dags"])) == ({}, [], DAG_IDS)


@pytest.mark.parametrize("dag_id", DAG_IDS)
def test_a_dag_has_its_runbook_and_tags(bag, dag_id) -> None:
    dag = bag["dags"][dag_id]
    assert "lakerec" in dag["tags"]
    for word in ("# ", "**When it is red**", "scripts/trigger.sh " + dag_id):
        assert word in dag["doc"]


@pytest.mark.parametrize("dag_id", DAG_IDS)
def test_a_late_run_has_its_page_with_the_hours_of_its_deadline(bag, dag_id) -> None:
    (hours,) = bag["dags"][dag_id]["deadline_hours"]
    (section,) = re.findall(rf"^### {dag_id} is late\n\n(.*)", OPERATIONS, re.MULTILINE)
    assert section.startswith(f"Not done after {'an hour' if hours == 1 else f'{hours:g} hours'}")


@pytest.mark.parametrize("dag_id", DAG_IDS)
def test_commands_and_settings_are_those_of_the_golden_file(bag, dag_id) -> None:
    found = {key: value for key, value in bag["dags"][dag_id].items() if key != "doc"}
    text = json.dumps(found, indent=2).replace("/srv/lakerec", "{home}") + "\n"
    path = GOLDEN / f"{dag_id}.json"
    if os.environ.get("LAKEREC_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text(), f"{path.name} differs: look, then write it anew with LAKEREC_GOLDEN=write"


def test_without_lakerec_home_the_project_is_where_the_dags_are(home) -> None:
    command = loaded(home)["dags"]["lake_maintenance"]["tasks"]["maintain_lake"]["command"]
    assert str(ROOT / "jobs" / "maintain_lake.py") in command


def test_the_day_is_of_the_timezone_and_the_gpu_queue_of_the_environment(home) -> None:
    there = loaded(home, LAKEREC_TIMEZONE="Asia/Tokyo", LAKEREC_GPU_QUEUE="gpu")["dags"]
    # 2024-07-01 03:00 UTC is noon in Tokyo; 2024-06-30 20:00 UTC is the morning of July.
    assert there["reco_daily"]["schedule"] == "0 4 * * * Asia/Tokyo"
    queues = {name: task["queue"] for name, task in there["scorer_nightly"]["tasks"].items()}
    assert (queues["train_scorer"], queues["build_examples"]) == ("gpu", "default")


def test_each_day_goes_through_the_chain_in_order(bag) -> None:
    tasks = bag["dags"]["reco_daily"]["tasks"]
    chain = [*WINDOW_JOBS[2:], "score_candidates", "publish_recommendations"]
    assert tasks["conform_events"]["after"] == ["ingest_catalogue", "ingest_events"]
    assert [tasks[name]["after"] for name in chain[1:]] == [[name] for name in chain[:-1]]
    assert {task["pool"] for name, task in tasks.items() if name != "features_ready"} == {"lake"}


def test_the_look_at_the_lists_waits_for_nothing_that_it_is_to_tell_of(bag) -> None:
    (check,) = bag["dags"]["freshness_check"]["tasks"].values()
    assert (check["pool"], check["warm"]) == ("default_pool", False)


def test_a_rollback_comes_before_the_day_the_day_before_the_night_and_the_night_before_a_rebuild(bag) -> None:
    def weights(dag_id: str) -> list[int]:
        return [task["weight"] for task in bag["dags"][dag_id]["tasks"].values() if task["pool"] == "lake"]

    today, rollback, night, rebuild = map(weights, ("reco_daily", "scorer_rollback", "scorer_nightly", "reco_backfill"))
    assert min(rollback) > max(today) and min(today) > max(night) and min(night) > max(rebuild)
    for one in (today, rollback, night, rebuild):  # a day, or a chunk, is finished before the next begins
        assert one == sorted(one)


def test_training_follows_the_features_of_the_day_on_schedule_alone(bag) -> None:
    ready = bag["dags"]["reco_daily"]["tasks"]["features_ready"]
    assert (ready["after"], ready["writes"]) == (["embed_items"], ["features"])
    assert ready["retries"] == 2  # cleared on the next day it would skip
    assert bag["dags"]["scorer_nightly"]["timetable"] == "PartitionedAssetTimetable"
    writers = {name: task["writes"] for dag in bag["dags"].values() for name, task in dag["tasks"].items()}
    assert [name for name, written in writers.items() if "features" in written] == ["features_ready"]


def test_every_table_of_the_lake_is_written_by_a_job_that_says_so(bag) -> None:
    written = {one for dag in bag["dags"].values() for task in dag["tasks"].values() for one in task["writes"]}
    elsewhere = {"features", "models", "serving.recommendations"}
    assert written - elsewhere == set(table_names()) - {"ops.runs", "ops.tombstones"}


def test_a_backfill_runs_window_jobs_by_chunk_and_publishes_once(bag) -> None:
    tasks = bag["dags"]["reco_backfill"]["tasks"]
    assert {name: tasks[name]["command"][-3:] for name in WINDOW_JOBS} == {
        name: ["<start>", "--end", "<end>"] for name in WINDOW_JOBS
    }
    # The lists of the last day, for everybody who was active on one of the days.
    assert tasks["score_candidates"]["command"][-3:] == ["2024-07-01", "--end", "2024-07-20"]
    assert tasks["publish_recommendations"]["command"][-3:] == ["2024-07-19", "--end", "2024-07-20"]


def test_more_chunks_than_airflow_takes_fail_at_once_with_the_chunk_days_that_do(home) -> None:
    known = {"AIRFLOW__CORE__MAX_MAP_LENGTH": "3"}
    assert len(drive(home, "planned", "2024-07-01", "2024-07-04", 1, **known)) == 3
    told = drive(home, "planned", "2024-07-01", "2024-07-08", 2, **known)
    assert told.startswith("AirflowFailException: chunk_days is 2: that cuts 2024-07-01 to 2024-07-08 into 4 chunks")
    assert "3 or more days to a chunk" in told


def test_a_rollback_hands_the_version_over_and_makes_the_lists_of_the_day_anew(bag) -> None:
    tasks = bag["dags"]["scorer_rollback"]["tasks"]
    assert "LAKEREC_ROLLBACK_TO=20240630-1a2b3c4d-5e6f70" in tasks["rollback_scorer"]["command"]
    assert tasks["score_candidates"]["after"] == ["rollback_scorer"]
    assert tasks["publish_recommendations"]["after"] == ["score_candidates"]
    for task in tasks.values():
        assert task["command"][-4:] == ["--start", "2024-07-01", "--end", "2024-07-02"]


def test_an_exit_code_of_the_job_decides_between_fail_and_retry(home) -> None:
    outcome = drive(home, "execute", [0, 1, 12, 18, 20], LAKEREC_HOME=str(home))
    assert outcome == {
        "0": {"bronze.events": ["2024-07-01", "2024-07-02"]},
        "1": "AirflowException",
        "12": "AirflowFailException",
        "18": "AirflowSkipException",
        "20": "AirflowException",
    }


def test_a_task_that_ends_without_a_named_error_is_told_by_its_exception(home) -> None:
    words = "Traceback (most recent call last):\n  File \"job.py\", line 1\nKeyError: 'u1'\n26/03/02 INFO bye"
    told = drive(home, "failure", words, LAKEREC_HOME=str(home))
    assert "Error code is: 1." in told and told.splitlines()[-1] == "KeyError: 'u1'"


def test_a_day_looks_at_the_days_before_it_and_a_run_by_hand_at_none(home) -> None:
    assert drive(home, "earlier", "2024-07-04") == [["s3", False], ["s2", True], ["s1", False]]
    assert drive(home, "earlier", None) == []


def test_killing_a_task_ends_all_its_processes(home) -> None:
    counts = drive(home, "kill", LAKEREC_HOME=str(home))
    assert counts["before"] >= 2
    assert counts["after"] == 0


def test_a_task_that_takes_longer_than_the_deployment_allows_ends_with_all_its_processes(home, tmp_path) -> None:
    (tmp_path / "spark.conf").write_text("spark.lakerec.reuse false\nspark.lakerec.task_minutes 0.05\n")
    found = drive(home, "overtime", LAKEREC_HOME=str(home), LAKEREC_STATE=str(tmp_path))
    told = "AirflowTaskTimeout: ingest_events took longer than 0:00:03 (task_minutes of the YAML): "
    assert found["error"].startswith(told)
    assert (found["before"] >= 2, found["after"]) == (True, 0)


def test_only_what_trains_has_the_time_of_a_training(bag) -> None:
    limits = {name: task.get("limit") for dag in bag["dags"].values() for name, task in dag["tasks"].items()}
    assert {name for name, limit in limits.items() if limit == "training_minutes"} == {
        "train_scorer",
        "evaluate_scorer",
    }
    assert {name for name, limit in limits.items() if limit is None} == {"features_ready", "plan_chunks", "both_done"}


def test_an_attempt_ends_what_a_killed_one_has_left(home) -> None:
    counts = drive(home, "retry", LAKEREC_HOME=str(home))
    assert counts["before"] >= 2
    assert counts["after"] == 0
