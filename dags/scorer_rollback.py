"""
# Bring an earlier model back

By hand only: trigger it with `version` (of `ml.promotions`; its folder is in `_models`). The model serves
from *Day to rebuild* on; without a day from the day that ended last. The lists of that day are written
and published again by it. The log of what served when is appended to, never changed.

    scripts/trigger.sh scorer_rollback --conf '{"version": "20240229-1a2b3c4d-5e6f70", "day": "2024-03-01"}'

The version that was rolled back is not promoted again by a run of its own night. A new model of a later
night may be, if it passes the gate: pause scorer_nightly if that is not wanted.

**When it is red**

- *rollback_scorer*: exit code 13 means that the version has no artefact or a damaged one, exit code 16
  that the day lies before the newest lists or promotion; the log names the first day that goes. Nothing
  has changed: trigger again with another version or day.
- *score_candidates*: as in reco_daily.
- *publish_recommendations*: as in reco_daily.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param

from common.defaults import DAY_PARAM, LAKE, URGENT, settings
from common.operators import LakerecJob

with DAG(
    "scorer_rollback",
    **settings(__doc__, None, hours=3, weight=URGENT),
    params={
        "version": Param(type="string", pattern=r"^[\w.-]+$", description="the model version that serves again"),
        "day": DAY_PARAM,
    },
    tags=["lakerec", "by hand"],
    max_active_runs=1,
):
    rollback = LakerecJob(task_id="rollback_scorer", **LAKE)
    rollback.env_vars["LAKEREC_ROLLBACK_TO"] = "{{ params.version }}"  # a template field: rendered with the others
    (
        rollback
        >> LakerecJob(task_id="score_candidates", **LAKE)
        >> LakerecJob(task_id="publish_recommendations", **LAKE)
    )
