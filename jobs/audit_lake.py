"""Audits of whole tables: keys, and the rules of sql/audits; red where one that may not be broken is."""

from __future__ import annotations

from typing import Any

from lakerec import audits
from lakerec.job import Job, main
from lakerec.tables import table_names


def run(job: Job) -> dict[str, Any]:
    """Audit one state of the lake, outside the lease; outcomes to ops.dq_results; DataQualityError where one failed."""
    with job.lake.lease():
        job.lake.pin(table_names())
    findings = [audits.found(audit) for audit in audits.audits(job.lake, job.window.end)]
    failed = [finding for finding in findings if finding.failed]
    counts = {"audits": len(findings), "failed": len(failed), "broken": sum(finding.broken > 0 for finding in findings)}
    with job.lake.lease():
        job.lake.append_rows("ops.dq_results", [finding.row(job.run.run_id) for finding in findings])
        job.lake.record([job.run.row("rejected" if failed else "ok", counts)])
    for finding in findings:
        if finding.broken:
            job.say(finding.line())
    audits.refuse(failed, job.run.run_id)
    return counts


if __name__ == "__main__":
    main(run)
