"""Cheaper arithmetic for the language model's forward pass, each kind behind a gate on how it ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lakerec import metrics
from lakerec.scorer.language_model import precision
from lakerec.scorer.model import FLOAT32, INT8, NARROW, SlateScorer
from lakerec.scorer.prediction import Predictor
from lakerec.scorer.slates import Slate

TOP = 10
LEAST_OVERLAP = 0.95  # of the ten best of a slate
MOST_LOSS = 0.01  # of float32's NDCG@10
JUDGED = 200  # slates
Scored = Callable[[Predictor, Sequence[Slate]], Sequence[NDArray[np.floating]]]


@dataclass(frozen=True)
class Agreement:
    """How slates are ranked by a kind of arithmetic beside float32: mean overlap of the ten best, loss of NDCG@10."""

    kind: str
    overlap: float
    ndcg_loss: float
    slates: int
    ndcg: float = 1.0

    @property
    def good(self) -> bool:
        """Whether the kind may be used."""
        return self.overlap >= LEAST_OVERLAP and self.ndcg_loss <= MOST_LOSS * self.ndcg

    def __str__(self) -> str:
        return (
            f"{self.kind} beside float32 on {self.slates} slates: {self.overlap:.3f} of the ten best are the same, "
            f"NDCG@10 loses {self.ndcg_loss:+.4f} of {self.ndcg:.4f}"
        )


def chosen(
    predictor: Callable[[SlateScorer], Predictor],
    model: SlateScorer,
    slates: Sequence[Slate],
    wish: str,
    say: Callable[[str], None],
    scored: Scored = lambda predictor, slates: predictor.logits(slates),
) -> tuple[str, dict[str, Any]]:
    """The wished kind (`auto`: narrow where that is fast) if it ranks the slates as float32 does, else the next one.

    slates are labelled; scored: what orders the first of them where they are served, by a predictor. What comes with
    the kind are the figures of the last comparison: the worst, where a kind is another one on other machines.
    """
    fast = [NARROW] if precision(model.mean.device.type) != torch.float32 else []
    kinds = {"auto": fast, INT8: [INT8, *fast], FLOAT32: []}[wish]
    judged, told = slates[:JUDGED], {}
    exact = scored(predictor(model.computing(FLOAT32)), judged) if kinds else []
    for kind in kinds:
        found = min(
            (compared(kind, exact, scored(predictor(each), judged), judged) for each in computing(model, kind)),
            key=lambda agreement: (agreement.good, -agreement.ndcg_loss),
        )
        told = asdict(found)
        say(f"{found}" + ("" if found.good else f": refused (at least {LEAST_OVERLAP}, at most {MOST_LOSS:.0%})"))
        if found.good:
            return kind, told
    return FLOAT32, told


def computing(model: SlateScorer, kind: str) -> list[SlateScorer]:
    """The model in a kind of arithmetic as the machines that may read its artefact compute it.

    int8 is narrow on a GPU, where a model is trained, and in 8 bits on the processors that may score with it.
    """
    here = [model.computing(kind)]
    if kind != INT8 or model.mean.device.type == "cpu":
        return here
    return [*here, copy.deepcopy(model).to("cpu").computing(kind)]


def compared(
    kind: str, exact: Sequence[NDArray[np.floating]], other: Sequence[NDArray[np.floating]], slates: Sequence[Slate]
) -> Agreement:
    """Two ways to score the same slates."""
    if not all(np.isfinite(scores).all() for scores in other):
        return Agreement(kind, 0.0, float("inf"), len(slates))
    pairs = [(a, b) for a, b in zip(exact, other, strict=True) if len(a) > 1]
    shares = [len(np.intersect1d(_best(a), _best(b))) / min(TOP, len(a)) for a, b in pairs]
    whole = _ndcg(exact, slates)
    overlap, lost = float(np.mean(shares)) if shares else 1.0, whole - _ndcg(other, slates)
    if np.isnan(lost):
        return Agreement(kind, overlap, 0.0, len(slates))
    return Agreement(kind, overlap, lost, len(slates), whole)


def _best(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    return np.argsort(-scores, kind="stable")[:TOP]


def _ndcg(scores: Sequence[NDArray[np.floating]], slates: Sequence[Slate]) -> float:
    labels = [slate.labels if slate.labels is not None else np.zeros(len(slate.texts), np.float32) for slate in slates]
    found = metrics.evaluate(list(scores), labels, [slate.targets for slate in slates], [TOP])[f"ndcg@{TOP}"]
    return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")
