"""Compare challenger, champion and baselines on the test slates of the window's last day, on the same users."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lakerec import metrics, models
from lakerec.candidates import FEATURES, SOURCES
from lakerec.job import Job, main
from lakerec.scorer.slates import Slate
from lakerec.scoring import slates_from_frame
from train_scorer import slates

DEPTHS = (5, 10, 20)


def run(job: Job) -> dict[str, Any]:
    """Write HR, NDCG, MRR and recall at each depth, AUC, log-loss and calibration to gold.model_metrics."""
    snapshot = models.snapshot_of(job.lake, job.last_day)
    version = models.version_of(snapshot, job.last_day, job.config)
    frame = slates(job, snapshot, ("test",))
    test = slates_from_frame(frame)
    protocol = f"global_time cut={frame['cut_date'].iloc[0]} horizon={job.config.scorer.training.horizon_days}d"
    scored = {**_baselines(test), **_models(job, version, test)}
    rows = [row for name, scores in scored.items() for row in _rows(job, name, scores, test)]
    named = [row | {"protocol": protocol, "data": snapshot} for row in rows]
    with job.lake.lease():
        job.lake.replace_rows("gold.model_metrics", named, f"data = '{snapshot}'")
        job.lake.record([job.run.row("ok", {"read": len(test), "written": len(named), "version": version})])
    job.say("\n" + table(named))
    return {"version": version, "users": len(test)}


def _baselines(test: Sequence[Slate]) -> dict[str, list[Any]]:
    """Each candidate source alone, on the same slates."""
    places = {source: FEATURES.index(f"{source}_score") for source in SOURCES}
    return {name: [slate.features[:, place] for slate in test] for name, place in places.items()}


def _models(job: Job, version: str, test: Sequence[Slate]) -> dict[str, list[Any]]:
    """The challenger, its features without the language model, and the champion where it is another one."""
    from lakerec.scorer.prediction import Predictor

    champion = models.serving(job.lake, job.last_day)
    names = [version] + ([champion.version] if champion and champion.version != version else [])
    threads = job.spark.sparkContext.defaultParallelism
    found: dict[str, list[Any]] = {}
    for name in names:
        predictor = Predictor.load(models.folder(job.lake, name), threads)
        found[name] = predictor.score(test)
        if name == version:
            found["features only"] = predictor.prior(test)
    return found


def _rows(job: Job, name: str, scores: list[Any], test: Sequence[Slate]) -> list[dict[str, Any]]:
    """One row of gold.model_metrics per metric; baselines have no probabilities, so no log-loss."""
    labels = [slate.labels for slate in test]
    found = metrics.evaluate(scores, labels, [slate.targets for slate in test], DEPTHS)  # type: ignore[arg-type]
    seed = job.config.scorer.training.seed
    rows = []
    for metric, values in found.items():
        low, high = metrics.bootstrap_interval(values, seed)
        rows.append(_row(name, metric, float(np.nanmean(values)), low, high, int((~np.isnan(values)).sum()), seed))
    if name not in SOURCES:
        flat = np.concatenate(scores)
        truth: Any = np.concatenate([label for label in labels if label is not None])
        loss, error = float(metrics.log_loss(flat, truth).mean()), metrics.calibration_error(flat, truth)
        rows += [_row(name, m, v, v, v, len(test), seed) for m, v in (("logloss", loss), ("ece", error))]
    return rows


def _row(name: str, metric: str, value: float, low: float, high: float, users: int, seed: int) -> dict[str, Any]:
    figures = {"value": value, "low": low, "high": high, "users": users, "seed": seed}
    return {"version": name, "slice": "all", "metric": metric, **figures}


def table(rows: list[dict[str, Any]], shown: tuple[str, ...] = ("hr@10", "ndcg@10", "mrr@10", "auc", "logloss")) -> str:
    """The figures as a text table, a line per model."""
    names = list(dict.fromkeys(row["version"] for row in rows))
    cells = {(row["version"], row["metric"]): f"{row['value']:.4f}" for row in rows}
    lines = [f"{'':34s}" + "".join(f"{metric:>10s}" for metric in shown)]
    lines += [f"{name:34s}" + "".join(f"{cells.get((name, m), '-'):>10s}" for m in shown) for name in names]
    return "\n".join(lines)


if __name__ == "__main__":
    main(run, ahead="lakerec.scorer.prediction")
