"""Are the events and the lists of the window's last day there, for everybody, and served? Changes nothing."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from lakerec import freshness, serving
from lakerec.job import Job, main
from lakerec.tables import sql_text


def run(job: Job) -> dict[str, Any]:
    """Raise StaleListsError with all that is wrong; else the figures that were looked at."""
    lists = job.lake.read("gold.recommendations")
    latest = job.spark.sql(sql_text("views", "recommendations_latest"), recommendations=lists)
    with serving.target(job.config) as uri:
        site, published = serving.served(uri), serving.last_publications(uri)
    missed = freshness.missed(job.lake.read("ops.runs"), job.last_day)
    found = freshness.state(job.lake.newest_day("bronze.events"), lists, latest, site, published, missed)
    today = datetime.now(job.config.zone).date()
    freshness.refuse(freshness.faults(found, job.last_day, job.config.freshness, today), job.last_day)
    return vars(found)


if __name__ == "__main__":
    main(run)
