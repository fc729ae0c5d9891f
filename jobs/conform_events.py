"""Judge landed rows: quarantine, gate, and silver.events for every day the window touches."""

from __future__ import annotations

from datetime import date
from typing import Any

import pandas as pd
from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lakerec import events, mapping, quality
from lakerec.job import Job, main
from lakerec.lake import Window
from lakerec.privacy import user_key

TABLE = "silver.events"
COUNTS = ("read", "written", "duplicate", "quarantined", "bad")
DAYS_PER_CORE = 10


def run(job: Job) -> dict[str, Any]:
    """Rewrite event days [start - late_days, end) from what landed in [start - late_days, end + late_days)."""
    with job.lake.lease():
        job.lake.complete(TABLE)
        return _conform(job, job.window.wider(job.config.late_days))


def _conform(job: Job, touched: Window) -> dict[str, Any]:
    """Rewrite the event days `touched`, and those on which silver has rows of a neighbour that is refused by now."""
    landed = job.lake.read("bronze.events").where(touched.wider(0, job.config.late_days).where("ingest_date"))
    with mapping.told(job.config, {"events": landed}):
        key = user_key(job.config) if job.config.privacy.pseudonymise else None
        judged = events.judged(landed, job.config, job.lake.read("ops.tombstones"), key)
        refused = _refused(job, judged) if job.config.late_days else []
        wider = events.with_days_of(refused, job.lake.newest(TABLE), touched) if refused else touched
        if wider == touched:
            kept = judged.where(~F.col("ingest_date").isin(refused))
            kept = kept.repartition("event_date") if _many_days(job) else kept
            rows = events.resolved(kept, job.window, touched, job.config.sessions.inactivity_minutes)
            rows.persist(StorageLevel.MEMORY_AND_DISK)
            try:
                return _commit(job, rows, touched)
            finally:
                rows.unpersist()
    return _conform(job, wider)


def _refused(job: Job, judged: DataFrame) -> list[date]:
    """The neighbouring days that the gate refuses: their late rows wait until the day is delivered anew."""
    refused = events.refused_days(judged, job.window, job.config.gate.max_bad)
    found = sorted(row["ingest_date"] for row in refused.collect())
    if found:
        job.run.notes["days_left_out"] = ",".join(map(str, found))
        job.say(f"left out, because more than gate.max_bad of their rows are bad: {job.run.notes['days_left_out']}")
    return found


def _many_days(job: Job) -> bool:
    """Whether there are days enough for every core: then one shuffle by day serves identity, visits and write."""
    return job.window.days > DAYS_PER_CORE * job.spark.sparkContext.defaultParallelism


def _commit(job: Job, rows: DataFrame, touched: Window) -> dict[str, Any]:
    days = events.daily_counts(rows, job.window).orderBy("ingest_date").toPandas()
    written = rows.where(F.col("fate") == "written")
    broken = events.broken_rules(rows, job.window).collect()
    outcomes = quality.row_outcomes(events.severities(job.config), broken, days) + _expectations(job, written, days)
    job.lake.append_rows("ops.dq_results", [o.row(job.run.run_id, TABLE) for o in outcomes])
    bad = rows.where(F.col("fate") == "quarantined")
    bad = bad.select("ingest_date", "source_file", "row_number", "payload", "failed_rules", "severity")
    job.lake.replace("quarantine.events", bad, job.window)
    failures = [o.told(days) for o in outcomes if o.severity == "batch" and not o.success]
    job.run.owed = quality.by_day(days, COUNTS)
    if failures:
        job.lake.record(job.run.rows("rejected", job.run.owed))
        quality.refuse(TABLE, failures, job.lake.version(TABLE), quality.OF_EVENTS)
    kept = written.select("event_date", *events.EVENT_COLUMNS, "session_id", "ingest_date")
    job.lake.replace(TABLE, kept if _many_days(job) else kept.hint("rebalance", "event_date"), touched)
    job.lake.record(job.run.rows("ok", job.run.owed))
    return {name: int(days[name].sum()) for name in COUNTS}


def _expectations(job: Job, written: DataFrame, days: pd.DataFrame) -> list[quality.Outcome]:
    """Run both suites of Great Expectations; each failing ingest day is an outcome of its own."""
    suite = quality.load_suite(TABLE)
    docs = quality.DataDocs(job.lake.local_folder("_dq"))
    gate = {"expect": "ExpectColumnValuesToBeBetween", "column": "bad_share", "max_value": job.config.gate.max_bad}
    by_day = docs.validate(f"{TABLE} days", days, (*suite.days, gate))
    mine = quality.batch(written.where(job.window.where("ingest_date")), int(days["written"].sum()))
    by_batch = docs.validate(f"{TABLE} batch", mine, suite.batch)
    job.say(f"Data Docs: {docs.build()}")
    return [o for r in by_day for o in quality.day_outcomes(r, days)] + [quality.Outcome.of_batch(r) for r in by_batch]


if __name__ == "__main__":
    main(run, ahead="great_expectations")
