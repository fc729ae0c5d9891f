"""
# Are the lists fresh?

Every day at 07:00 (the configuration's timezone): are there lists of the day that ended, for everybody, and
are they those that the site serves? It reads and changes nothing, so it waits neither for a slot nor for the lease, and
has a driver of its own: a day that hangs does not hold it up.

**When it is red**, the last line of the log says what is old, empty or missing. Look at reco_daily: it is red or
late. The site serves the lists of the last good day. Clear the task when reco_daily is green again.

How old lists may be and how many users may be missing is `freshness` of the YAML.

**Run it now**: trigger it, or `scripts/trigger.sh freshness_check`.
"""

from __future__ import annotations

from airflow.sdk import DAG

from common.defaults import DAY_PARAM, settings
from common.operators import LakerecJob

with DAG(
    "freshness_check",
    **settings(__doc__, "0 7 * * *", hours=1),
    params={"day": DAY_PARAM},
    tags=["lakerec", "daily"],
    max_active_runs=1,
):
    LakerecJob(task_id="check_freshness")
