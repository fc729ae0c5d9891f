"""What a day costs through Airflow, from the trigger to the published rows: `make bench-day`.

A simulated shop of some 3,000 events and 150 active users a day, with a week of history and a trained model. Three
days in turn by reco_daily: one submit per task; all tasks in a driver that starts for them (`spark.reuse: true`); and
the same driver again, warm. A bar per task, with the start of Spark in it apart. Needs port 8093 and no `make up` state
but its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from airflow_run import airflow, asked, run_of, seconds, serving_database
from record import ROOT, keep, yardstick

FIRST, HISTORY = date(2026, 3, 1), 8
SHOP = {"users": 360, "items": 200, "seed": 7}
GOALS = {"submits": 180, "reuse": 90}
STARTED = re.compile(r"Spark is up \((\d+\.\d) s\)")
WIDTH = 60


def main() -> None:
    """Prepare the shop, run its three days, print the bars and keep the result."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        submits, reuse = configuration(place, False), configuration(place, True)
        days = [str(FIRST + timedelta(days=HISTORY + n)) for n in range(3)]
        prepare(place, submits)
        with airflow(place, LAKEREC_SERVING_URI=serving_database(place)) as environment:
            found = {"submits": measured(environment, submits, days[0])}
            found["reuse"] = measured(environment, reuse, days[1])
            found["reuse_warm"] = measured(environment, reuse, days[2])
    for name, one in found.items():
        print(bars(name, one))
    keep("speed", "day", {**found["submits"], "goals": GOALS, **{k: v for k, v in found.items() if k != "submits"}})


def configuration(place: Path, reuse: bool) -> Path:
    """The demo's YAML for the shop in this folder."""
    known = yaml.safe_load((ROOT / "conf" / "demo.yaml").read_text())
    known |= {"lake": "lake", "spark": known["spark"] | {"reuse": reuse}}
    file = place / ("reuse.yaml" if reuse else "submits.yaml")
    file.write_text(yaml.safe_dump(known).replace("../demo-data", "data"))
    return file


def prepare(place: Path, config: Path) -> None:
    """Simulate the shop and bring its history and a model into the lake."""
    told = [f"--{name}={value}" for name, value in SHOP.items()]
    lakerec = [sys.executable, "-m", "lakerec.cli"]
    days = ["--start", str(FIRST), "--days", str(HISTORY + 3)]
    subprocess.run([*lakerec, "simulate", "--out", str(place / "data"), *days, *told], check=True, cwd=ROOT)
    window = ["--start", str(FIRST), "--end", str(FIRST + timedelta(days=HISTORY)), "--train", "always"]
    subprocess.run([*lakerec, "run", "--config", str(config), *window], check=True, cwd=ROOT)


def measured(environment: dict[str, str], config: Path, day: str) -> dict[str, Any]:
    """A run of reco_daily: seconds from its trigger to its end, and each task's, with Spark's start in it."""
    speed = yardstick()
    run, path = run_of(environment, config, "reco_daily", "--day", day)
    path += "/taskInstances"
    tasks = [one for one in asked(environment, path)["task_instances"] if one["start_date"] and one["duration"]]
    began = seconds(run["queued_at"])
    rows = [
        {
            "name": one["task_id"],
            "began": round(seconds(one["start_date"]) - began, 1),
            "seconds": round(one["duration"], 1),
            "spark_start": spark_start(asked(environment, f"{path}/{one['task_id']}/logs/{one['try_number']}")),
        }
        for one in sorted(tasks, key=lambda one: str(one["start_date"]))
    ]
    published = next(one for one in rows if one["name"] == "publish_recommendations")
    return {
        "seconds": round(published["began"] + published["seconds"], 1),
        "day": day,
        "yardstick": speed,
        "tasks": rows,
    }


def spark_start(log: dict[str, Any]) -> float:
    """Seconds that a task waited for Spark, by what the job said of it."""
    found = STARTED.search(json.dumps(log))
    return float(found[1]) if found else 0.0


def bars(name: str, found: dict[str, Any]) -> str:
    """A line per task: where it lies in the run, Spark's start as dots, the rest as blocks."""
    scale = WIDTH / found["seconds"]
    lines = [f"\n{name}: {found['seconds']} s from the trigger to the published rows"]
    for task in found["tasks"]:
        start = round(task["spark_start"] * scale)
        rest = max(1, round(task["seconds"] * scale) - start)
        bar = " " * round(task["began"] * scale) + "." * start + "#" * rest
        lines.append(f"  {task['name']:24s}{task['seconds']:7.1f} s ({task['spark_start']:.1f})  {bar}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
