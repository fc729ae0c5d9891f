"""An Airflow of a benchmark's own: started for it, asked by its REST API."""

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

PORT = 8093


@contextmanager
def airflow(place: Path) -> Iterator[dict[str, str]]:
    """The environment of an Airflow with its state in `place`, and of a serving database; ends both behind itself."""
    uri = postgres.ensure_database(postgres.start(place / "state" / "postgres"), "serving")
    own = {"LAKEREC_STATE": str(place / "state"), "LAKEREC_PORT": str(PORT), "LAKEREC_SCHEDULES": "off"}
    environment = os.environ | own | {"LAKEREC_SERVING_URI": uri}
    try:
        yield environment
    finally:
        subprocess.run(["scripts/down.sh"], cwd=ROOT, env=environment, check=False)


def run_of(environment: Mapping[str, str], config: Path, dag: str, *conf: str) -> tuple[dict[str, Any], str]:
    """Trigger a DAG with this configuration and wait for its end: the run as the API tells it, and the path to it."""
    started = {**environment, "CONFIG": str(config)}
    subprocess.run(["scripts/up.sh"], cwd=ROOT, env=started, check=True)
    subprocess.run(["scripts/trigger.sh", dag, *conf], cwd=ROOT, env=started, check=True)
    (run,) = asked(environment, f"dags/{dag}/dagRuns?order_by=-start_date&limit=1")["dag_runs"]
    return run, f"dags/{dag}/dagRuns/{run['dag_run_id']}"


def asked(environment: Mapping[str, str], path: str) -> dict[str, Any]:
    """An answer of the REST API."""
    file = Path(environment["LAKEREC_STATE"]) / "airflow" / "simple_auth_manager_passwords.json.generated"
    login = {"username": "admin", "password": json.loads(file.read_text())["admin"]}
    token = str(_answer("auth/token", json.dumps(login).encode())["access_token"])
    return _answer(f"api/v2/{path}", None, token)


def _answer(path: str, body: bytes | None, token: str = "") -> dict[str, Any]:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/{path}", body, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        found: dict[str, Any] = json.load(response)
    return found


def seconds(moment: str) -> float:
    """A time of the REST API as seconds since 1970."""
    return datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()
