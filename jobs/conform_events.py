"""Judge landed rows: quarantine, gate, and silver.events for every day the window touches."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lakerec import events, quality
from lakerec.job import Job, main
from lakerec.lake import Window
from lakerec.privacy import user_key

TABLE = "silver.events"
DAYS_PER_CORE = 10


def run(job: Job) -> dict[str, Any]:
    """Rewrite event days [start - late_days, end) from what landed in [start - late_days, end + late_days)."""
    with job.lake.lease():
        job.lake.complete(TABLE)
        rows = _resolved(job).persist(StorageLevel.MEMORY_AND_DISK)
        try:
            return _commit(job, rows)
        finally:
            rows.unpersist()


def _resolved(job: Job) -> DataFrame:
    late = timedelta(days=job.config.late_days)
    landed = Window(job.window.start - late, job.window.end + late)
    bronze = job.lake.read("bronze.events").where(landed.where("ingest_date"))
    mapped = events.mapped(bronze, job.config)
    if job.config.privacy.pseudonymise:
        mapped = mapped.withColumn("user_id", events.pseudonym(F.col("user_id"), user_key(job.config)))
    rules = quality.load_suite(TABLE).rows
    judged = events.with_judgement(mapped, rules, job.config, job.lake.read("ops.tombstones"))
    if _many_days(job):
        judged = judged.repartition("event_date")
    minutes = job.config.sessions.inactivity_minutes
    return events.resolved(judged, job.window, job.config.late_days, minutes)


def _many_days(job: Job) -> bool:
    """Whether there are days enough for every core: then one shuffle by day serves identity, visits and write."""
    return job.window.days > DAYS_PER_CORE * job.spark.sparkContext.defaultParallelism


def _commit(job: Job, rows: DataFrame) -> dict[str, Any]:
    days = events.daily_counts(rows, job.window).orderBy("ingest_date").toPandas()
    written = rows.where(F.col("fate") == "written")
    outcomes = _row_rules(job, rows, days) + _expectations(job, written, days)
    job.lake.append_rows("ops.dq_results", [o.row(job.run.run_id, TABLE) for o in outcomes])
    bad = rows.where(F.col("fate") == "quarantined")
    bad = bad.select("ingest_date", "source_file", "row_number", "payload", "failed_rules", "severity")
    job.lake.replace("quarantine.events", bad, job.window)
    failures = [o.told(days) for o in outcomes if o.severity == "batch" and not o.success]
    if failures:
        job.lake.record(_ledger(job, days, "rejected"))
        quality.refuse(TABLE, failures, job.lake.version(TABLE))
    touched = Window(job.window.start - timedelta(days=job.config.late_days), job.window.end)
    columns = ("event_date", *events.EVENT_COLUMNS, "session_id", "ingest_date")
    kept = written.select(*columns)
    job.lake.replace(TABLE, kept if _many_days(job) else kept.hint("rebalance", "event_date"), touched)
    job.lake.record(_ledger(job, days, "ok"))
    return {name: int(days[name].sum()) for name in ("read", "written", "duplicate", "quarantined", "bad")}


def _row_rules(job: Job, rows: DataFrame, days: pd.DataFrame) -> list[quality.Outcome]:
    own = {name: rule.severity for name, rule in job.config.sources.events.rules.items()}
    severities = {rule.name: rule.severity for rule in quality.load_suite(TABLE).rows} | own
    return quality.row_outcomes(severities, events.broken_rules(rows, job.window).collect(), days)


def _expectations(job: Job, written: DataFrame, days: pd.DataFrame) -> list[quality.Outcome]:
    """Run both suites of Great Expectations; each failing ingest day is an outcome of its own."""
    suite = quality.load_suite(TABLE)
    docs = quality.DataDocs(job.lake.local_folder("_dq"))
    gate = {"expect": "ExpectColumnValuesToBeBetween", "column": "bad_share", "max_value": job.config.gate.max_bad}
    by_day = docs.validate(f"{TABLE} days", days, (*suite.days, gate))
    mine = written.where(job.window.where("ingest_date"))
    by_batch = docs.validate(f"{TABLE} batch", mine, suite.batch)
    job.say(f"Data Docs: {Path(docs.build())}")
    return [o for r in by_day for o in quality.day_outcomes(r, days)] + [quality.Outcome.of_batch(r) for r in by_batch]


def _ledger(job: Job, days: pd.DataFrame, status: str) -> list[dict[str, Any]]:
    names = ("read", "written", "duplicate", "quarantined", "bad")
    rows = [(row["ingest_date"], {n: int(row[n]) for n in names}) for _, row in days.iterrows()]
    return [job.run.row(status, counts, day) for day, counts in rows] or [job.run.row(status, {"read": 0})]


if __name__ == "__main__":
    main(run, ahead="great_expectations")
