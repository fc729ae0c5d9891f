"""Slates made ready for training, and two ways of going through them: read anew, or read once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lakerec.scorer import parallel
from lakerec.scorer.model import SlateScorer
from lakerec.scorer.prediction import stack_features
from lakerec.scorer.slates import Pack, Packer, Slate, batches

HEAD_PASSES = 10  # passes an epoch where the encoder is frozen and read once
HEAD_ROWS = 512  # candidates a step of such a pass


@dataclass(frozen=True)
class Examples:
    """s slates ready to train on: packs, and of all their r candidates the features (r, f) and labels (r,).

    The rows of slate i are starts[i] .. starts[i + 1] - 1; `targets` (s,) counts all that the user chose; `teacher`
    (r,) are a teacher's logits.
    """

    packs: list[Pack]
    features: Tensor
    labels: Tensor
    starts: NDArray[np.int64]
    targets: list[int]
    teacher: Tensor | None = None

    @classmethod
    def of(cls, slates: Sequence[Slate], packer: Packer, features: int) -> Examples:
        """Of labelled slates."""
        starts = np.cumsum([0, *(len(slate.texts) for slate in slates)])
        told, labels = stack_features(slates, features), torch.from_numpy(_labels(slates))
        return cls(packer.pack(slates), told, labels, starts, [slate.targets for slate in slates])


def lacking(train: Sequence[Slate], valid: Sequence[Slate]) -> str:
    """What is missing to teach a language model and to judge it; empty where both have positives and negatives."""
    for use, slates in (("training", train), ("validation", valid)):
        labels = _labels(slates)
        if not 0 < labels.sum() < len(labels):
            return (
                f"{use}: {len(slates)} slates with {int(labels.sum())} positives among {len(labels)} candidates; "
                "both kinds are needed: widen the window or take more candidates"
            )
    return ""


def _labels(slates: Sequence[Slate]) -> NDArray[np.float32]:
    """The labels (r,) of all candidates."""
    labels = [slate.labels for slate in slates if slate.labels is not None]
    return np.concatenate([np.zeros(0), *labels]).astype(np.float32)


class Reading:
    """Steps over examples that the encoder reads anew each time; a step is an array of units' numbers.

    A unit is a pack, or with `whole` all packs of a slate: a softmax over a slate needs its candidates in one step.
    """

    def __init__(self, model: SlateScorer, examples: Examples, token_budget: int, whole: bool = False) -> None:
        self.model, self.examples, self.token_budget = model, examples, token_budget
        self.lengths = np.array([len(pack) for pack in examples.packs])
        self.first_packs = self._first_packs(whole)
        self.packs = np.diff(np.append(self.first_packs, len(self.lengths)))
        self.longest = np.maximum.reduceat(self.lengths, self.first_packs)
        self.starts = np.array([examples.packs[first].start for first in self.first_packs], dtype=np.int64)
        self.tokens_read = 0

    def _first_packs(self, whole: bool) -> NDArray[np.int64]:
        """The first pack of each unit."""
        if not whole:
            return np.arange(len(self.lengths))
        begins = [pack.start for pack in self.examples.packs]
        return np.flatnonzero(np.isin(begins, self.examples.starts))

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Candidates of each unit."""
        return np.diff(np.append(self.starts, len(self.examples.labels)))

    def rows(self, step: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows (n,) of a step's candidates."""
        return _ranges(self.starts[step], self.sizes[step])

    def shuffled(self, generator: np.random.Generator, among: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """An epoch's steps over some units: those of similar length, in another order and company each time."""
        steps = self._batches(among, self.longest[among] * generator.uniform(0.9, 1.1, len(among)))
        return [steps[place] for place in generator.permutation(len(steps))]

    def in_order(self) -> list[NDArray[np.int64]]:
        """One pass over everything, the same each time."""
        return self._batches(np.arange(len(self.longest)), self.longest)

    def _batches(self, units: NDArray[np.int64], lengths: NDArray) -> list[NDArray[np.int64]]:
        return [units[step] for step in batches(lengths.tolist(), self.token_budget, self.packs[units].tolist())]

    def logits(self, step: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int64]]:
        """Logits (n,) of a step's candidates, on the model's device, and their rows (n,)."""
        rows = self.rows(step)
        return self._combine(self.read(step), rows), rows

    def read(self, step: NDArray[np.int64]) -> Tensor:
        """What the encoder makes of a step's candidates, (n, w), in the order of `rows`."""
        packs = _ranges(self.first_packs[step], self.packs[step])
        self.tokens_read += int(self.lengths[packs].sum())
        return self.model.read(self.model.collate([self.examples.packs[index] for index in packs]))

    def _combine(self, reads: Tensor, rows: NDArray[np.int64]) -> Tensor:
        return self.model.combine(reads, self.examples.features[rows].to(reads.device))


class CachedReading(Reading):
    """Steps over examples that a frozen encoder has read once; a unit is a candidate, or with `whole` a slate."""

    def __init__(self, model: SlateScorer, examples: Examples, token_budget: int, whole: bool = False) -> None:
        super().__init__(model, examples, token_budget)
        self.reads = torch.zeros(len(examples.labels), model.width, device=model.mean.device)
        with torch.no_grad():
            for step in super().in_order():
                if len(mine := parallel.share(step)):
                    self.reads[self.rows(mine)] = self.read(mine)
        parallel.add_up([self.reads])
        rows = np.arange(len(examples.labels))
        self.starts = examples.starts[:-1][np.diff(examples.starts) > 0] if whole else rows

    def shuffled(self, generator: np.random.Generator, among: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """An epoch's steps: several passes over some units."""
        orders = [generator.permutation(among) for _ in range(HEAD_PASSES)]
        return [step for order in orders for step in self._slices(order)]

    def in_order(self) -> list[NDArray[np.int64]]:
        """One pass over everything, the same each time."""
        return self._slices(np.arange(len(self.starts)))

    def logits(self, step: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int64]]:
        """Logits (n,) of a step's candidates, on the model's device, and their rows (n,)."""
        rows = self.rows(step)
        return self._combine(self.reads[rows], rows), rows

    def _slices(self, order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Units in order, a new step with each that begins behind another HEAD_ROWS candidates."""
        sizes = self.sizes[order]
        step = (np.cumsum(sizes) - sizes) // HEAD_ROWS
        return np.split(order, np.flatnonzero(np.diff(step)) + 1)


def _ranges(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """starts[0], starts[0] + 1, ... of `sizes[0]` numbers, then those of the next, (sum of sizes,)."""
    ends = np.cumsum(sizes)
    return np.arange(sizes.sum()) - np.repeat(ends - sizes - starts, sizes)
