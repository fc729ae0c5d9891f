"""Let the challenger serve from the window's last day on, if it passes the gate."""

from __future__ import annotations

from math import isfinite
from typing import Any

from pyspark.sql import Row
from pyspark.sql import functions as F

from lakerec import gate, models
from lakerec.errors import StaleRunError
from lakerec.job import Job, main
from lakerec.scorer.registry import mirrored, register, set_champion


def run(job: Job) -> dict[str, Any]:
    """Judge the challenger by gold.model_metrics and append it to ml.promotions if it passes; then the registry.

    A refusal is no error: an ops.runs row `rejected` with the reason, which the registry's tag `gate` repeats.
    """
    snapshot = models.snapshot_of(job.lake, job.last_day)
    version = models.version_of(snapshot, job.last_day, job.config)
    log = models.promotions(job.lake)
    champion = models.serving_on(log, job.last_day)
    already = champion is not None and champion.version == version
    figures = _figures(job, snapshot)
    verdict = gate.Verdict("serves already") if already else _verdict(job, figures, version, log)
    counts = {"version": version, "champion": champion.version if champion else "none", "gate": verdict.told}
    with job.lake.lease():
        if verdict.passed and not already:
            _promote(job, version, verdict.told)
        failed = {"failed": ", ".join(failure.rule for failure in verdict.failures)} if verdict.failures else {}
        job.lake.record([job.run.row("ok" if verdict.passed else "rejected", counts | failed)])
    _mirror(job, version, figures, champion.reason if champion and already else verdict.told)
    return counts | {"promoted": verdict.passed}


def _verdict(job: Job, figures: gate.Figures, version: str, log: list[Row]) -> gate.Verdict:
    """What the gate says; a version that somebody has rolled back from comes back by hand only."""
    champion = models.serving_on(log, job.last_day)
    if told := models.withdrawn(log, version, job.last_day):
        return gate.Verdict("", (gate.Failure("not withdrawn", f"it served before and was {told}"),))
    return gate.judge(figures, version, champion.version if champion else None, job.config.promotion)


def _promote(job: Job, version: str, told: str) -> None:
    """Append to ml.promotions what was judged against the log as it still is; raises StaleRunError, ModelError."""
    if job.lake.version("ml.promotions") != job.run.inputs.get("ml.promotions"):
        raise StaleRunError(
            "ml.promotions has changed since the gate read it; nothing was promoted. Run the job again."
        )
    models.check_artefact(models.folder(job.lake, version))
    models.promote(job.lake, version, job.last_day, told)


def _mirror(job: Job, version: str, figures: gate.Figures, told: str) -> None:
    """The registry behind the commit, and again where a run died in between; its alias mirrors the newest entry."""
    uri = models.tracking_uri(job.lake)
    figure = figures.get((version, gate.ALL, gate.METRIC))
    known = {gate.METRIC: figure.value} if figure and isfinite(figure.value) else {}
    with mirrored(job.say):
        register(uri, version, models.folder(job.lake, version), known, {"gate": told})
        if models.newest(job.lake) == version:
            set_champion(uri, version)


def _figures(job: Job, snapshot: str) -> gate.Figures:
    return gate.figures(job.lake.read("gold.model_metrics").where(F.col("data") == snapshot).collect())


if __name__ == "__main__":
    main(run, ahead="mlflow")
