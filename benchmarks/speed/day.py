"""What a day costs through Airflow, from the trigger to the published rows: `make bench-day`.

A simulated shop of some 3,000 events and 150 active users a day, with a week of history and a trained model. Three
days in turn by reco_daily: one submit per task; all tasks in a driver that starts for them (`spark.reuse: true`); and
the same driver again, warm. A bar per task, with the start of Spark in it apart. Needs port 8093 and no `make up` state
but its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from record import ROOT, keep

FIRST, HISTORY = date(2026, 3, 1), 8
SHOP = {"users": 360, "items": 200, "seed": 7}
PORT = 8093
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
        environment = surroundings(place)
        try:
            found = {"submits": measured(environment, submits, days[0])}
            found["reuse"] = measured(environment, reuse, days[1])
            found["reuse_warm"] = measured(environment, reuse, days[2])
        finally:
            subprocess.run(["scripts/down.sh"], cwd=ROOT, env=environment, check=False)
    for name, one in found.items():
        print(bars(name, one))
    keep("speed", "day", {**found["submits"], "goals": GOALS, **{k: v for k, v in found.items() if k != "submits"}})


def configuration(place: Path, reuse: bool) -> Path:
    """The demo's YAML for the shop in this folder."""
    known = yaml.safe_load((ROOT / "conf" / "demo.yaml").read_text())
    text = yaml.safe_dump(known | {"lake": "lake", "spark": {"reuse": reuse}}).replace("../demo-data", "data")
    file = place / ("reuse.yaml" if reuse else "submits.yaml")
    file.write_text(text)
    return file


def prepare(place: Path, config: Path) -> None:
    """Simulate the shop and bring its history and a model into the lake."""
    told = [f"--{name}={value}" for name, value in SHOP.items()]
    lakerec = [sys.executable, "-m", "lakerec.cli"]
    days = ["--start", str(FIRST), "--days", str(HISTORY + 3)]
    subprocess.run([*lakerec, "simulate", "--out", str(place / "data"), *days, *told], check=True, cwd=ROOT)
    window = ["--start", str(FIRST), "--end", str(FIRST + timedelta(days=HISTORY)), "--train", "always"]
    subprocess.run([*lakerec, "run", "--config", str(config), *window], check=True, cwd=ROOT)


def surroundings(place: Path) -> dict[str, str]:
    """An Airflow of the benchmark's own, and a serving database that both YAMLs publish to."""
    from lakerec import postgres

    uri = postgres.ensure_database(postgres.start(place / "state" / "postgres"), "serving")
    own = {"LAKEREC_STATE": str(place / "state"), "LAKEREC_PORT": str(PORT), "LAKEREC_SCHEDULES": "off"}
    return os.environ | own | {"LAKEREC_SERVING_URI": uri}


def measured(environment: dict[str, str], config: Path, day: str) -> dict[str, Any]:
    """A run of reco_daily: seconds from its trigger to its end, and each task's, with Spark's start in it."""
    subprocess.run(["scripts/up.sh"], cwd=ROOT, env=environment | {"CONFIG": str(config)}, check=True)
    subprocess.run(["scripts/trigger.sh", "reco_daily", "--day", day], cwd=ROOT, env=environment, check=True)
    token = logged_in(environment)
    (run,) = asked("dags/reco_daily/dagRuns?order_by=-start_date&limit=1", token)["dag_runs"]
    path = f"dags/reco_daily/dagRuns/{run['dag_run_id']}/taskInstances"
    tasks = [one for one in asked(path, token)["task_instances"] if one["start_date"] and one["duration"]]
    began = seconds(run["queued_at"])
    rows = [
        {
            "name": one["task_id"],
            "began": round(seconds(one["start_date"]) - began, 1),
            "seconds": round(one["duration"], 1),
            "spark_start": spark_start(asked(f"{path}/{one['task_id']}/logs/{one['try_number']}", token)),
        }
        for one in sorted(tasks, key=lambda one: str(one["start_date"]))
    ]
    published = next(one for one in rows if one["name"] == "publish_recommendations")
    return {"seconds": round(published["began"] + published["seconds"], 1), "day": day, "tasks": rows}


def spark_start(log: dict[str, Any]) -> float:
    """Seconds that a task waited for Spark, by what the job said of it."""
    found = STARTED.search(json.dumps(log))
    return float(found[1]) if found else 0.0


def logged_in(environment: dict[str, str]) -> str:
    """A token of the REST API."""
    file = Path(environment["LAKEREC_STATE"]) / "airflow" / "simple_auth_manager_passwords.json.generated"
    login = {"username": "admin", "password": json.loads(file.read_text())["admin"]}
    return str(answer("auth/token", json.dumps(login).encode())["access_token"])


def asked(path: str, token: str) -> dict[str, Any]:
    """An answer of the REST API."""
    return answer(f"api/v2/{path}", None, token)


def answer(path: str, body: bytes | None, token: str = "") -> dict[str, Any]:
    """The JSON behind a path of Airflow's server."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/{path}", body, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        found: dict[str, Any] = json.load(response)
    return found


def seconds(moment: str) -> float:
    """A time of the REST API as seconds since 1970."""
    return datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()


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
