"""Scores from an artefact: any slate in, as many probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lakerec.errors import ContractError
from lakerec.scorer.artefact import Manifest, checked, load, load_manifest
from lakerec.scorer.model import SlateScorer, standardise
from lakerec.scorer.slates import Packer, Slate, batches

# Tokens a batch. A GPU wants many. A processor is faster with one slate at a time: no time goes into padding,
# and a score depends on its slate alone, to the last bit, however Spark cuts the users into batches.
BATCH_TOKENS = {"cuda": 65536, "cpu": 1}


class Predictor:
    """A loaded scorer; without a language model its scores are the prior's."""

    def __init__(self, manifest: Manifest, model: SlateScorer | None = None, packer: Packer | None = None) -> None:
        self.manifest, self.model, self.packer = manifest, model, packer

    @classmethod
    def load(cls, path: Path, threads: int, arithmetic: str | None = None) -> Predictor:
        """Load an artefact and let torch use so many threads of this process; arithmetic: other than it records."""
        torch.set_num_threads(threads)
        if not load_manifest(path).language_model:
            return cls(checked(path))
        model, packer, manifest = load(path, arithmetic)
        return cls(manifest, model, packer)

    def score(self, slates: Sequence[Slate]) -> list[NDArray[np.float32]]:
        """P(positive) of each candidate, one float32 array (n,) per slate, in the order given."""
        if self.model is None:
            return self.prior(slates)
        return [torch.sigmoid(torch.from_numpy(logits)).float().numpy() for logits in self.logits(slates)]

    def logits(self, slates: Sequence[Slate]) -> list[NDArray[np.float64]]:
        """The log odds of `score`, shaped as it."""
        pairs = zip(self._prior(slates, self.manifest.prior), self.corrections(slates), strict=True)
        return [prior + read for prior, read in pairs]

    def prior(self, slates: Sequence[Slate]) -> list[NDArray[np.float32]]:
        """P(positive) by the features alone, without the language model's correction; shaped as `score`."""
        alone = self._prior(slates, self.manifest.alone or self.manifest.prior)
        return [torch.sigmoid(torch.from_numpy(logits)).float().numpy() for logits in alone]

    def corrections(self, slates: Sequence[Slate]) -> list[NDArray[np.float32]]:
        """What the language model adds to each candidate's logit, 0 without one; shaped as `score`."""
        if self.model is None or self.packer is None:
            return [np.zeros(len(slate.texts), dtype=np.float32) for slate in slates]
        return corrections(self.model, self.packer, slates)

    def _prior(self, slates: Sequence[Slate], weights: Sequence[float]) -> list[NDArray[np.float64]]:
        """Logits by the features alone, their weights and the bias given."""
        counts = [len(slate.texts) for slate in slates]
        features = stack_features(slates, len(self.manifest.feature_names))
        mean, std, prior = (torch.tensor(given) for given in (self.manifest.mean, self.manifest.std, weights))
        # In float64 and without a product of matrices: how float32 rounds depends on the number of rows.
        told = (standardise(features, mean, std).double() * prior[:-1]).sum(dim=1) + prior[-1]
        return np.split(told.numpy(), np.cumsum(counts)[:-1]) if slates else []


def corrections(model: SlateScorer, packer: Packer, slates: Sequence[Slate]) -> list[NDArray[np.float32]]:
    """What a model adds to each candidate's logit, one float32 array (n,) per slate."""
    counts = [len(slate.texts) for slate in slates]
    packs, found, place = packer.pack(slates), torch.zeros(sum(counts)), model.mean.device.type

    @torch.inference_mode()
    def read(indices: list[int]) -> None:
        batch = model.collate([packs[index] for index in indices])
        found[batch.rows] = model.correction(model.read(batch)).cpu()

    tasks = batches([len(pack) for pack in packs], BATCH_TOKENS[place])
    if place == "cpu":
        _a_thread_each(read, tasks)
    else:
        for indices in tasks:
            read(indices)
    return np.split(found.numpy(), np.cumsum(counts)[:-1]) if slates else []


def _a_thread_each(work: Callable[[list[int]], None], tasks: Sequence[list[int]]) -> None:
    """Do the tasks side by side, each on one of torch's threads.

    A slate's products are too small to be shared out: on two threads one is hardly faster (docs/performance.md).
    And its sums come in the same order however many threads there are.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        for task in tasks:
            work(task)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool:
            for _ in pool.map(work, tasks):  # where one fails, those that have not begun never do
                pass
    finally:
        torch.set_num_threads(threads)


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
