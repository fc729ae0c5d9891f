"""
# Rebuild many days

By hand only: trigger it with `start`, `end` (excluded) and `chunk_days`. It rebuilds the tables from
bronze to sequences chunk by chunk, oldest first, and then writes and publishes the lists of the last day,
once. The result does not depend on the size of the chunks: as large as memory and disk allow, each costs a
minute or two before it has read a row.

    scripts/trigger.sh reco_backfill --conf '{"start": "2024-01-01", "end": "2024-04-01", "chunk_days": 30}'

**When it is red**

- *plan_chunks*: the log says which date is wrong, or that `chunk_days` make too many chunks. Trigger again with the
  right ones.
- *A task of a chunk*: its log, as in reco_daily; the number in brackets is the chunk. Repair the cause,
  clear the task: only this chunk runs again. The other chunks go on meanwhile.
- *score_candidates*: as in reco_daily.
- *publish_recommendations*: skipped means that the site has lists of a later day. The history is rebuilt, the
  site keeps its lists, and nothing is to be done. Red: does PostgreSQL answer?

A run that was stopped goes on where it was: clear what failed; chunks that are green stay. No training starts
for days of the past.

It shares the lake's one slot with reco_daily, scorer_nightly and scorer_rollback, which come first: a task of theirs
waits for one task of this DAG at the most. Smaller chunks let the day through sooner.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.sdk import DAG, Param, task, task_group
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowFailException

from common.defaults import TIMEZONE, WARM, settings
from common.operators import LakerecJob
from common.rules import begun, chunks

CHUNK = {**WARM, "max_active_tis_per_dagrun": 1}


@task
def plan_chunks(params: dict[str, Any]) -> list[dict[str, str]]:
    """The chunks, oldest first; wrong dates, or more chunks than Airflow takes, fail at once."""
    try:
        begun(params["end"], datetime.now(UTC), TIMEZONE)
        most = conf.getint("core", "max_map_length", fallback=1024)
        return [{"start": a, "end": b} for a, b in chunks(params["start"], params["end"], params["chunk_days"], most)]
    except ValueError as error:
        raise AirflowFailException(f"{error}. Trigger the DAG again with what is right.") from error


@task_group(prefix_group_id=False)
def chunk(start: str, end: str) -> None:
    """The window jobs of one chunk, one after another."""
    days = {"start": start, "end": end}
    (
        [
            LakerecJob(task_id="ingest_events", **days, **CHUNK),
            LakerecJob(task_id="ingest_catalogue", **days, **CHUNK),
        ]
        >> LakerecJob(task_id="conform_events", **days, **CHUNK)
        >> LakerecJob(task_id="conform_catalogue", **days, **CHUNK)
        >> LakerecJob(task_id="build_sequences", **days, **CHUNK)
        >> LakerecJob(task_id="embed_items", **days, **CHUNK)
    )


with DAG(
    "reco_backfill",
    **settings(__doc__, None, hours=24),
    params={
        "start": Param(type="string", format="date", description="the first day"),
        "end": Param(type="string", format="date", description="the day after the last one"),
        "chunk_days": Param(
            366, type="integer", minimum=1, description="days in one window; fewer need less memory and disk"
        ),
    },
    tags=["lakerec", "by hand"],
    max_active_runs=1,
):
    days = {"start": "{{ params.start }}", "end": "{{ params.end }}"}
    last_day = {"start": "{{ macros.ds_add(params.end, -1) }}", "end": "{{ params.end }}"}
    (
        chunk.expand_kwargs(plan_chunks())
        >> LakerecJob(task_id="score_candidates", **days, **WARM)
        >> LakerecJob(task_id="publish_recommendations", **last_day, **WARM)
    )
