"""Ingest and conform of a year of invoices beside plain Spark reading the CSV files and writing Delta by day.

Each side runs in a process of its own, in turn, on the same files, three times: `plain` in a session with Spark's
defaults and Delta, `plain_tuned` the same program in the project's session, `lakerec` ingest_events and
conform_events. The plain job has no quarantine, gate, identity, visits or ledger. Wall seconds from the session
that stands to the last commit, medians. Great Expectations is imported while the session starts, as lakerec run
does; so the ratio of the whole processes, session starts and imports included, stands beside.
Aim: at most 2.5 times the plain job's time.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
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
from lakerec.session import BASE, build_session, delta_jars

YEAR = Window(date(2010, 12, 1), date(2011, 12, 10))
SIDES = ("plain", "plain_tuned", "lakerec")
ROUNDS = 3


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


def session(side: str) -> SparkSession:
    """Spark's defaults with Delta for `plain`, the project's session for the others."""
    config = load_config(ROOT / "conf/online_retail.yaml")
    if side != "plain":
        return build_session(config, side, YEAR.days)
    builder = SparkSession.builder.master(config.spark.master).appName(side)
    builder = builder.config("spark.driver.memory", config.spark.driver_memory)
    builder = builder.config("spark.jars", ",".join(map(str, delta_jars())))
    for key in ("spark.sql.extensions", "spark.sql.catalog.spark_catalog"):
        builder = builder.config(key, BASE[key])
    return builder.getOrCreate()


def measure(side: str) -> None:
    """One side in this process: the last line of output is its seconds."""
    files = data_folder("online-retail")
    if side == "lakerec":
        jobs.import_ahead("great_expectations")  # as lakerec run does
    spark = session(side)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        rows = 0
        if side == "lakerec":
            rows = ours(spark, folder)
        else:
            plain(spark, files, f"{folder}/plain")
        print(rows, f"{time.monotonic() - began:.2f}", flush=True)


def measured(side: str) -> tuple[int, float, float]:
    """Rows, seconds, and seconds of the whole process of one side."""
    began = time.monotonic()
    out = subprocess.run([sys.executable, __file__, side], stdout=subprocess.PIPE, text=True, check=True).stdout
    rows, seconds = out.strip().splitlines()[-1].split()
    return int(rows), float(seconds), time.monotonic() - began


def main() -> None:
    """Run the sides in turn; print and keep the medians and their ratios."""
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    processes: dict[str, list[float]] = {side: [] for side in SIDES}
    rows = 0
    for number in range(ROUNDS):
        for side in SIDES:
            found, seconds, whole = measured(side)
            processes[side].append(whole)
            rows = max(rows, found)
            times[side].append(seconds)
        print(f"round {number + 1}: " + ", ".join(f"{k} {v[-1]:.1f} s" for k, v in times.items()), flush=True)
    medians = {side: statistics.median(found) for side, found in times.items()}
    figures = {f"{side}_seconds": round(value, 1) for side, value in medians.items()}
    rates = {f"{side}_rows_per_second": round(rows / value) for side, value in medians.items()}
    ratios = {f"ratio_to_{side}": round(medians["lakerec"] / medians[side], 2) for side in SIDES[:2]}
    ratios["ratio_of_whole_processes"] = round(
        statistics.median(processes["lakerec"]) / statistics.median(processes["plain"]), 2
    )
    about = {"goal": 2.5, "rounds": ROUNDS, "rows": rows, "pyspark": pyspark.__version__}
    keep("speed", "ingest", {**figures, **rates, **ratios, **about})


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
