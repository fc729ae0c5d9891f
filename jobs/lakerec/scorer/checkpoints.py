"""What a training leaves of itself, in one file that is renamed into place, and how another goes on from it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state
FINGERPRINT = "fingerprint"


def copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values as they are now."""
    return {name: weight.detach().clone() for name, weight in weights.items()}


@torch.no_grad()
def put(weights: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Give each weight its value."""
    for name, weight in weights.items():
        weight.copy_(values[name])


def moments(weights: Mapping[str, Tensor], optimiser: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """AdamW's state of the weights that a gradient has reached, by moment and name."""
    state = {name: optimiser.state[weight] for name, weight in weights.items() if optimiser.state.get(weight)}
    return {moment: {name: values[moment] for name, values in state.items()} for moment in MOMENTS}


def write(file: Path, fingerprint: str, groups: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, str]) -> None:
    """Write tensors by group and name, and texts."""
    tensors = {f"{group} {name}": tensor.clone() for group, named in groups.items() for name, tensor in named.items()}
    draft = file.with_suffix(f".{os.getpid()}")
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, draft, {FINGERPRINT: fingerprint, **about})
    draft.replace(file)


def is_of(file: Path, fingerprint: str) -> bool:
    """Whether a checkpoint of this training is there."""
    try:
        with safe_open(file, framework="pt") as stream:
            return (stream.metadata() or {}).get(FINGERPRINT) == fingerprint
    except (SafetensorError, OSError):
        return False


def read(
    file: Path, fingerprint: str, place: torch.device, say: Callable[[str], None]
) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Tensors by "group name" and the texts; None where there is no such file, or of another training."""
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt", device=str(place)) as stream:
            about = stream.metadata() or {}  # a foreign file may have none
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        say(f"{file} cannot be read ({error}): training from the start")
        return None
    if about.get(FINGERPRINT) != fingerprint:
        say(f"{file} is of another training: training from the start")
        return None
    return tensors, about


def restore_moments(
    weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], optimiser: torch.optim.Optimizer
) -> None:
    """What `moments` gave to `write`, back into AdamW."""
    for name, weight in weights.items():
        if f"{MOMENTS[0]} {name}" in tensors:
            state = {moment: tensors[f"{moment} {name}"] for moment in MOMENTS}
            optimiser.state[weight] = state | {"step": state["step"].cpu()}  # where AdamW keeps it
