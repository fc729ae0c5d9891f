"""An Airflow of a benchmark's or a test's own, as `make up` starts it: a DAG's run, and what its REST API says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from record import ROOT

from lakerec import postgres


@contextmanager
def airflow(place: Path, schedules: str = "off", **more: str) -> Iterator[dict[str, str]]:
    """The environment of an Airflow with its state in `place`, with more of it; what `up` starts there ends behind."""
    port = str(postgres.free_port())
    own = {"LAKEREC_STATE": str(place / "state"), "LAKEREC_PORT": port, "LAKEREC_SCHEDULES": schedules}
    kept = {name: value for name, value in os.environ.items() if name != "PYSPARK_GATEWAY_PORT"}
    known = {**kept, **own, "LAKEREC_HOME": str(ROOT), **more}
    try:
        yield known
    finally:
        called(known, "down.sh")


def serving_database(place: Path) -> str:
    """The URI of a database on the server of Airflow itself: it runs all day, as a deployment's serving does."""
    return postgres.ensure_database(postgres.start(place / "state" / "postgres"), "serving")


def up(known: Mapping[str, str], config: Path) -> dict[str, str]:
    """Start what does not run; the environment with the configuration in it."""
    configured = {**known, "CONFIG": str(config)}
    called(configured, "up.sh")
    return configured


def called(known: Mapping[str, str], script: str, *words: str) -> str:
    """What a script says, which must end well."""
    command = [ROOT / "scripts" / script, *words]
    done = subprocess.run(command, env=known, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"{script} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def run_of(known: Mapping[str, str], config: Path, dag: str, *conf: str) -> tuple[dict[str, Any], str]:
    """Trigger a DAG with this configuration and wait for its end: the run as the API tells it, and the path to it."""
    called(up(known, config), "trigger.sh", dag, *conf)
    (run,) = asked(known, f"dags/{dag}/dagRuns?order_by=-start_date&limit=1")["dag_runs"]
    return run, f"dags/{dag}/dagRuns/{run['dag_run_id']}"


def asked(
    known: Mapping[str, str], path: str, change: Mapping[str, Any] | None = None, method: str = "PATCH"
) -> dict[str, Any]:
    """An answer of the REST API; `method` is that of a question with something to change."""
    file = Path(known["LAKEREC_STATE"]) / "airflow" / "simple_auth_manager_passwords.json.generated"
    login = {"username": "admin", "password": json.loads(file.read_text())["admin"]}
    token = str(_answer(known, "auth/token", "POST", login)["access_token"])
    return _answer(known, f"api/v2/{path}", method if change else "GET", change, token)


def listed(known: Mapping[str, str], path: str, kind: str) -> list[dict[str, Any]]:
    """All entries of a list of the REST API, by pages: Airflow gives 100 at a time, whatever is asked for."""
    found: list[dict[str, Any]] = []
    while part := asked(known, f"{path}?limit=100&offset={len(found)}")[kind]:
        found += part
    return found


def _answer(
    known: Mapping[str, str], path: str, method: str, body: Mapping[str, Any] | None, token: str = ""
) -> dict[str, Any]:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    url, data = f"http://127.0.0.1:{known['LAKEREC_PORT']}/{path}", json.dumps(body).encode() if body else None
    with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=60) as response:
        found: dict[str, Any] = json.load(response)
    return found


def seconds(moment: str) -> float:
    """A time of the REST API as seconds since 1970."""
    return datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()
