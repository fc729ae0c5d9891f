"""
# The scorer of the night

Every day, when reco_daily has the day's sequences and item vectors (the asset `features`; its partition is
the day): takes a training snapshot of what was known by the end of the day, trains candidate sources,
retriever, final ranker and the language model's correction on the GPU, compares the whole with the model in
service and promotes it if it passes the gate.
A night without a promotion is a normal night: the old model serves on. Why is in the log of promote_scorer,
in `ops.runs` (status `rejected`) and in MLflow (tag `gate` of the version).

**When it is red**

- *build_patterns*: too few users is a line in the log, no error.
- *build_examples*: exit code 14 means too few events before the cut. Is reco_daily green? Repair it
  first.
- *train_scorer*: the memory of the GPU, and the run in MLflow. A smaller batch in the configuration
  helps.
- *evaluate_scorer*: `gold.model_metrics` of the version, and the log.
- *promote_scorer*: the log. A model that is worse than the old one, or broken, is refused and not an
  error. Exit code 14: the model in service was not evaluated on this snapshot; clear evaluate_scorer.

Then clear the red task. Red here never stops the lists. **Undo a promotion**: scorer_rollback, or
`lakerec rollback`.

A day that is rebuilt, by hand or by a backfill, trains nothing.

**As of another day**: trigger with *Day to rebuild*, or `scripts/trigger.sh scorer_nightly --day
2024-03-01`.
"""

from __future__ import annotations

from airflow.sdk import DAG, PartitionedAssetTimetable

from common.defaults import DAY_PARAM, GPU, LAKE, TONIGHT, settings
from common.flow import FEATURES
from common.operators import LakerecJob

with DAG(
    "scorer_nightly",
    **settings(__doc__, PartitionedAssetTimetable(assets=FEATURES), hours=8, weight=TONIGHT),
    params={"day": DAY_PARAM},
    tags=["lakerec", "daily", "gpu"],
    max_active_runs=1,  # promotions go in the order of days
):
    (
        LakerecJob(task_id="build_patterns", **LAKE)
        >> LakerecJob(task_id="build_examples", **LAKE)
        >> LakerecJob(task_id="train_scorer", **GPU)
        >> LakerecJob(task_id="evaluate_scorer", **GPU)
        >> LakerecJob(task_id="promote_scorer", **LAKE)
    )
