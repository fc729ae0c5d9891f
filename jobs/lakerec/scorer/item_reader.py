"""Items as tokens of a language model: one projected text vector each, with the event's type and age."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lakerec.scorer.slates import Pack

KINDS = 32  # event types that are told apart, a candidate counted as one
AGES = 32  # classes of ages, each 2 ** .5 times as old as the one before it; the last: none


@dataclass(frozen=True)
class Items:
    """The item tokens of a batch: where they stand, rows (v,) and columns (v,); vectors (v, d), kinds and ages (v,)."""

    rows: Tensor
    columns: Tensor
    vectors: Tensor
    kinds: Tensor
    ages: Tensor

    @classmethod
    def of(cls, packs: Sequence[Pack], place: torch.device) -> Items | None:
        """Those of some packs; None where there are none."""
        found = [(row, pack.given) for row, pack in enumerate(packs) if pack.given is not None]
        if not found:
            return None
        rows = np.repeat([row for row, _ in found], [len(given.places) for _, given in found])
        parts = zip(*((each.places, each.kinds, each.ages) for _, each in found), strict=True)
        places, kinds, ages = (np.concatenate(part) for part in parts)
        vectors = np.concatenate([picked.rows for _, each in found for picked in each.vectors])
        classes = np.floor(2 * np.log2(1 + np.maximum(ages, 0)))
        known = np.where(np.isnan(ages), AGES - 1, np.minimum(np.nan_to_num(classes), AGES - 2)).astype(np.int64)
        arrays = (rows, places, vectors, np.minimum(kinds, KINDS - 1), known)
        return cls(*(torch.from_numpy(np.ascontiguousarray(array)).to(place) for array in arrays))


class ItemReader(nn.Module):
    """Projects text vectors among a language model's word vectors; a type and an age begin as nothing."""

    def __init__(self, width: int, size: int, scale: float) -> None:
        super().__init__()
        self.width = width
        self.project = nn.Linear(width, size)
        self.kinds, self.ages = nn.Embedding(KINDS, size), nn.Embedding(AGES, size)
        nn.init.normal_(self.project.weight, std=scale)
        weight: Tensor
        for weight in (self.project.bias, self.kinds.weight, self.ages.weight):
            nn.init.zeros_(weight)

    @classmethod
    def beside(cls, encoder: PreTrainedModel, width: int) -> ItemReader:
        """For vectors of length 1: what is projected is as long as the encoder's words are."""
        words: Any = encoder.get_input_embeddings()
        return cls(width, words.weight.shape[1], float(words.weight.detach().std()))

    def forward(self, items: Items) -> Tensor:
        """(v, size)."""
        return self.project(items.vectors) + self.kinds(items.kinds) + self.ages(items.ages)

    def put(self, words: Tensor, items: Items | None) -> Tensor:
        """Word vectors (b, t, size) with the items' in their places."""
        if items is None:
            return words
        return words.index_put((items.rows, items.columns), self(items).to(words.dtype))
