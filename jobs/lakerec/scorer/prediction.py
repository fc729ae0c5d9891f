"""Scores from an artefact: any slate in, as many probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lakerec.errors import ContractError
from lakerec.scorer.artefact import Manifest, checked, load, load_manifest
from lakerec.scorer.model import SlateScorer, standardise
from lakerec.scorer.slates import Pack, Packer, Slate, batches

# Tokens a batch. A GPU wants many. A processor is faster with one slate at a time: no time goes into padding,
# and a score depends on its slate alone, to the last bit, however Spark cuts the users into batches.
BATCH_TOKENS = {"cuda": 65536, "cpu": 1}


class Predictor:
    """A loaded scorer; without a language model its scores are the prior's."""

    def __init__(self, manifest: Manifest, model: SlateScorer | None = None, packer: Packer | None = None) -> None:
        self.manifest, self.model, self.packer = manifest, model, packer

    @classmethod
    def load(cls, path: Path, threads: int) -> Predictor:
        """Load an artefact and let torch use so many threads of this process."""
        torch.set_num_threads(threads)
        if not load_manifest(path).language_model:
            return cls(checked(path))
        model, packer, manifest = load(path)
        return cls(manifest, model, packer)

    def score(self, slates: Sequence[Slate]) -> list[NDArray[np.float32]]:
        """P(positive) of each candidate, one float32 array (n,) per slate, in the order given."""
        if self.model is None or self.packer is None:
            return self.prior(slates)
        counts = [len(slate.texts) for slate in slates]
        features = stack_features(slates, len(self.manifest.feature_names))
        found = self._probabilities(self.model, self.packer.pack(slates), features)
        return np.split(found.numpy(), np.cumsum(counts)[:-1]) if slates else []

    def prior(self, slates: Sequence[Slate]) -> list[NDArray[np.float32]]:
        """P(positive) by the features alone, without the language model's correction; shaped as `score`."""
        counts = [len(slate.texts) for slate in slates]
        features = stack_features(slates, len(self.manifest.feature_names))
        mean, std, prior = (torch.tensor(getattr(self.manifest, name)) for name in ("mean", "std", "prior"))
        # In float64 and without a product of matrices: how float32 rounds depends on the number of rows.
        told = (standardise(features, mean, std).double() * prior[:-1]).sum(dim=1) + prior[-1]
        found = torch.sigmoid(told).float()
        return np.split(found.numpy(), np.cumsum(counts)[:-1]) if slates else []

    @torch.inference_mode()
    def _probabilities(self, model: SlateScorer, packs: Sequence[Pack], features: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(len(features))
        budget = BATCH_TOKENS[model.mean.device.type]
        for indices in batches([len(pack) for pack in packs], budget):
            batch = model.collate([packs[index] for index in indices])
            logits = model(batch, features[batch.rows].to(batch.ids.device))
            found[batch.rows] = torch.sigmoid(logits).cpu()
        return found


def stack_features(slates: Sequence[Slate], width: int) -> torch.Tensor:
    """The features of all candidates, (r, width) float32; ContractError names a slate of another width."""
    for slate in slates:
        if slate.texts and slate.features.shape != (len(slate.texts), width):
            raise ContractError(
                f"slate {slate.slate_id}: features are {slate.features.shape}, "
                f"expected {(len(slate.texts), width)}; the model was trained on other features"
            )
    filled = [slate.features for slate in slates if slate.texts]
    return torch.from_numpy(np.concatenate([np.zeros((0, width)), *filled]).astype(np.float32))
