"""The retriever's top 100 of a large catalogue beside Spark ALS recommendForAllUsers, on the same vectors.

Synthetic factors, d = 64, of the same size on both sides: the network that reads histories is left out of ours, the
fit out of theirs. Both give the exact top 100; ours also scores in float64 and breaks ties by item. The cost is linear
in users on both sides: the peer is timed on a part of them, in turn with ours, and ours on all of them besides.
ALS is as pip installs it, in a session with Spark's defaults, its factors cached, one partition a core. One run each on
a busy machine: 71 users/s so, 82 with Java's vector module, 69 with OpenBLAS on the library path.
Goal: at least 3 times the users per second of the peer.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyspark
from numpy.typing import NDArray
from pyspark.ml.recommendation import ALSModel
from pyspark.sql import DataFrame, SparkSession
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from record import ROOT

from lakerec.generators.nearest import Catalogue, Exact

CORES, SIZE, N, ITEMS, USERS, PART = 2, 64, 100, 100_000, 100_000, 2_000
GOAL = 3  # times the peer's users a second
ROUNDS, LONG_ROUNDS, LONG = 5, 3, 60.0  # pairs; fewer where one run takes more than a minute
WORK = (
    f"top {N} for {{users}} users x {{items}} items (synthetic, d = {SIZE}, without the network that reads histories)"
)


def factors(rows: int, seed: int) -> NDArray[np.float32]:
    """(rows, SIZE) normal float32."""
    return np.random.default_rng(seed).standard_normal((rows, SIZE), dtype=np.float32)


def session() -> SparkSession:
    """Spark's defaults on CORES cores."""
    builder = SparkSession.builder.master(f"local[{CORES}]").appName("retrieval")
    settings = {
        "spark.driver.memory": "4g",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.shuffle.partitions": str(CORES),
    }
    for key, value in settings.items():
        builder = builder.config(key, value)
    return builder.getOrCreate()


def table(spark: SparkSession, vectors: NDArray[np.float32]) -> DataFrame:
    """id, features, as ALS keeps its factors; cached."""
    rows = pd.DataFrame({"id": np.arange(len(vectors), dtype=np.int32), "features": list(vectors)})
    found = spark.createDataFrame(rows, "id int, features array<float>").repartition(CORES).cache()
    found.count()
    return found


def als(spark: SparkSession, users: NDArray[np.float32], items: NDArray[np.float32]) -> ALSModel:
    """A model with these factors, not fitted."""
    frames = [table(spark, vectors)._jdf for vectors in (users, items)]
    made: Any = spark.sparkContext._jvm.org.apache.spark.ml.recommendation.ALSModel("retrieval", SIZE, *frames)  # type: ignore[union-attr]
    return ALSModel(made.setUserCol("user").setItemCol("item"))


def recommended(model: ALSModel) -> None:
    """Every list, written nowhere."""
    model.recommendForAllUsers(N).write.format("noop").mode("overwrite").save()


def seconds(work: Callable[[], Any]) -> float:
    """Wall time."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def searched(search: Exact, users: NDArray[np.float32]) -> None:
    """Every list, each core a share of the users on one thread, as Spark's workers do."""
    with threadpool_limits(1), ThreadPoolExecutor(CORES) as pool:
        list(pool.map(lambda share: search.search(share, N), np.array_split(users, CORES)))


def agree(model: ALSModel, search: Exact, users: NDArray[np.float32]) -> None:
    """Both sides score the first user's list alike; ends the program where they do not."""
    theirs = model.recommendForAllUsers(N).where("user = 0").head()
    mine = search.search(users[:1], N)[1][0]
    if theirs is None or not np.allclose([row["rating"] for row in theirs["recommendations"]], mine, rtol=1e-4):
        raise SystemExit("the two sides do not find the same top items: there is nothing to compare")


def paired(ours: Callable[[], Any], peer: Callable[[], Any]) -> tuple[float, float]:
    """The median seconds of both, timed in turn."""
    pairs: list[tuple[float, float]] = []
    while len(pairs) < (LONG_ROUNDS if any(max(pair) > LONG for pair in pairs) else ROUNDS):
        pairs.append((seconds(ours), seconds(peer)))
        print(f"pair {len(pairs)}: ours {pairs[-1][0]:.2f} s, peer {pairs[-1][1]:.2f} s", file=sys.stderr, flush=True)
    mine, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    return mine, theirs


def commit() -> str:
    """The short hash of HEAD."""
    run = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return run.stdout.strip()


def rows(part: int = PART, items: int = ITEMS, users: int = USERS) -> list[dict[str, Any]]:
    """Users per second of both sides on `part` users, and ours on all `users` beside the peer's rate on `part`."""
    catalogue, people = factors(items, 0), factors(users, 1)
    search = Exact(Catalogue.of(catalogue, np.zeros(items, dtype=np.float32)))
    spark = session()
    model = als(spark, people[:part], catalogue)
    agree(model, search, people)  # warms both up
    mine, theirs = paired(lambda: searched(search, people[:part]), lambda: recommended(model))
    spark.stop()
    whole = statistics.median(seconds(lambda: searched(search, people)) for _ in range(ROUNDS))
    told = WORK.format(users=f"{users:,}", items=f"{items:,}") + f"; the peer's rate on {part:,} users"
    return [
        row(WORK.format(users=f"{part:,}", items=f"{items:,}"), part / mine, part / theirs),
        row(told, users / whole, part / theirs),
    ]


def row(work: str, ours: float, peer: float) -> dict[str, Any]:
    """One line of the table of speeds."""
    return {
        "work": work,
        "ours": round(ours),
        "peer": round(peer, 1),
        "peer_version": f"Spark {pyspark.__version__} ALS recommendForAllUsers (no native BLAS)",
        "ratio": round(ours / peer, 1),
        "unit": "users/s",
        "goal": GOAL,
        "cores": CORES,
        "commit": commit(),
    }


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("part", PART), ("items", ITEMS), ("users", USERS)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for line in rows(**vars(parser.parse_args())):
        print(line)


if __name__ == "__main__":
    main()
