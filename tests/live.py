"""An Airflow of a test's own, as `make up` starts it, and what its REST API says."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, Shop


@contextmanager
def airflow(place: Path, schedules: str = "off") -> Iterator[dict[str, str]]:
    """Its environment; what `up` starts there is down again behind it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    own = {"LAKEREC_STATE": str(place / "state"), "LAKEREC_PORT": port, "LAKEREC_SCHEDULES": schedules}
    kept = {name: value for name, value in os.environ.items() if name != "PYSPARK_GATEWAY_PORT"}
    known = kept | own | {"LAKEREC_HOME": str(ROOT)}
    try:
        yield known
    finally:
        subprocess.run([ROOT / "scripts" / "down.sh"], env=known, check=True)


def up(known: dict[str, str], shop: Shop) -> None:
    """Start what does not run."""
    assert shop.config
    called(known | {"CONFIG": str(shop.folder / "config.yaml")}, "up.sh")


def called(known: dict[str, str], script: str, *words: str) -> str:
    """What a script says, which ends well."""
    command = [ROOT / "scripts" / script, *words]
    done = subprocess.run(command, env=known, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def asked(known: dict[str, str], path: str, change: dict[str, Any] | None = None) -> Any:
    """The API's answer; of a PATCH where there is something to change."""
    file = Path(known["LAKEREC_STATE"]) / "airflow" / "simple_auth_manager_passwords.json.generated"
    login = {"username": "admin", "password": json.loads(file.read_text())["admin"]}
    token = _answer(known, "auth/token", "POST", login)["access_token"]
    return _answer(known, f"api/v2/{path}", "PATCH" if change else "GET", change, token)


def _answer(known: dict[str, str], path: str, method: str, body: dict[str, Any] | None, token: str = "") -> Any:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    url, data = f"http://127.0.0.1:{known['LAKEREC_PORT']}/{path}", json.dumps(body).encode() if body else None
    with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=60) as response:
        return json.load(response)
