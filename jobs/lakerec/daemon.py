"""Spark's daemon of Python workers, with what a model needs imported once: a worker is forked and has it.

Below Spark's own daemon every worker imports torch, transformers and LightGBM itself: some six seconds of a processor
each, and again for the next one after a minute without work.
"""

from __future__ import annotations

import gc
import importlib
import sys
from contextlib import redirect_stdout, suppress

from pyspark.daemon import manager

MODULES = ("pyspark.worker", "lakerec.scoring", "lakerec.scorer.prediction", "lakerec.scorer.serving_day")


def main() -> None:
    """Import, then serve Spark, which reads the port from standard output: nothing else may be written there."""
    with redirect_stdout(sys.stderr):
        for module in MODULES:
            with suppress(Exception):  # in the worker it fails again, and its task says why
                importlib.import_module(module)
    gc.freeze()  # a worker collects behind each task: it need not look at these
    manager()


if __name__ == "__main__":
    main()
