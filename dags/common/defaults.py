"""Where things are, when they run, and which days a run is about. Nothing here reads a file or a database."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import CronDataIntervalTimetable, DeadlineAlert, DeadlineReference, Param, SyncCallback
from airflow.sdk.timezone import datetime as aware

from common.alerts import deadline_missed, task_failed
from common.rules import window

if TYPE_CHECKING:
    from airflow.sdk.bases.timetable import BaseTimetable

HOME = Path(os.environ.get("LAKEREC_HOME") or Path(__file__).resolve().parents[2])
STATE = Path(os.environ.get("LAKEREC_STATE") or HOME / ".lakerec")  # where `make up` keeps what it writes
TIMEZONE = os.environ.get("LAKEREC_TIMEZONE", "UTC")  # the same as the configuration's `timezone`

# Templates, rendered when a task starts: the YAML's path and the run's days, the end excluded.
CONFIG = "{{ var.value.lakerec_config }}"
START = "{{ window(dag_run, params)[0] }}"
END = "{{ window(dag_run, params)[1] }}"

SCHEDULED = os.environ.get("LAKEREC_SCHEDULES", "on") != "off"  # off: every run is triggered by hand

LAKE: dict[str, Any] = {"pool": "lake"}  # one slot: jobs that hold the lake's lease wait here, not inside a JVM
WARM = {**LAKE, "warm": True}  # of these, those that `spark.reuse` may run in one warm driver
# Who gets the lake's slot first, whatever else waits for it: an earlier model that is to serve again, then what is
# served today, then the model of the night; what has 1 comes last. A task weighs this for itself and for each one
# before it, so the steps are far apart. Airflow gives a tie to the earlier day, and last to a run without one.
URGENT, TODAY, TONIGHT = 1000, 100, 10
GPU: dict[str, Any] = {"pool": "gpu", "trains": True}
if os.environ.get("LAKEREC_GPU_QUEUE"):  # only executors with workers of their own (Celery) have queues
    GPU["queue"] = os.environ["LAKEREC_GPU_QUEUE"]

# yarn or kubernetes: the drivers run on the cluster, in deploy mode cluster.
CLUSTER = os.environ.get("LAKEREC_CLUSTER", "")

DAY_PARAM = Param(
    None,
    type=["null", "string"],
    format="date",
    title="Day to rebuild",
    description="Only for a run by hand, for example 2024-03-01; empty: the day that ended last.",
)


def settings(doc: str | None, schedule: str | BaseTimetable | None, hours: float, weight: int = 1) -> dict[str, Any]:
    """What every DAG passes to DAG(): `schedule` as a cron of local time (a run is about the time between two ticks)
    or a timetable, in how many hours after it was queued a run has to be done before somebody is told, and what each of
    its tasks weighs where several wait for a slot.
    """
    if isinstance(schedule, str):
        schedule = CronDataIntervalTimetable(schedule, timezone=TIMEZONE)
    return {
        "doc_md": doc,
        "schedule": schedule if SCHEDULED else None,
        "deadline": DeadlineAlert(
            DeadlineReference.DAGRUN_QUEUED_AT, timedelta(hours=hours), SyncCallback(deadline_missed)
        ),
        "start_date": aware(2000, 1, 1),  # older than any data, so that `airflow backfill create` takes any day
        "catchup": False,
        "user_defined_macros": {"window": partial(window, timezone=TIMEZONE)},
        "render_template_as_native_obj": False,
        "default_args": {
            "owner": "lakerec",
            "on_failure_callback": task_failed,
            "retries": 2,
            "retry_delay": timedelta(minutes=2),
            "retry_exponential_backoff": 2,
            "max_retry_delay": timedelta(minutes=30),
            # Later steps first: the one slot of the lake finishes a day (or chunk) before it begins the next.
            "weight_rule": "upstream",
            "priority_weight": weight,
        },
    }
