"""Several processes train one model: torchrun's RANK and WORLD_SIZE say who is who; without them there is one.

All processes hold the same data and weights. Each reads its share of a step, sums go over all of them, and what each
does with a sum is the same. The folder of checkpoints is one that all of them see.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

PATIENCE = timedelta(hours=2)  # the others wait while rank 0 judges and writes


def rank() -> int:
    """This process's number, 0 for the one that writes."""
    return int(os.environ.get("RANK", "0"))


def size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def group() -> Iterator[None]:
    """The processes joined: over nccl with a GPU each, else over gloo."""
    if size() == 1 or distributed.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def share(step: NDArray[np.int64]) -> NDArray[np.int64]:
    """This process's part of a step, (n,) -> (about n / size,); it may be empty."""
    return step[rank() :: size()]


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one dtype by their sums over all processes, in one message."""
    if size() == 1:
        return
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat)
    with torch.no_grad():
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


def from_first(value: Any) -> Any:
    """Rank 0's value in every process; all of them wait for it."""
    told = [value]
    if size() > 1:
        distributed.broadcast_object_list(told)
    return told[0]
