"""Spark's daemon of Python workers, with what a model needs imported once: a worker is forked and has it.

Below Spark's own daemon every worker imports torch, transformers and LightGBM itself: some six seconds of a processor
each, and again for the next one after a minute without work. PySpark forks from a process without threads: Spark sets
OMP_NUM_THREADS to a task's cores, so no library's pool is there yet; Arrow's allocator has one of its own, fit to be
forked.
"""

from __future__ import annotations

import gc
import importlib
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from pyspark.daemon import manager

MODULES = ("pyspark.worker", "lakerec.scoring", "lakerec.scorer.prediction", "lakerec.scorer.serving_day")


def main() -> None:
    """Import, then serve Spark."""
    with _quiet():
        for module in MODULES:
            try:
                importlib.import_module(module)
            except Exception:  # the task that needs it fails; a second import may not say why
                traceback.print_exc()
    gc.freeze()  # a worker collects behind each task: it need not look at these
    manager()


@contextmanager
def _quiet() -> Iterator[None]:
    """Standard output, where Spark reads the port, is standard error for Python and for what C libraries print."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


if __name__ == "__main__":
    main()
