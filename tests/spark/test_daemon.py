"""The daemon that Spark's Python workers are forked from."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pandas as pd
from pyspark.sql import SparkSession


def test_a_worker_is_forked_with_torch_and_multiplies(spark: SparkSession):
    def look(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        loaded = "torch" in sys.modules and "lightgbm" in sys.modules
        import torch

        for _ in frames:
            yield pd.DataFrame(
                {
                    "loaded": [loaded],
                    "parent": [os.getppid()],
                    "total": [torch.ones(64, 64).mm(torch.ones(64, 64)).sum().item()],
                }
            )

    told = spark.range(2, numPartitions=2).mapInPandas(look, "loaded boolean, parent long, total double").collect()
    assert [(row["loaded"], row["total"]) for row in told] == [(True, 64.0**3)] * 2
    assert len({row["parent"] for row in told}) == 1


# CUDA does not survive a fork: a worker looks for its GPU itself, behind `scoring.own_gpu`.
LOADED = """
import importlib, os, torch
def refused(*_): raise AssertionError("a GPU was looked for")
torch._C._cuda_getDeviceCount = torch._C._cuda_init = refused
from lakerec.daemon import MODULES
for module in MODULES: importlib.import_module(module)
assert not torch.cuda.is_initialized()
threads = {open(f"/proc/self/task/{one}/comm").read().strip() for one in os.listdir("/proc/self/task")[1:]}
assert threads <= {"jemalloc_bg_thd"}, threads
"""


def test_what_is_imported_before_the_fork_looks_for_no_gpu():
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_library_that_prints_or_fails_does_not_keep_spark_from_its_port(tmp_path):
    (tmp_path / "broken.py").write_text("raise OSError('libcudnn.so.9: cannot open shared object file')")
    (tmp_path / "loud.py").write_text("import os\nprint('loud')\nos.write(1, b'as C writes')")
    modules = ("loud", "lakerec.missing", "broken")
    code = f"import lakerec.daemon as d; d.MODULES = {modules}; d.manager = lambda: print('port'); d.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "port\n"), done.stderr
    assert all(told in done.stderr for told in ("loud", "as C writes", "libcudnn.so.9", "lakerec.missing"))
