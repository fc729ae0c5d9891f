"""Where things are, when they run, and which days a run is about. Nothing here reads a file or a database."""

from __future__ import annotations

import os
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from airflow.sdk import CronDataIntervalTimetable, Param
from airflow.sdk.timezone import datetime as aware

HOME = Path(os.environ.get("LAKEREC_HOME") or Path(__file__).resolve().parents[2])
TIMEZONE = os.environ.get("LAKEREC_TIMEZONE", "UTC")  # the same as the configuration's `timezone`

# Templates, rendered when a task starts: the YAML's path and the run's days, the end excluded.
CONFIG = "{{ var.value.lakerec_config }}"
START = "{{ window(dag_run, params)[0] }}"
END = "{{ window(dag_run, params)[1] }}"

LAKE = {"pool": "lake"}  # one slot: jobs that hold the lake's lease wait here, not inside a JVM
GPU = {"pool": "gpu"}
if os.environ.get("LAKEREC_GPU_QUEUE"):  # only executors with workers of their own (Celery) have queues
    GPU["queue"] = os.environ["LAKEREC_GPU_QUEUE"]

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
        "schedule": CronDataIntervalTimetable(cron, timezone=TIMEZONE) if cron else None,
        "start_date": aware(
            2000, 1, 1
        ),  # older than any data, so that `airflow backfill create` takes any day
        "catchup": False,
        "user_defined_macros": {"window": window},
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


def window(dag_run: Any, params: Any) -> tuple[str, str]:
    """The days [start, end) of a run: the asked day, else its data interval, else the day that ended last."""
    if params.get("day"):
        start = date.fromisoformat(params["day"])
        return start.isoformat(), (start + timedelta(days=1)).isoformat()
    end = local_day(dag_run.data_interval_end or dag_run.run_after)
    start = local_day(dag_run.data_interval_start) if dag_run.data_interval_start else end - timedelta(days=1)
    return start.isoformat(), end.isoformat()


def local_day(moment: datetime) -> date:
    """The day of a moment in the configuration's timezone; from 04:00 to 04:00 is the day it starts in."""
    return moment.astimezone(ZoneInfo(TIMEZONE)).date()


def chunks(start: str, end: str, days: int) -> list[tuple[str, str]]:
    """[start, end) cut into windows of at most `days` days, oldest first; ValueError says what is wrong."""
    first, last = date.fromisoformat(start), date.fromisoformat(end)
    if first >= last:
        raise ValueError(
            f"start ({start}) must be before end ({end}); the end is excluded: for one day, end is the next"
        )
    if days < 1:
        raise ValueError(f"chunk_days is {days}: it must be 1 or more")
    starts = [first + timedelta(days=n) for n in range(0, (last - first).days, days)]
    return [(one.isoformat(), min(one + timedelta(days=days), last).isoformat()) for one in starts]
