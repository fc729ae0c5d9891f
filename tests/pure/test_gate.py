"""The gate: which challengers pass, which rule stops the others, and what it says of them."""

from __future__ import annotations

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerec import gate
from lakerec.config import Promotion
from lakerec.errors import ContractError, NotEnoughDataError
from lakerec.slices import ONLY_TOLD

LIMITS = Promotion()
NEW, OLD = "new", "old"


def row(version: str, metric: str, value, part: str = "all", low=None, high=None, users: int = 1000) -> dict:
    """A row of gold.model_metrics."""
    figure = {"value": value, "low": value if low is None else low, "high": value if high is None else high}
    return {"version": version, "slice": part, "metric": metric, "users": users} | figure


def duel(rival: str, value: float, low: float, high: float, users: int = 1000) -> dict:
    """The paired row of the challenger against a rival (or in a slice)."""
    return row(NEW, "ndcg@10", value, f"against {rival}", low, high, users)


def night(gain: float = 0.0, half: float = 0.006, champion: bool = True) -> list[dict]:
    """An evaluation: two baselines, a champion of NDCG@10 0.3, a challenger that differs from it by `gain`."""
    rows = [row("popular", "ndcg@10", 0.10), row("ease", "ndcg@10", 0.20), row(NEW, "ndcg@10", 0.3 + gain)]
    rows += [duel("popular", 0.2 + gain, 0.19 + gain, 0.21 + gain), duel("ease", 0.1 + gain, 0.09 + gain, 0.11 + gain)]
    rows += [row(NEW, "coverage", 0.40), row(NEW, "ece", 0.03), row(NEW, "auc", 0.8), row(NEW, "logloss", 0.2)]
    if champion:
        rows += [row(OLD, "ndcg@10", 0.3), row(OLD, "coverage", 0.42), row(OLD, "ece", 0.02)]
        rows += [duel(OLD, gain, gain - half, gain + half), duel(f"{OLD} | new items", gain, gain - 0.02, gain + 0.02)]
    return rows


def changed(rows: list[dict], version: str, metric: str, part: str = "all", **values) -> list[dict]:
    """The rows with other values in one of them."""
    key = (version, metric, part)
    assert any((r["version"], r["metric"], r["slice"]) == key for r in rows)
    return [r | values if (r["version"], r["metric"], r["slice"]) == key else r for r in rows]


def judged(rows: list[dict], champion: str | None = OLD, limits: Promotion = LIMITS) -> gate.Verdict:
    return gate.judge(gate.figures(rows), NEW, champion, limits)


def rules(verdict: gate.Verdict) -> list[str]:
    return [failure.rule for failure in verdict.failures]


@pytest.mark.parametrize("gain", [0.02, 0.0, -0.004], ids=["better", "equal", "not surely worse"])
def test_a_challenger_that_is_not_worse_passes(gain):
    assert judged(night(gain)).passed


@pytest.mark.parametrize(
    ("gain", "half"),
    [(-0.03, 0.01), (-0.002, 0.001), (0.0, 0.02)],
    ids=["worse", "surely a bit worse", "too few users"],
)
def test_a_challenger_that_is_or_may_be_worse_stays(gain, half):
    assert rules(judged(night(gain, half)))[0] == "not worse"


def test_what_it_may_lose_is_a_setting():
    wide = night(0.0, half=0.02)
    assert not judged(wide).passed
    assert judged(wide, limits=Promotion(tolerance=0.1)).passed


@given(st.floats(-0.2, 0.2), st.floats(0, 0.1), st.floats(0, 0.1))
def test_a_greater_gain_never_stops_what_a_smaller_one_lets_pass(gain, half, more):
    assert not judged(night(gain, half)).passed or judged(night(gain + more, half)).passed


@pytest.mark.parametrize("value", [nan, None, inf])
def test_a_broken_model_is_refused_by_name_of_the_figure(value):
    verdict = judged(changed(night(0.1), NEW, "logloss", value=value))
    assert rules(verdict) == ["finite"] and "logloss of all is " in verdict.told
    verdict = judged(changed(night(), NEW, "ndcg@10", value=value, users=0), None)
    assert rules(verdict) == ["finite"] and "ndcg@10 of all is " in verdict.told


def test_what_speaks_of_no_user_may_be_undefined():
    assert judged([*night(), row(NEW, "auc", nan, "new items", users=0)]).passed


def test_an_area_may_be_undefined_unless_the_scores_are_broken():
    rows = changed(night(), NEW, "auc", value=nan)
    assert judged(rows).passed
    broken = judged(changed(rows, NEW, "logloss", value=nan))
    assert "failed finite: auc of all is nan, logloss of all is nan" in broken.told


def test_many_broken_figures_are_counted():
    rows = [*night(), *(row(NEW, "mrr@10", nan, f"slice {n}") for n in range(20))]
    assert judged(rows).told.endswith("and 12 more")


@pytest.mark.parametrize(
    ("difference", "passes"),
    [
        ((0.01, -0.01, 0.03), True),
        ((-0.005, -0.02, 0.01), True),
        ((-0.005, -0.008, -0.002), False),
        ((-0.03, -0.07, 0.01), False),
    ],
    ids=["above", "not surely below", "surely below", "far below"],
)
def test_a_first_model_is_held_against_the_best_baseline(difference, passes):
    value, low, high = difference
    rows = changed(night(champion=False), NEW, "ndcg@10", "against ease", value=value, low=low, high=high)
    verdict = judged(rows, None)
    assert verdict.passed is passes and rules(verdict) == [] if passes else ["baseline"]
    assert "(ease)" in verdict.told


def test_without_paired_rows_the_means_are_compared():
    def alone(ours: float, champion: bool) -> list[dict]:
        rows = [r for r in night(champion=champion) if not r["slice"].startswith("against")]
        return changed(rows, NEW, "ndcg@10", value=ours)

    assert judged(alone(0.195, False), None).passed
    assert rules(judged(alone(0.18, False), None)) == ["baseline"]
    assert judged(alone(0.3, True)).passed
    assert rules(judged(alone(0.299, True))) == ["not worse"]


def test_only_what_it_was_paired_with_is_a_baseline():
    assert judged([*night(champion=False), row("features only", "ndcg@10", 0.9)], None).passed


def test_the_sources_blend_is_a_baseline():
    rows = [*night(champion=False), row("blend", "ndcg@10", 0.4), duel("blend", -0.1, -0.2, -0.05)]
    verdict = judged(rows, None)
    assert rules(verdict) == ["baseline"] and "(blend)" in verdict.told


def test_a_part_of_the_challenger_is_no_baseline():
    part = "new without language model"
    assert judged([*night(champion=False), row(part, "ndcg@10", 0.5), duel(part, -0.2, -0.3, -0.1)], None).passed


def test_a_champion_that_was_not_evaluated_is_not_beaten():
    with pytest.raises(NotEnoughDataError, match="lost was not evaluated on this snapshot: run evaluate_scorer again"):
        judged(night(), "lost")


def test_nothing_to_compare_with_is_too_little_data():
    with pytest.raises(NotEnoughDataError, match="new was not evaluated"):
        judged([row("ease", "ndcg@10", 0.2)], None)
    with pytest.raises(NotEnoughDataError, match="no baseline"):
        judged([row(NEW, "ndcg@10", 0.2)], None)


def test_a_champion_that_cannot_be_read_does_not_block():
    rows = [*night(champion=False), row(OLD, "unreadable", 1.0)]
    verdict = judged(rows)
    assert verdict.passed and "the champion old cannot be read, so the challenger is judged as a first" in verdict.told
    worse = changed(rows, NEW, "ndcg@10", "against ease", value=-0.1, low=-0.12, high=-0.08)
    assert rules(judged(worse)) == ["baseline"]


def test_a_champion_that_has_seen_the_targets_is_not_compared_with():
    verdict = judged([*night(champion=False), row(OLD, "has_seen_the_targets", 1.0)])
    assert verdict.passed and "the champion old was trained on days of the test cut's targets" in verdict.told


def test_a_champion_without_finite_figures_does_not_block():
    rows = changed(night(), OLD, "ndcg@10", value=nan)
    rows = changed(rows, NEW, "ndcg@10", "against old", value=nan, low=nan, high=nan)
    verdict = judged(rows)
    assert verdict.passed and "the champion old has no finite ndcg@10" in verdict.told


@pytest.mark.parametrize(
    ("metric", "value", "rule"),
    [("coverage", 0.33, "coverage"), ("ece", 0.041, "calibration")],
)
def test_a_guard_stops_a_better_challenger(metric, value, rule):
    assert rules(judged(changed(night(0.05), NEW, metric, value=value))) == [rule]


@pytest.mark.parametrize(("metric", "value"), [("coverage", 0.336), ("ece", 0.04)])
def test_a_guard_lets_its_own_bound_pass(metric, value):
    assert judged(changed(night(), NEW, metric, value=value)).passed


def test_a_guard_without_figures_is_told():
    rows = [r for r in night() if (r["version"], r["metric"]) != (OLD, "ece")]
    verdict = judged(rows)
    assert verdict.passed and verdict.notes == ("ece is not known of both, so it was not compared",)


@pytest.mark.parametrize(("users", "failed"), [(100, ["slice 'new users'"]), (99, [])])
def test_a_slice_that_is_surely_worse_stops_it_if_it_has_enough_users(users, failed):
    verdict = judged([*night(0.05), duel("old | new users", -0.05, -0.09, -0.01, users)])
    assert rules(verdict) == failed


def test_slices_against_others_are_no_guard():
    assert judged([*night(), duel("ease | new users", -0.05, -0.09, -0.01)]).passed


@pytest.mark.parametrize("part", ONLY_TOLD)
def test_slices_that_are_only_told_are_no_guard(part):
    assert judged([*night(), duel(f"{OLD} | {part}", -0.05, -0.09, -0.01)]).passed
    assert not judged([*night(), duel(f"{OLD} | {part} of another", -0.05, -0.09, -0.01)]).passed


def test_the_reason_of_a_promotion():
    assert judged(night(0.01)).told == (
        "passed: ndcg@10 0.3100 against 0.3000 (old), difference +0.0100 [+0.0040, +0.0160] over 1000 users"
    )


def test_the_reason_of_a_refusal_has_every_failed_rule_with_its_figures():
    rows = [*night(-0.03, 0.01), duel("old | new users", -0.05, -0.09, -0.01, 150)]
    rows = changed(changed(rows, NEW, "coverage", value=0.2), NEW, "ece", value=0.09)
    assert judged(rows).told == (
        "rejected: ndcg@10 0.2700 against 0.3000 (old), difference -0.0300 [-0.0400, -0.0200] over 1000 users; "
        "failed not worse: the whole interval lies below 0; "
        "failed slice 'new items': difference -0.0300 [-0.0500, -0.0100] over 1000 users is worse; "
        "failed slice 'new users': difference -0.0500 [-0.0900, -0.0100] over 150 users is worse; "
        "failed coverage: 0.2000 is below 80% of the champion's 0.4200; "
        "failed calibration: ece 0.0900 is above the champion's 0.0200 + 0.02"
    )


def test_the_reason_of_a_first_model_that_is_too_weak():
    rows = changed(night(champion=False), NEW, "ndcg@10", value=0.17)
    rows = changed(rows, NEW, "ndcg@10", "against ease", value=-0.03, low=-0.07, high=0.01)
    assert judged(rows, None).told == (
        "rejected: ndcg@10 0.1700 against 0.2000 (ease), difference -0.0300 [-0.0700, +0.0100] over 1000 users; "
        "failed baseline: the difference is below -0.0100 (5% of the baseline's)"
    )


def test_two_rows_for_one_figure_are_refused():
    with pytest.raises(ContractError, match=r"new / all / ndcg@10 twice"):
        gate.figures([row(NEW, "ndcg@10", 0.1), row(NEW, "ndcg@10", 0.2)])
