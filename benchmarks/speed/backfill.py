"""A year of real invoices by reco_backfill beside the plain command of the same window: `make bench-backfill`.

UCI Online Retail from 2010-12-01, each time into a lake of its own: `lakerec run --train never` as one process;
reco_backfill with one submit per task, with `spark.reuse: true`, and so again in quarters of a year. The first counts
from its start to its end, before the others and again behind them (the mean counts: a machine with neighbours is not
as fast at the end as at the beginning; `yardstick` has the seconds of the same arithmetic before each), the others from
the trigger to the end of the DAG's run, Airflow's own time included. The tables have to be equal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from airflow_run import airflow, listed, run_of, seconds, serving_database
from record import ROOT, data_folder, keep, yardstick

from lakerec import job as jobs
from lakerec.config import load_config
from lakerec.lake import Window
from lakerec.session import build_session

FIRST, END = date(2010, 12, 1), date(2011, 12, 1)
# spark.reuse, and the days of a chunk: 366 is the DAG's own.
WAYS = {"submits": (False, 366), "reuse": (True, 366), "reuse_quarters": (True, 92)}
TABLES = ("bronze.events", "silver.events", "quarantine.events", "silver.items", "ml.sequences", "ml.item_embeddings")
NOT_COMPARED = {"vector"}  # a float in its last digit depends on what else was in the batch
GOAL = 1.5


def main() -> None:
    """Run the year each way, compare the lakes and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--end", type=date.fromisoformat, default=END, help="the day behind the last")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        commands = {"run": (False, 0), "run_again": (False, 0)}
        lakes = {name: deployment(place, name, reuse) for name, (reuse, _) in {**commands, **WAYS}.items()}
        speeds = [yardstick()]
        runs = [plain(lakes["run"], given.end)]
        with airflow(place, LAKEREC_SERVING_URI=serving_database(place)) as environment:
            found = {
                name: backfilled(environment, lakes[name], given.end, chunk_days)
                for name, (_, chunk_days) in WAYS.items()
            }
        speeds.append(yardstick())
        runs.append(plain(lakes["run_again"], given.end))
        run = {"seconds": round(statistics.mean(runs), 1), "each": runs, "yardstick": speeds}
        rows = {name: fingerprints(config) for name, config in lakes.items()}
    for name in ("run_again", *WAYS):
        if rows[name] != rows["run"]:
            raise SystemExit(f"{name} made other tables than `lakerec run`: {rows[name]} and {rows['run']}")
    for way in found.values():
        way["ratio"] = round(way["seconds"] / run["seconds"], 2)
    counts = {table: count for table, (count, _) in rows["run"].items()}
    keep(
        "speed",
        "backfill",
        {"goal": GOAL, "days": (given.end - FIRST).days, "run": run, **found, "rows": counts},
    )


def deployment(place: Path, name: str, reuse: bool) -> Path:
    """The project's YAML of the data, with a lake of its own."""
    raw = yaml.safe_load((ROOT / "conf/online_retail.yaml").read_text())
    raw["sources"]["events"]["path"] = f"{data_folder('online-retail')}/{{date}}.csv.gz"
    file = place / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**raw, "lake": f"lake-{name}", "spark": {"reuse": reuse}}))
    return file


def plain(config: Path, end: date) -> float:
    """Seconds of the whole window by one command."""
    lakerec = [sys.executable, "-m", "lakerec.cli", "run", "--config", str(config), "--train", "never"]
    began = time.monotonic()
    subprocess.run([*lakerec, "--start", str(FIRST), "--end", str(end)], check=True, cwd=ROOT)
    return round(time.monotonic() - began, 1)


def backfilled(environment: dict[str, str], config: Path, end: date, chunk_days: int) -> dict[str, Any]:
    """The window by reco_backfill: the seconds of the run, and of all its tasks together."""
    speed = yardstick()
    conf = json.dumps({"start": str(FIRST), "end": str(end), "chunk_days": chunk_days})
    run, path = run_of(environment, config, "reco_backfill", "--conf", conf)
    tasks = listed(environment, f"{path}/taskInstances", "task_instances")
    took = {one["task_id"]: 0.0 for one in sorted(tasks, key=lambda one: str(one["start_date"]))}
    for one in tasks:
        took[one["task_id"]] += one["duration"] or 0
    whole = seconds(run["end_date"]) - seconds(run["queued_at"])
    return {
        "seconds": round(whole, 1),
        "chunk_days": chunk_days,
        "yardstick": speed,
        "tasks": {name: round(took[name], 1) for name in took},
    }


def fingerprints(config: Path) -> dict[str, tuple[int, int]]:
    """Rows of each table, and a number that follows from all of them."""
    loaded = load_config(config)
    spark = build_session(loaded, "compare", 1)
    lake = jobs.start(loaded, spark, "compare", Window(END - timedelta(days=1), END)).lake
    found = {}
    for name in TABLES:
        told = [column for column in sorted(lake.read(name).columns) if column not in NOT_COMPARED]
        (row,) = (
            lake.read(name)
            .selectExpr("count(1) AS n", f"sum(xxhash64(to_json(struct({', '.join(told)}))) % 1000003) AS s")
            .collect()
        )
        found[name] = (row["n"], row["s"])
    return found


if __name__ == "__main__":
    main()
