"""Upkeep: compact small files and remove those no version of the last week needs."""

from __future__ import annotations

from typing import Any

from lakerec.job import Job, main
from lakerec.tables import table_names


def run(job: Job) -> dict[str, Any]:
    """OPTIMIZE and VACUUM every table under the lease: both conflict with a day being replaced."""
    with job.lake.lease():
        done = {name: job.lake.tidy(name) for name in table_names() if job.lake.exists(name)}
        job.lake.record([job.run.row("ok", {"tables": len(done), "files_removed": sum(done.values())})])
    return {"tables": len(done), "files_compacted": sum(done.values())}


if __name__ == "__main__":
    main(run)
