"""Ingest and conform of a year of invoices beside plain Spark reading the CSV files and writing Delta by day.

Both in one session of the project, in turn, on the same files; the plain job has no quarantine, gate, identity,
visits or ledger. Wall seconds, session start left out. Aim: at most 2.5 times the plain job's time.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pyspark
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from record import ROOT, data_folder, keep

from lakerec import job as jobs
from lakerec.config import load_config
from lakerec.lake import Window
from lakerec.session import build_session

YEAR = Window(date(2010, 12, 1), date(2011, 12, 10))
ROUNDS = 2


def plain(spark: SparkSession, files: Path, out: str) -> None:
    """What a first draft would do: read every CSV, take the day from its name, write Delta by day."""
    rows = spark.read.option("header", True).csv(str(files))
    day = F.to_date(F.regexp_extract(F.col("_metadata.file_name"), r"(\d{4}-\d{2}-\d{2})", 1))
    rows.withColumn("ingest_date", day).write.format("delta").partitionBy("ingest_date").save(out)


def ours(spark: SparkSession, lake: str) -> int:
    """ingest_events and conform_events over the year; rows read."""
    config = load_config(ROOT / "conf/online_retail.yaml", lake)
    for step in ("ingest_events", "conform_events"):
        counts = jobs.body(step)(jobs.start(config, spark, step, YEAR))
    return int(counts["read"])


def seconds(action: Callable[[], object]) -> float:
    """Wall time of an action."""
    began = time.monotonic()
    action()
    return time.monotonic() - began


def main() -> None:
    """Run both in turn, print and keep the medians and their ratio."""
    files = data_folder("online-retail")
    config = load_config(ROOT / "conf/online_retail.yaml")
    spark = build_session(config, "bench-ingest", YEAR.days)
    times: dict[str, list[float]] = {"plain": [], "lakerec": []}
    rows = 0
    for number in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            times["plain"].append(seconds(lambda: plain(spark, files, f"{folder}/plain")))
            began = time.monotonic()
            rows = ours(spark, f"{folder}/lake")
            times["lakerec"].append(time.monotonic() - began)
        print(f"round {number + 1}: " + ", ".join(f"{k} {v[-1]:.1f} s" for k, v in times.items()), flush=True)
    medians = {name: statistics.median(found) for name, found in times.items()}
    figures = {f"{name}_seconds": round(value, 1) for name, value in medians.items()}
    rates = {f"{name}_rows_per_second": round(rows / value) for name, value in medians.items()}
    ratio = {"ratio": round(medians["lakerec"] / medians["plain"], 2), "goal": 2.5, "rounds": ROUNDS, "rows": rows}
    keep("speed", "ingest", {**figures, **rates, **ratio, "pyspark": pyspark.__version__})


if __name__ == "__main__":
    main()
