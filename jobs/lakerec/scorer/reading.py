"""Slates made ready for training, and two ways of going through them: read anew, or read once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lakerec.errors import NotEnoughDataError
from lakerec.scorer.model import SlateScorer
from lakerec.scorer.prediction import stack_features
from lakerec.scorer.slates import Pack, Packer, Slate, batches

HEAD_PASSES = 10  # passes an epoch where the encoder is frozen and read once
HEAD_ROWS = 512  # candidates a step of such a pass


@dataclass(frozen=True)
class Examples:
    """Slates ready to train on: packs, and of all their r candidates the features (r, f) and labels (r,)."""

    packs: list[Pack]
    features: Tensor
    labels: Tensor

    @classmethod
    def of(cls, slates: Sequence[Slate], packer: Packer, features: int, use: str) -> Examples:
        """Raises NotEnoughDataError where there are not both positives and negatives."""
        labels = [slate.labels for slate in slates if slate.labels is not None]
        flat = np.concatenate([np.zeros(0), *labels]).astype(np.float32)
        if not 0 < flat.sum() < len(flat):
            raise NotEnoughDataError(
                f"{use}: {len(slates)} slates with {int(flat.sum())} positives among {len(flat)} candidates; "
                "both kinds are needed: widen the window or take more candidates"
            )
        return cls(packer.pack(slates), stack_features(slates, features), torch.from_numpy(flat))


class Reading:
    """Steps over examples that the encoder reads anew each time; a step is an array of pack numbers."""

    def __init__(self, model: SlateScorer, examples: Examples, token_budget: int) -> None:
        self.model, self.examples, self.token_budget = model, examples, token_budget
        self.lengths = np.array([len(pack) for pack in examples.packs])
        self.tokens_read = 0

    def shuffled(self, generator: np.random.Generator) -> list[NDArray[np.int64]]:
        """An epoch's steps: packs of similar length, in another order and company each time."""
        steps = self._batches(self.lengths * generator.uniform(0.9, 1.1, len(self.lengths)))
        return [steps[place] for place in generator.permutation(len(steps))]

    def in_order(self) -> list[NDArray[np.int64]]:
        """One pass over everything, the same each time."""
        return self._batches(self.lengths)

    def _batches(self, lengths: NDArray[np.float64]) -> list[NDArray[np.int64]]:
        return [np.asarray(step) for step in batches(lengths.tolist(), self.token_budget)]

    def logits(self, step: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Logits and labels (r,) of a step's candidates, on the model's device."""
        reads, rows = self.read(step)
        return self._combine(reads, rows)

    def read(self, step: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """What the encoder makes of a step's candidates, (r, w), and their rows (r,)."""
        self.tokens_read += int(self.lengths[step].sum())
        batch = self.model.collate([self.examples.packs[index] for index in step])
        return self.model.read(batch), batch.rows

    def _combine(self, reads: Tensor, rows: Tensor | NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        features, labels = self.examples.features[rows], self.examples.labels[rows]
        return self.model.combine(reads, features.to(reads.device)), labels.to(reads.device)


class CachedReading(Reading):
    """Steps over examples that a frozen encoder has read once; a step is an array of candidates' rows."""

    def __init__(self, model: SlateScorer, examples: Examples, token_budget: int) -> None:
        super().__init__(model, examples, token_budget)
        self.reads = torch.zeros(len(examples.labels), model.width, device=model.mean.device)
        with torch.no_grad():
            for step in super().in_order():
                reads, rows = self.read(step)
                self.reads[rows] = reads

    def shuffled(self, generator: np.random.Generator) -> list[NDArray[np.int64]]:
        """An epoch's steps: several passes over all candidates."""
        orders = [generator.permutation(len(self.reads)) for _ in range(HEAD_PASSES)]
        return [step for order in orders for step in _slices(order)]

    def in_order(self) -> list[NDArray[np.int64]]:
        """One pass over everything, the same each time."""
        return _slices(np.arange(len(self.reads)))

    def logits(self, step: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Logits and labels (r,) of a step's candidates, on the model's device."""
        return self._combine(self.reads[step], step)


def _slices(order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [order[start : start + HEAD_ROWS] for start in range(0, len(order), HEAD_ROWS)]
