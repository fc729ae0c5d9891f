"""Runs in Airflow's environment, answers as JSON: driver.py load | execute CODES | alerted MESSAGE | ..."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import defaultdict
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

DAGS = Path(__file__).parents[2] / "dags"
HEAVY = {"pyspark", "torch", "pandas", "numpy", "pyarrow", "psycopg", "great_expectations", "lakerec"}
# A summer day: in London its 04:00 is 03:00 UTC.
RUN = SimpleNamespace(
    run_type="scheduled",
    data_interval_start=datetime(2024, 7, 1, 3, tzinfo=UTC),
    data_interval_end=datetime(2024, 7, 2, 3, tzinfo=UTC),
    run_after=datetime(2024, 7, 2, 3, tzinfo=UTC),
    partition_key=None,
)
PARAMS = {
    "reco_daily": {"day": None},
    "scorer_nightly": {"day": None},
    "scorer_rollback": {"version": "20240630-1a2b3c4d-5e6f70", "day": "2024-07-01"},
    "lake_maintenance": {},
    "freshness_check": {"day": None},
    "reco_backfill": {"start": "2024-07-01", "end": "2024-07-20", "chunk_days": 7},
}


def load() -> dict[str, Any]:
    """Every DAG with its rendered commands, the import errors, and what heavy things parsing imported."""
    from airflow.dag_processing.dagbag import DagBag

    stand_in_for_kubernetes()
    bag = DagBag(str(DAGS))
    heavy = sorted(HEAVY & sys.modules.keys())
    dags = {dag_id: describe(dag) for dag_id, dag in sorted(bag.dags.items())}
    return {"errors": bag.import_errors, "heavy": heavy, "dags": dags}


def stand_in_for_kubernetes() -> None:
    """A command for Kubernetes is rendered without its client, which only Airflow's image for clusters has."""
    from airflow.providers.apache.spark.hooks import spark_submit

    vars(spark_submit).setdefault("kube_client", SimpleNamespace())


def environment() -> list[str]:
    """The variables that a job hands to the process of its spark-submit."""
    stand_in_for_kubernetes()
    hook = job()._get_hook()
    hook._build_spark_submit_command("job.py")
    return sorted(hook._env or ())


def describe(dag: Any) -> dict[str, Any]:
    """What the golden files hold of a DAG."""
    timetable = dag.timetable
    schedule = f"{timetable.expression} {timetable.timezone}" if hasattr(timetable, "expression") else None
    return {
        "doc": dag.doc_md,
        "tags": sorted(dag.tags),
        "schedule": schedule,
        "timetable": type(timetable).__name__,
        "catchup": dag.catchup,
        "max_active_runs": dag.max_active_runs,
        "deadline_hours": [alert.interval.total_seconds() / 3600 for alert in dag.deadline],
        "tasks": {task.task_id: task_of(task, dag) for task in dag.topological_sort()},
    }


def task_of(task: Any, dag: Any) -> dict[str, Any]:
    """A task's place, resources, retries and, for a job, the command that it runs."""
    facts = {
        "after": sorted(task.upstream_task_ids),
        "pool": task.pool,
        "queue": task.queue,
        "retries": task.retries,
        "reads": sorted(one.name for one in task.inlets),
        "writes": sorted(one.name for one in task.outlets),
        "weight": weight(task),
    }
    if hasattr(task, "application"):
        facts |= {"command": command_of(task, dag), "warm": task.warm}
        facts |= {"one_at_a_time": task.max_active_tis_per_dagrun, "limit": task.limit}
    return facts


def weight(task: Any) -> int:
    """What a task weighs among those that wait for a slot, by Airflow's own sum."""
    from airflow.task.priority_strategy import validate_and_load_priority_weight_strategy

    return validate_and_load_priority_weight_strategy(task.weight_rule).get_weight(SimpleNamespace(task=task))


def command_of(task: Any, dag: Any) -> list[str]:
    """The spark-submit command of the fixed run; a chunk's argument shows as <name>."""
    from airflow.sdk.execution_time import macros

    task.application_args = [one if isinstance(one, str) else f"<{one._key}>" for one in task.application_args]
    value = SimpleNamespace(lakerec_config="/etc/lakerec/shop.yaml")
    context = {
        "dag_run": RUN,
        "params": PARAMS[dag.dag_id],
        "var": {"value": value},
        "ti": SimpleNamespace(dag_id=dag.dag_id, run_id="run", task_id=task.task_id, map_index=-1),
        "macros": macros,
    }
    task.render_template_fields(context, jinja_env=dag.get_template_env())
    environment = [f"{name}={value}" for name, value in task.env_vars.items()]
    return [*environment, *task._get_hook()._build_spark_submit_command(task.application)]


def job() -> Any:
    """A job outside any DAG, its templates rendered."""
    from common.operators import MARK, LakerecJob

    task = LakerecJob(task_id="ingest_events", start="2024-07-01", end="2024-07-03")
    task.application_args[1] = "shop.yaml"
    task.env_vars[MARK] = f"task-{os.getpid()}"
    return task


def alerted(message: str) -> None:
    """Tell of a task that failed with this message, of a day that is late, and of a late day of a backfill."""
    from common.alerts import deadline_missed, task_failed

    task = SimpleNamespace(dag_id="reco_daily", task_id="score_candidates", run_id="run-1", log_url="http://ui/log")
    task_failed({"ti": task, "exception": RuntimeError(message)})
    for kind in ("scheduled", "backfill"):
        run = {"run_type": kind, "dag_id": "reco_daily", "dag_run_id": f"{kind}-2"}
        deadline_missed({"dag_run": run, "deadline": {"deadline_time": "2024-07-02T06:00:00Z"}})


class Partitions:
    """The days that a task tells of an asset."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def add_partitions(self, keys: list[str]) -> None:
        """As Airflow's own."""
        self.keys += keys


def execute(codes: list[int]) -> dict[str, Any]:
    """For each exit code of the fake spark-submit: the name of the task's exception, or the partitions it has made."""
    outcome: dict[str, Any] = {}
    for code in codes:
        os.environ["FAKE_CODE"] = str(code)
        try:
            events = defaultdict(Partitions)
            job().execute({"outlet_events": events})
            outcome[str(code)] = {one.name: days.keys for one, days in events.items()}
        except Exception as error:
            outcome[str(code)] = type(error).__name__
    return outcome


def failure(words: str) -> str:
    """What is told of a task whose spark-submit has said these words and ended with exit code 1."""
    os.environ |= {"FAKE_CODE": "1", "FAKE_WORDS": words}
    try:
        job().execute({"outlet_events": defaultdict(Partitions)})
    except Exception as error:
        return str(error)
    return ""


def planned(start: str, end: str, chunk_days: int) -> Any:
    """The chunks that reco_backfill plans, or the error that its task ends with."""
    from reco_backfill import plan_chunks

    try:
        return plan_chunks.function({"start": start, "end": end, "chunk_days": chunk_days})
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def execute_on_yarn(codes: list[int]) -> dict[str, str]:
    """As `execute`, of drivers on a cluster: the ResourceManager tells how each ended."""
    server = HTTPServer(("127.0.0.1", 0), ResourceManager)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    extra = {"deploy-mode": "cluster", "yarn_resourcemanager_webapp_address": f"127.0.0.1:{server.server_port}"}
    os.environ["AIRFLOW_CONN_SPARK_DEFAULT"] = json.dumps({"conn_type": "spark", "host": "yarn", "extra": extra})
    outcome = {}
    for code in codes:
        ResourceManager.code = code
        outcome |= {str(code): execute([0])["0"]}
    return outcome


class ResourceManager(BaseHTTPRequestHandler):
    """What YARN's ResourceManager answers of a driver that ended with an exit code."""

    code = 0

    def do_GET(self) -> None:
        """One application: /ws/v1/cluster/apps/application_1_1."""
        told = f"User application exited with status {self.code}" if self.code else ""
        app = {"state": "FINISHED", "finalStatus": "FAILED" if told else "SUCCEEDED", "diagnostics": told}
        self.send_response(200 if self.path.endswith("/application_1_1") else 404)
        self.end_headers()
        self.wfile.write(json.dumps({"app": app}).encode())


def earlier(since: str | None) -> list[Any]:
    """What a task sees of earlier days, where three ran before July 4 and the run by hand of the newest has no date."""
    from common.operators import earlier_days

    class Task:
        """A task instance as far as the look at earlier days needs it; runs whose id is even go on."""

        dag_id = "reco_daily"

        def get_previous_ti(self, logical_date: datetime | None = None) -> Any:
            """As Airflow's: without a date the newest, which may be this one."""
            day = logical_date.day if logical_date else 5
            if day == 1:
                return None
            return SimpleNamespace(state=f"s{day - 1}", run_id=str(day - 1), logical_date=datetime(2024, 7, day - 1))

        def get_dr_count(self, dag_id: str, run_ids: list[str], states: list[str]) -> int:
            """As Airflow's."""
            return 1 - int(run_ids[0]) % 2

    return list(earlier_days(Task(), datetime.fromisoformat(since) if since else None))


def kill() -> dict[str, int]:
    """How many processes a running job has before and after on_kill, its parent having died first."""
    task = job()
    os.environ["FAKE_CODE"] = "sleep"
    thread = threading.Thread(target=execute_quietly, args=[task], daemon=True)
    thread.start()
    before = len(begun(task))
    task._hook._submit_sp.kill()
    task.on_kill()
    return {"before": before, "after": len(family(task))}


def overtime() -> dict[str, Any]:
    """How a job ends that takes longer than it may, and how many processes it had before and has after that."""
    from airflow.sdk.execution_time.task_runner import _run_execute_callable

    task, counts = job(), []
    os.environ["FAKE_CODE"] = "sleep"
    threading.Thread(target=lambda: counts.append(len(begun(task))), daemon=True).start()
    task.pre_execute({})
    try:
        _run_execute_callable({"outlet_events": defaultdict(Partitions)}, task.execute, task)
    except BaseException as error:
        return {"error": f"{type(error).__name__}: {error}", "before": counts[0], "after": len(family(task))}
    return {}


def retry() -> dict[str, int]:
    """How many processes an attempt that was killed has left, before and after the next attempt."""
    task = job()
    os.environ["FAKE_CODE"] = "sleep"
    attempt = os.fork()
    if not attempt:
        execute_quietly(task)
    begun(task)
    os.kill(attempt, signal.SIGKILL)
    os.waitpid(attempt, 0)
    before = len(family(task))
    os.environ["FAKE_CODE"] = "0"
    task.execute({"outlet_events": defaultdict(Partitions)})
    return {"before": before, "after": len(family(task))}


def family(task: Any) -> list[Any]:
    """The processes that the attempts of a task have started."""
    import psutil

    from common.operators import MARK, mark_of

    return [one for one in psutil.process_iter() if mark_of(one) == task.env_vars[MARK]]


def begun(task: Any) -> list[Any]:
    """The same, as soon as there are two."""
    deadline = time.monotonic() + 20
    while len(found := family(task)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def execute_quietly(task: Any) -> None:
    """Execute a task that is going to be killed."""
    from airflow.sdk.exceptions import AirflowException

    try:
        task.execute({"outlet_events": defaultdict(Partitions)})
    except AirflowException:
        return


if __name__ == "__main__":
    sys.path.insert(0, str(DAGS))
    answer = globals()[sys.argv[1]](*map(json.loads, sys.argv[2:]))
    print("ANSWER " + json.dumps(answer))
