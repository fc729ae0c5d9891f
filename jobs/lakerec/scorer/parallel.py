"""Several processes train one model: torchrun's RANK and WORLD_SIZE say who is who; without them there is one.

Who starts them is torchrun, on several machines, too, or `together` on this one.

All processes hold the same data and weights. Each reads its share of a step, sums go over all of them, and what each
does with a sum is the same. The folder of checkpoints is one that all of them see.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, multiprocessing

from lakerec.errors import ConfigError, ProcessLostError

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


def together(count: int, work: Callable[..., None], *given: Any) -> None:
    """Call work(*given) in so many processes of this machine, joined; all can be pickled, none outlives this one.

    ProcessLostError where one of them dies; where one raises, that is raised. The others are ended, too.
    """
    if torch.cuda.is_available() and count > torch.cuda.device_count():
        raise ConfigError(
            f"scorer.training.processes: {count}, but this machine has {torch.cuda.device_count()} GPUs; one each"
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the first of them shares this process's GPU
    threads = max(1, torch.get_num_threads() // count)
    try:
        multiprocessing.spawn(_member, (count, port, threads, work, given), nprocs=count, daemon=True)
    except multiprocessing.ProcessExitedException as error:
        cause = str(error).strip().splitlines()[-1]
        raise ProcessLostError(
            f"one of {count} training processes ended ({cause}); the next try goes on from the checkpoint of the last "
            "epoch; if it ends again, see the log above, or set scorer.training.processes: 1"
        ) from error


def _member(place: int, count: int, port: int, threads: int, work: Callable[..., None], given: Sequence[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what torch has the kernel send where the one that started it dies
    told = {"RANK": place, "LOCAL_RANK": place, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in told.items()}
    torch.set_num_threads(threads)
    with group():
        work(*given)
