"""What a step minimises: each candidate's cross-entropy, each slate's softmax, or the distance to a teacher's.

A slate's negatives are other candidates that the ranker nominated, its best and what was passed over further down, and
none is sampled: the softmax over a slate needs no correction for sampled negatives (logQ).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from lakerec.config import Training
from lakerec.errors import ModelError
from lakerec.scorer import parallel
from lakerec.scorer.artefact import MANIFEST, load, load_manifest
from lakerec.scorer.model import SlateScorer
from lakerec.scorer.prediction import Predictor
from lakerec.scorer.reading import Examples
from lakerec.scorer.slates import Slate

RANKER = ("ranker", "retriever")  # both are the first feature: the retriever speaks through the ranker
NOBODY = -1e9  # the logit of a place without a candidate: its probability is 0


class Objective:
    """A loss over candidates, and what it is divided by: candidates for bce, slates for the others.

    softmax: -sum y / |y| log softmax(z) of each slate; one without a positive neither gives nor counts.
    distill: (1 - w) softmax + w T^2 KL(softmax(teacher / T) || softmax(z / T)) of each slate (Hinton et al. 2015).
    """

    def __init__(self, settings: Training, examples: Examples) -> None:
        self.settings, self.examples = settings, examples
        self.by_slate = settings.loss != "bce"
        starts, sizes = examples.starts[:-1], np.diff(examples.starts)
        self.owner = np.repeat(np.arange(len(sizes)), sizes)
        self.place = np.arange(len(self.owner)) - starts[self.owner]
        self.counts = self._counts(sizes)

    def _counts(self, sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """What each candidate (r,) adds to the divisor: 1, or 1 of a whole slate at its first candidate."""
        if not self.by_slate:
            return np.ones(len(self.owner))
        positives = np.bincount(self.owner, weights=self.examples.labels.numpy(), minlength=len(sizes))
        counted = (positives > 0) | (self.settings.loss == "distill")
        return ((self.place == 0) & counted[self.owner]).astype(np.float64)

    def total(self, logits: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """The summed loss of candidates' logits (n,), whose rows (n,) hold whole slates unless the loss is bce."""
        labels = self.examples.labels[rows].to(logits.device)
        if not self.by_slate:
            return cross_entropy(logits, labels, reduction="sum")
        z, y = self._matrix(logits, rows, NOBODY), self._matrix(labels, rows, 0.0)
        hard = -(y / y.sum(dim=1, keepdim=True).clamp(min=1) * z.log_softmax(dim=1)).sum()
        if self.settings.loss == "softmax":
            return hard
        assert self.examples.teacher is not None
        teacher = self._matrix(self.examples.teacher[rows].to(logits.device), rows, NOBODY)
        weight = self.settings.distill_weight
        return (1 - weight) * hard + weight * self._distance(z, teacher)

    def _distance(self, z: Tensor, teacher: Tensor) -> Tensor:
        """T^2 KL of logits (s, n) from a teacher's, summed over slates."""
        heat = self.settings.distill_temperature
        wanted, found = (teacher / heat).log_softmax(dim=1), (z / heat).log_softmax(dim=1)
        return heat**2 * (wanted.exp() * (wanted - found)).sum()

    def _matrix(self, values: Tensor, rows: NDArray[np.int64], fill: float) -> Tensor:
        """Candidates' values (n,) by slate and place, (s, most candidates)."""
        slates, slate = np.unique(self.owner[rows], return_inverse=True)
        place = self.place[rows]
        matrix = values.new_full((len(slates), int(place.max(initial=0)) + 1), fill)
        where = (torch.from_numpy(slate).to(values.device), torch.from_numpy(place).to(values.device))
        return matrix.index_put(where, values)


def teacher_logits(name: str, beside: Path, model: SlateScorer, slates: Sequence[Slate], features: Tensor) -> Tensor:
    """A teacher's logits (r,) of all slates' candidates, features (r, f): the ranker's scores, or an artefact's.

    `name`: `ranker`, the folder of an artefact, or the version of one in the folder `beside`. Each process reads its
    share of the slates. ModelError where it has no language model.
    """
    if name in RANKER:
        clean = model.standardise(features.to(model.mean.device))[:, 0] * model.std[0] + model.mean[0]
        return clean.cpu()
    network, packer, manifest = load(place := _artefact(name, beside))
    last = network.head[-1]
    assert isinstance(last, torch.nn.Linear)
    if not last.weight.any():
        raise ModelError(
            f"scorer.training.teacher {name!r}: the language model of {place} adds nothing to any candidate, no epoch "
            "has made it better than the ranker alone; name `ranker`"
        )
    predictor = Predictor(manifest, network, packer)
    starts = np.cumsum([0, *(len(slate.texts) for slate in slates)])
    found = torch.zeros(int(starts[-1]), device=model.mean.device)
    mine = parallel.share(np.arange(len(slates)))
    for place, logits in zip(mine, predictor.logits([slates[place] for place in mine]), strict=True):
        found[starts[place] : starts[place + 1]] = torch.from_numpy(logits).to(found)
    parallel.add_up([found])
    return found.cpu()


def _artefact(name: str, beside: Path) -> Path:
    # A folder may lie anywhere; a version is one name, and leads nowhere else.
    places = [Path(name), *([beside / name] if Path(name).name == name else [])]
    place = next((place for place in places if (place / MANIFEST).is_file()), None)
    if place is None:
        raise ModelError(
            f"scorer.training.teacher {name!r}: neither a folder with a {MANIFEST} nor a version in {beside}; "
            "train the teacher first, or name `ranker`"
        )
    if not load_manifest(place).language_model:
        raise ModelError(
            f"scorer.training.teacher {name!r}: {place} has no language model; train one with "
            "scorer.language_model: always, or name `ranker`"
        )
    return place
