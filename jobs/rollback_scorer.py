"""Let the earlier model that LAKEREC_ROLLBACK_TO names serve again from the window's last day on."""

from __future__ import annotations

import os
from typing import Any

from lakerec import models
from lakerec.errors import UsageError
from lakerec.job import Job, main
from lakerec.scorer.registry import mirrored, register, set_champion


def run(job: Job) -> dict[str, Any]:
    """Append the version to ml.promotions unless it serves that day already; then the registry."""
    version = os.environ.get("LAKEREC_ROLLBACK_TO", "")
    if not version:
        raise UsageError("LAKEREC_ROLLBACK_TO names no version: give one of ml.promotions")
    told = models.roll_back(job.lake, version, job.last_day, os.environ.get("USER") or "an operator")
    uri = models.tracking_uri(job.lake)
    with mirrored(job.say):
        register(uri, version, models.folder(job.lake, version), {}, {"rollback": told})
        set_champion(uri, version)
    return {"version": version, "from": job.last_day, "rollback": told}


if __name__ == "__main__":
    main(run, ahead="mlflow")
