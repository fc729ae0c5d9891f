"""Where things are, when they run, and which days a run is about. Nothing here reads a file or a database."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from airflow.sdk import CronDataIntervalTimetable, Param
from airflow.sdk.timezone import datetime as aware

from common.rules import window

HOME = Path(os.environ.get("LAKEREC_HOME") or Path(__file__).resolve().parents[2])
STATE = Path(os.environ.get("LAKEREC_STATE") or HOME / ".lakerec")  # where `make up` keeps what it writes
TIMEZONE = os.environ.get("LAKEREC_TIMEZONE", "UTC")  # the same as the configuration's `timezone`

# Templates, rendered when a task starts: the YAML's path and the run's days, the end excluded.
CONFIG = "{{ var.value.lakerec_config }}"
START = "{{ window(dag_run, params)[0] }}"
END = "{{ window(dag_run, params)[1] }}"

SCHEDULED = os.environ.get("LAKEREC_SCHEDULES", "on") != "off"  # off: every run is triggered by hand

LAKE = {"pool": "lake"}  # one slot: jobs that hold the lake's lease wait here, not inside a JVM
GPU = {"pool": "gpu"}
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


def settings(doc: str | None, cron: str | None) -> dict[str, Any]:
    """What every DAG passes to DAG(); `cron` is local time; a run is about the time between two ticks."""
    return {
        "doc_md": doc,
        "schedule": CronDataIntervalTimetable(cron, timezone=TIMEZONE) if cron and SCHEDULED else None,
        "start_date": aware(2000, 1, 1),  # older than any data, so that `airflow backfill create` takes any day
        "catchup": False,
        "user_defined_macros": {"window": partial(window, timezone=TIMEZONE)},
        "render_template_as_native_obj": False,
        "default_args": {
            "owner": "lakerec",
            "retries": 2,
            "retry_delay": timedelta(minutes=2),
            "retry_exponential_backoff": 2,
            "max_retry_delay": timedelta(minutes=30),
            # Later steps first: the one slot of the lake finishes a day (or chunk) before it begins the next.
            "weight_rule": "upstream",
        },
    }
