"""The sides that `make bench-scoring` times: the Spark job, one plain process, a cross-encoder in Spark."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from benchmarks.record import ROOT
from benchmarks.speed import made
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import FloatType

from lakerec import batch
from lakerec.config import Config
from lakerec.scorer.prediction import Predictor
from lakerec.scoring import ListFunction, bucket_scorer
from lakerec.session import build_session

CORES = 2
CROSS_BATCH = 32  # pairs of a forward pass, CrossEncoder's own default; sorted by length among CROSS_ROWS
CROSS_ROWS = 512


def session() -> SparkSession:
    """The project's own on CORES cores; its workers find this package."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    columns = dict.fromkeys(("event_id", "user_id", "item_id", "event_type", "event_time"), "x")
    told = {"lake": "x", "sources": {"events": {"path": "x", "columns": columns}}, "event_types": {"x": 1}}
    return build_session(Config.model_validate({**told, "spark": {"master": f"local[{CORES}]"}}), "bench-scoring")


@lru_cache(maxsize=1)
def predictor(artefact: str, threads: int) -> Predictor:
    """Loaded once a process."""
    return Predictor.load(Path(artefact), threads)


def scored(frame: pd.DataFrame, model: Predictor) -> pd.DataFrame:
    """user_id, item_id, score, source of people as `made.people` has them."""
    scores = model.score(made.slates(frame))
    return pd.DataFrame(
        {
            "user_id": np.repeat(frame["user_id"].to_numpy(dtype=object), [len(items) for items in frame["items"]]),
            "item_id": np.concatenate([np.asarray(items, dtype=object) for items in frame["items"]]),
            "score": np.concatenate(scores),
            "source": "made",
        }
    )


def slate_lists(artefact: str, threads: int = 1) -> ListFunction:
    """What a worker does with a block of people."""

    def lists(frame: pd.DataFrame) -> pd.DataFrame:
        return scored(frame, predictor(artefact, threads))

    return lists


def spark_job(spark: SparkSession, people: Path, lists: ListFunction, out: Path) -> float:
    """Seconds of the batch inference of score_candidates: read, score in buckets, commit to Delta."""
    began = time.monotonic()
    users = spark.read.parquet(str(people))
    with tempfile.TemporaryDirectory() as place:
        total, score = users.count(), bucket_scorer(lists, place)
        buckets = batch.count_of(total, spark.sparkContext.defaultParallelism)
        found = batch.run(spark, users, total, buckets, score, Path(place), lambda _: None)
        found.rows.write.format("delta").mode("overwrite").save(str(out))
    return time.monotonic() - began


class Plain:
    """A process of its own that holds the model and scores files on request; start-up is apart."""

    def __init__(self, artefact: Path, threads: int) -> None:
        command = [sys.executable, "-m", "benchmarks.speed.passes", str(artefact), str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self._answer()

    def ask(self, people: Path, out: Path) -> None:
        """Begin with a file."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{people}\t{out}\n")
        self.process.stdin.flush()

    def _answer(self) -> None:
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            raise SystemExit(f"the plain process ended with {self.process.wait()}")

    def close(self) -> None:
        """End it."""
        self.process.communicate()

    @staticmethod
    def seconds(processes: list[Plain], files: list[Path], out: Path) -> float:
        """Until each process has scored its file."""
        began = time.monotonic()
        for number, (process, file) in enumerate(zip(processes, files, strict=True)):
            process.ask(file, out / f"{number}.parquet")
        for process in processes:
            process._answer()
        return time.monotonic() - began


def plain(artefact: str, threads: int) -> None:
    """The process of `Plain`: reads a file of people, scores it, writes the scores."""
    model = predictor(artefact, threads)
    print("ready", flush=True)
    for line in sys.stdin:
        people, out = line.rstrip("\n").split("\t")
        scored(pd.read_parquet(people), model).to_parquet(out)
        print("done", flush=True)


def cross_encoder(model: str, dtype: str, tokens: int) -> Any:
    """A UDF of history and text: CrossEncoder.predict with the model's weights, its head untrained."""

    def make() -> Callable[..., np.ndarray]:
        import torch
        from sentence_transformers import CrossEncoder

        torch.set_num_threads(1)
        kinds = {"dtype": getattr(torch, dtype)}
        encoder = CrossEncoder(model, num_labels=1, max_length=tokens, model_kwargs=kinds, device="cpu")

        def predict(history: np.ndarray, text: np.ndarray) -> np.ndarray:
            pairs = list(zip(history.tolist(), text.tolist(), strict=True))
            found = encoder.predict(pairs, batch_size=CROSS_BATCH, show_progress_bar=False)
            return np.asarray(found, dtype=np.float32)

        return predict

    return predict_batch_udf(make, return_type=FloatType(), batch_size=CROSS_ROWS)


def cross_job(spark: SparkSession, people: Path, score: Any, out: Path) -> float:
    """Seconds of reading, scoring pair by pair, and the commit to Delta."""
    began = time.monotonic()
    users = spark.read.parquet(str(people)).repartition(CORES)
    pairs = users.select("user_id", "history", F.explode(F.arrays_zip("items", "texts")).alias("pair"))
    rows = pairs.select("user_id", F.col("pair.items").alias("item_id"), score("history", "pair.texts").alias("score"))
    _committed(rows, out)
    return time.monotonic() - began


def _committed(rows: DataFrame, out: Path) -> None:
    rows.write.format("delta").mode("overwrite").save(str(out))


class WorkerMemory:
    """The most that a Spark worker held while it was watched, in MiB: sampled from outside, five times a second."""

    def __init__(self) -> None:
        self.peak, self._ended = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> WorkerMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            self.peak = max(self.peak, *(size / 2**20 for size in _workers()), 0.0)


def _workers() -> list[int]:
    """Resident bytes of each worker: a child of the daemon that forks them."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            parent = process.parent()
            if parent is not None and {"pyspark.daemon", "lakerec.daemon"} & {*parent.cmdline()}:
                found.append(process.memory_info().rss)
        except psutil.Error:
            continue
    return found


if __name__ == "__main__":
    plain(sys.argv[1], int(sys.argv[2]))
