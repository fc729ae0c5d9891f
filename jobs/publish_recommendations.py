"""Publish the latest list of every user, as of the window's last day, to PostgreSQL."""

from __future__ import annotations

from typing import Any

from pyspark import StorageLevel
from pyspark.sql import functions as F

from lakerec import serving
from lakerec.errors import NotEnoughDataError
from lakerec.job import Job, main
from lakerec.session import streamed
from lakerec.tables import sql_text


def run(job: Job) -> dict[str, Any]:
    """One transaction makes the lists visible; their number is compared with gold, their users with those served."""
    with job.lake.lease(), serving.target(job.config) as uri:
        lists = job.lake.read("gold.recommendations")
        known = lists.where(F.col("as_of_date") <= F.lit(job.last_day))
        latest = job.spark.sql(sql_text("views", "recommendations_latest"), recommendations=known)
        # Counted, then read partition by partition: without it every list of every day would be read anew for each.
        latest = latest.select(*serving.Recommendation._fields).persist(StorageLevel.MEMORY_AND_DISK)
        try:
            expected = latest.count()
            if not expected:
                raise NotEnoughDataError(f"gold.recommendations has no list up to {job.last_day}: run score_candidates")
            share = job.config.freshness.min_share
            published = serving.publish(uri, map(tuple, streamed(latest)), job.last_day, expected, share)
        finally:
            latest.unpersist()
        counts = {"read": expected, "written": published.written, "deleted": published.deleted}
        job.lake.record([job.run.row("ok", counts)])
    return counts | {"served": published.rows}


if __name__ == "__main__":
    main(run)
