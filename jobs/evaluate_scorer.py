"""Compare challenger, champion, all sources and their blend on the test cut of the last day, on the same users."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lakerec import models
from lakerec.collect import collect, groups_of_users
from lakerec.errors import ModelError
from lakerec.gate import HAS_SEEN, UNREADABLE
from lakerec.job import Job, main
from lakerec.protocols import GlobalTime
from lakerec.session import driver_cores
from lakerec.show import figures
from lakerec.world import day_number
from train_scorer import examples, inputs


def run(job: Job) -> dict[str, Any]:
    """Write every metric, slice and paired comparison to gold.model_metrics, with protocol and data version."""
    snapshot = models.snapshot_of(job.lake, job.last_day)
    version = models.version_of(snapshot, job.last_day, job.config)
    rows = examples(job, snapshot)
    test = rows[rows["split"] == "test"]
    cut, horizon = day_number(test["cut_date"].iloc[0]), job.config.scorer.training.horizon_days
    # A cut's day is the last that is known; a protocol's is the first of the targets.
    protocol = GlobalTime(cut + 1.0, float(horizon), repeats=not job.config.policy.filter_types).name
    found = _rows(job, snapshot, version, test)
    named = [row | {"protocol": protocol, "data": snapshot} for row in found]
    with job.lake.lease():
        job.lake.replace_rows("gold.model_metrics", named, f"data = '{snapshot}'")
        job.lake.record([job.run.row("ok", {"read": len(test), "written": len(named), "version": version})])
    job.say("\n" + figures(named))
    return {"version": version, "users": len(test)}


def _rows(job: Job, snapshot: str, version: str, test: Any) -> list[dict[str, Any]]:
    from lakerec.scorer import evaluation
    from lakerec.scorer.bundle import Bundle

    groups = groups_of_users(
        job.lake, job.config.scorer.training.slices, test["cut_date"].iloc[0], inputs(job, snapshot)
    )
    challenger = _judged(job, snapshot, version, test, groups)
    (cut, sheet), (mine, *rest), recommender, recipe = challenger
    alone = evaluation.sources(cut, recommender, recipe.blend)
    rivals = [(rival, True) for rival in rest] + [(source, False) for source in alone]
    rows = sheet.rows(mine) + [row for rival, slices in rivals for row in sheet.rows(rival, slices)] + sheet.union(mine)
    rows += sheet.faults(version, alone) + sheet.language_model(version, recipe.report.get("language_model"))
    rows += [row for rival, slices in rivals for row in sheet.paired(mine, rival, slices)]
    champion = models.serving(job.lake, job.last_day)
    if champion is None or champion.version == version:
        return rows
    try:
        if Bundle.open(models.folder(job.lake, champion.version)).recipe.has_seen("evaluated", cut.day):
            job.say(f"the champion {champion.version} has learned from targets of this test: it is not compared")
            return [*rows, sheet.flat(champion.version, HAS_SEEN, 1.0)]
        (_, their_sheet), (theirs, *_), *_ = _judged(job, snapshot, champion.version, test, groups)
        return rows + their_sheet.rows(theirs) + sheet.paired(mine, theirs, slices=True)
    except ModelError as error:
        job.say(f"the champion {champion.version} cannot be read: {error}")
        return [*rows, sheet.flat(champion.version, UNREADABLE, 1.0)]


def _judged(job: Job, snapshot: str, version: str, test: Any, groups: Mapping[str, Mapping[str, str]]) -> Any:
    """A version on the test cut, in its own order of the catalogue, with its recipe."""
    from lakerec.scorer import evaluation
    from lakerec.scorer.base_model import model_id
    from lakerec.scorer.bundle import Bundle
    from lakerec.scorer.nightly import cuts_of
    from lakerec.scorer.prediction import Predictor

    folder = models.folder(job.lake, version)
    opened = Bundle.open(folder)
    opened.check_text_model(model_id(job.config.scorer.model))
    predictor = Predictor.load(folder, driver_cores(job.config))
    pinned, kinds = inputs(job, snapshot), opened.recipe.kinds
    world = collect(job.lake, job.config, job.last_day, opened.items, opened.nodes, pinned, kinds)
    (cut,) = cuts_of(world, test)
    recommender = evaluation.recommender_at(world, cut, opened)
    size, k, seed = job.config.slate_size, job.config.policy.k, job.config.scorer.training.seed
    judged = evaluation.model(world, cut, version, recommender, predictor, opened, size, k)
    sheet = evaluation.Sheet(world, cut, recommender.stage.shelf, seed, groups)
    return (cut, sheet), judged, recommender, opened.recipe


if __name__ == "__main__":
    main(run, ahead="lakerec.scorer.evaluation")
