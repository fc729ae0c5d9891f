"""
# Recommendations of the day

Every morning at 04:00 (the configuration's timezone) for the day that ended: lands its files, judges
them, writes each user's list and publishes the lists to PostgreSQL. Twice gives the same, so any day may
be rebuilt.

**When it is red**, open the log of the red task: its last lines say what, where and what to do. While it
is red, the site serves the lists of the last good day.

- *ingest_events, ingest_catalogue*: is the day's file there, whole, with the required columns? Deliver
  it.
- *conform_events, conform_catalogue*: which rule broke, in `quarantine.events` and `ops.dq_results` of
  that day? Correct the source or the rule. Until then the table stays as it was, and the days that follow
  go on without this day's rows.
- *build_sequences, embed_items*: memory and disk of the machine.
- *score_candidates*: is a model promoted (`ml.promotions`)? Run scorer_nightly, or `lakerec rollback`.
- *publish_recommendations*: does PostgreSQL answer? Skipped means that the site has lists of a later day:
  nothing is to be done.

Then clear the red task: it runs again, with all after it. Exit codes 10 to 19 were not retried, because
the same input fails again; everything else was tried three times. *LakeBusyError* names the run that
holds the lake.

**Days at once**: a day's lists wait until those of earlier days that are on their way are written, so that
`airflow backfill` with several runs at a time gives the lists of one day after another. What it rebuilds
starts no training: *features_ready* tells scorer_nightly of the scheduled day alone.

**Rebuild a day**: trigger with *Day to rebuild*, or `scripts/trigger.sh reco_daily --day 2024-03-01`.
**Many days**: reco_backfill.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, task, timezone
from airflow.sdk.exceptions import AirflowSkipException

from common.defaults import DAY_PARAM, TIMEZONE, TODAY, WARM, settings
from common.flow import FEATURES
from common.operators import LakerecJob
from common.rules import trains, window


@task(outlets=[FEATURES])
def features_ready(params: dict[str, Any], dag_run: Any = None, outlet_events: Any = None) -> None:
    """Tell scorer_nightly of the day, if it is on schedule and the last that ended: a rebuilt day trains nothing."""
    day, end = window(dag_run, params, TIMEZONE)
    if not trains(dag_run, end, timezone.utcnow(), TIMEZONE):
        raise AirflowSkipException("A day that is rebuilt starts no training.")
    outlet_events[FEATURES].add_partitions(day)


with DAG(
    "reco_daily",
    **settings(__doc__, "0 4 * * *", hours=3, weight=TODAY),
    params={"day": DAY_PARAM},
    tags=["lakerec", "daily"],
    max_active_runs=3,  # the lake has one slot anyway; two late days may wait beside today
):
    ingest = [LakerecJob(task_id="ingest_events", **WARM), LakerecJob(task_id="ingest_catalogue", **WARM)]
    features = (
        ingest
        >> LakerecJob(task_id="conform_events", **WARM)
        >> LakerecJob(task_id="conform_catalogue", **WARM)
        >> LakerecJob(task_id="build_sequences", **WARM)
        >> LakerecJob(task_id="embed_items", **WARM)
    )
    features >> features_ready()
    (
        features
        >> LakerecJob(task_id="score_candidates", in_order=True, **WARM)
        >> LakerecJob(task_id="publish_recommendations", **WARM)
    )
