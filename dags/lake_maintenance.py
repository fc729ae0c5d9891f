"""
# Maintenance of the lake

Every Sunday at 12:00 (the configuration's timezone): compacts small files and removes the files
of versions older than a week. It holds the lake's one slot, so reco_daily waits.

**When it is red**, the log names the table: look at memory and disk of the machine, then clear the task.
Red here never stops the lists; weeks of red make every job slower and the disk fuller.

**Run it now**: trigger it, or `scripts/trigger.sh lake_maintenance`.
"""

from __future__ import annotations

from airflow.sdk import DAG

from common.defaults import LAKE, settings
from common.operators import LakerecJob

with DAG("lake_maintenance", **settings(__doc__, "0 12 * * 0", hours=6), tags=["lakerec", "weekly"], max_active_runs=1):
    LakerecJob(task_id="maintain_lake", **LAKE)
