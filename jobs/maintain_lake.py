"""Upkeep: retention, compaction, vacuum, logs, models that never served; then how large the lake is."""

from __future__ import annotations

import time
from datetime import date
from typing import Any

from pyspark.sql import functions as F

from lakerec import models, sizes, upkeep
from lakerec.batch import KEPT_DAYS
from lakerec.job import Job, main
from lakerec.lake import POLL, Window
from lakerec.sources import BEGINNING
from lakerec.tables import table_names

EXAMPLES = "ml.examples"


def run(job: Job) -> dict[str, Any]:
    """Each table under a lease of its own, so that a day beside it waits for seconds only; what was done."""
    names = [name for name in table_names() if job.lake.exists(name)]
    counts = {"tables": len(names), "rows_expired": 0, "files_merged": 0}
    measured = []
    for name in names:
        with job.lake.lease():
            job.run.forget_reads()  # a table's upkeep follows from that table as it is now, not as it was an hour ago
            counts["rows_expired"] += _expire(job, name)
            counts["files_merged"] += job.lake.tidy(name, job.config.maintenance)
            measured.append(sizes.of_table(job.lake, name, job.last_day))
        time.sleep(2 * POLL)  # whoever waits tries once a POLL: the lake is theirs before the next table
    counts["models_removed"] = _forget(job)
    measured += [sizes.of_folder(job.lake, name, job.last_day) for name in sizes.FOLDERS]
    with job.lake.lease():
        job.lake.replace_rows(sizes.SIZES, measured, f"as_of_date = '{job.last_day}'")
        job.lake.record([job.run.row("ok", counts)])
    sizes.print_report(job.lake)
    return counts


def _expire(job: Job, name: str) -> int:
    """Remove the rows of days past the table's retention, but for what must stay; how many."""
    before = upkeep.kept_from(job.config, name, job.window.end)
    if before == BEGINNING:
        return 0
    if name == EXAMPLES:
        return _expire_examples(job, before)
    rule, rows = upkeep.RULES[name], job.lake.read(name)
    going = upkeep.going(rows, rule, before)
    if going:
        days = Window(min(going), before)  # no earlier one: a restore reads off the commit which days have changed
        job.lake.replace(name, upkeep.staying(rows, rule, before).where(days.where(rule.day)), days)
    return sum(going.values())


def _expire_examples(job: Job, before: date) -> int:
    """The examples of superseded training snapshots, whose manifests stay, and of those that were built anew."""
    snapshots, examples = job.lake.read("ml.snapshots"), job.lake.read(EXAMPLES)
    gone = [*upkeep.superseded(snapshots, before), *upkeep.without_manifest(examples, snapshots, before)]
    rows = examples.where(F.col("snapshot_id").isin(gone))
    expired = rows.count()
    if expired:
        job.lake.replace(EXAMPLES, rows.limit(0), where=f"snapshot_id IN ({', '.join(map(repr, gone))})")
    return expired


def _forget(job: Job) -> int:
    """Remove models that never served, and what scorings left that nobody took up; how many models."""
    folder, days = job.lake.local_folder, job.config.maintenance.models_days
    with job.lake.lease():
        idle = upkeep.idle(folder(models.FOLDER), days, models.needed(job.lake, job.config))
        if idle:
            from lakerec.scorer.registry import forget, mirrored

            with mirrored(job.say):
                forget(models.tracking_uri(job.lake), [place.name for place in idle])
        upkeep.remove([*idle, *upkeep.idle(folder("_scoring"), KEPT_DAYS)])
    return len(idle)


if __name__ == "__main__":
    main(run)
