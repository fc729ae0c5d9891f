"""What stands around the fine-tuning: the prior it starts from, the check of that start, the scale it ends with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from lakerec.errors import ModelError
from lakerec.scorer.calibration import rising_logistic
from lakerec.scorer.model import SlateScorer
from lakerec.scorer.reading import Examples

ROUNDING = 1e-4  # nats: features that tell nothing start at the base rate, give or take float32


def moments(features: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation (f,) of each feature, what is not finite left out; 1 for a constant."""
    finite = torch.where(torch.isfinite(features), features.double(), torch.nan).numpy()
    known = np.isfinite(finite).any(axis=0)
    mean, std = np.zeros(finite.shape[1]), np.ones(finite.shape[1])
    mean[known], std[known] = np.nanmean(finite[:, known], axis=0), np.nanstd(finite[:, known], axis=0)
    return mean.astype(np.float32), np.where(std < 1e-8, 1.0, std).astype(np.float32)


def fit_prior(model: SlateScorer, examples: Examples) -> None:
    """Logistic regression of the labels on the standardised features, each of which is the greater the better.

    No weight falls below 0: without a language model a list keeps the order that it came in.
    """
    x = model.standardise(examples.features.to(model.mean.device)).cpu().numpy()
    found = torch.from_numpy(rising_logistic(x, examples.labels.numpy()))
    with torch.no_grad():
        model.prior.weight.copy_(found[None, :-1])
        model.prior.bias.copy_(found[-1:])


def prior_weights(model: SlateScorer) -> list[float]:
    """The weights of the standardised features, and the bias, (f + 1,)."""
    return [*model.prior.weight.detach().flatten().tolist(), float(model.prior.bias.detach())]


@torch.no_grad()
def unread(model: SlateScorer, examples: Examples) -> Tensor:
    """Logits (r,) where the language model has read nothing: as long as its correction is zero, the model's own."""
    features = examples.features.to(model.mean.device)
    return model.combine(torch.zeros(len(features), model.width, device=features.device), features)


@torch.no_grad()
def start(model: SlateScorer, examples: Examples, slates: int) -> str:
    """What a training on so many slates starts from; ModelError where that is worse than the base rate."""
    x, y = model.standardise(examples.features.to(model.mean.device)).double(), examples.labels.double()
    weights = torch.tensor(prior_weights(model), dtype=torch.float64, device=x.device)
    rate = y.mean()
    base = float(torch.special.entr(rate) + torch.special.entr(1 - rate))
    prior = float(cross_entropy((x @ weights[:-1] + weights[-1]).cpu(), y))
    begun = float(cross_entropy(unread(model, examples).double().cpu(), y))
    told = (
        f"{slates} slates to learn from, of {len(y)} candidates in all; log-loss: base rate {base:.4f}, "
        f"features alone {prior:.4f}, start (g = 0) {begun:.4f}"
    )
    if not begun <= base + ROUNDING:
        raise ModelError(f"{told}: the start is worse than the base rate; look at the features of the training slates")
    return told


@torch.no_grad()
def rescale(model: SlateScorer, logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Scale and bias of least log-loss for the model's logits (n,), put into its weights.

    Losses over slates do not see what moves a whole slate, and leave the scale to the teacher's temperature. The scale
    is above zero: the order stays. Labels are smoothed as by Platt (1999), so that it is finite where logits separate
    the classes.
    """
    z, y = logits.double().cpu(), labels.double().cpu()
    ones = y.sum()
    wanted = torch.where(y > 0, (ones + 1) / (ones + 2), 1 / (len(y) - ones + 2))
    mean, std = z.mean(), z.std().clamp(min=1e-6)
    stretch = torch.zeros((), dtype=torch.float64, requires_grad=True)
    bias = torch.logit(y.mean()).requires_grad_()
    with torch.enable_grad():
        _minimise([stretch, bias], lambda: cross_entropy(stretch.exp() * (z - mean) / std + bias, wanted))
    scale = float(stretch.detach().exp() / std)
    shift = float(bias.detach()) - scale * float(mean)
    weight: Tensor
    for weight in (*model.prior.parameters(), *model.head[-1].parameters()):
        weight.mul_(scale)
    model.prior.bias.add_(shift)
    return scale, shift


def _minimise(weights: list[Tensor], loss: Callable[[], Tensor]) -> None:
    solver = torch.optim.LBFGS(weights, max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        value = loss()
        value.backward()
        return value

    solver.step(closure)
