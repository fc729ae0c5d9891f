"""
# Maintenance of the lake

Every Sunday at 12:00 (the configuration's timezone). It takes the lake's lease for one table at a time and
no slot of the pool, so reco_daily may run beside it and waits for seconds.

- *maintain_lake*: removes the days past `retention`, merges small files, removes the files and commits that
  `maintenance` does not keep, and models that never served; its log ends with the size of every table and
  the seconds of every job.
- *audit_lake*: checks whole tables: keys, counts, lists, histories; `ops.dq_results` has every outcome. It
  comes behind the upkeep, whatever became of that.

**When it is red**, open the log of the red task. *maintain_lake* names the table: look at memory and disk of
the machine. *audit_lake* names the table, the rule that is broken and its first rows: rebuild the days that
are named. Then clear the task. Red here never stops the lists; weeks without upkeep make every job slower
and the disk fuller.

**Run it now**: trigger it, or `scripts/trigger.sh lake_maintenance`.
"""

from __future__ import annotations

from airflow.sdk import DAG, task

from common.defaults import settings
from common.operators import LakerecJob


@task(retries=0)
def both_done() -> None:
    """Red where the upkeep or the audit is, whose end alone would make the run green."""


with DAG("lake_maintenance", **settings(__doc__, "0 12 * * 0", hours=6), tags=["lakerec", "weekly"], max_active_runs=1):
    upkeep = LakerecJob(task_id="maintain_lake")
    audit = LakerecJob(task_id="audit_lake", trigger_rule="all_done")  # a lake without upkeep is audited, too
    upkeep >> audit
    [upkeep, audit] >> both_done()
