"""A run is followed through hiccups of Airflow: no answer, a server's errors, a token that has ended."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT
from tests.dags.test_dags import PYTHON

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-airflow: run make install")
RUN = "manual__2026-03-02T04:00:00+00:00"


@dataclass
class Airflow:
    """What the server has been asked, and what befalls whoever asks for a run that was triggered."""

    end: str = "success"
    trouble: list[Any] = field(default_factory=list)  # of the next questions for the run: a status, or None: no answer
    lost: bool = False  # the answer to the trigger
    logins: int = 0
    valid: int = 1  # the token
    triggered: int = 0
    url: str = ""

    def answer(self, method: str, path: str, token: str | None) -> tuple[int | None, Any]:
        """Status and content for a request; no status where the line is cut."""
        if path == "/auth/token":
            self.logins += 1
            return 201, {"access_token": f"token-{self.logins}"}
        if method == "POST":
            self.triggered += 1
            return (None if self.lost else 200), {"dag_run_id": RUN}
        if "/dagRuns/" not in path:
            return 200, {"is_paused": False}
        if self.trouble:
            if (status := self.trouble.pop(0)) != 401:
                return status, {}
            self.valid += 1  # the first token has ended
        if token != f"Bearer token-{self.valid}":
            return 401, {"detail": "Invalid JWT token"}
        return self.told(path)

    def told(self, path: str) -> tuple[int, Any]:
        """What Airflow says of the run, and of its one task, whose log is gone."""
        if "/logs/" in path:
            return 404, {"detail": "no log"}
        if path.endswith("/taskInstances"):
            task = {"task_id": "ingest_events", "map_index": -1, "state": self.end, "try_number": 1}
            return 200, {"task_instances": [task], "total_entries": 1}
        return 200, {"state": self.end}


@contextmanager
def serving(airflow: Airflow) -> Iterator[Airflow]:
    """A server of these answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.partition("?")[0]
            status, content = airflow.answer(self.command, path, self.headers["Authorization"])
            self.close_connection = True
            if status is not None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        airflow.url = f"http://127.0.0.1:{server.server_port}"
        yield airflow
        server.shutdown()


def triggered(folder: Path, url: str, patience: float = 60) -> tuple[int, str]:
    """Exit code of scripts/trigger.py, and what it printed."""
    (folder / "passwords").write_text('{"admin": "secret"}')
    command = [str(PYTHON), str(ROOT / "scripts/trigger.py"), "reco_daily", "--url", url]
    command += ["--passwords", str(folder / "passwords"), "--patience", str(patience)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    return done.returncode, done.stdout


@pytest.mark.parametrize("trouble", [None, 503, 401], ids=["no answer", "an error of the server", "an old token"])
@pytest.mark.parametrize("end", ["success", "failed"])
def test_a_hiccup_behind_the_trigger_does_not_end_it(tmp_path: Path, trouble: int | None, end: str):
    with serving(Airflow(end, [trouble])) as airflow:
        code, told = triggered(tmp_path, airflow.url)
    assert (code, airflow.triggered) == (0 if end == "success" else 1, 1), told
    assert f"reco_daily: {end} after" in told and "no Airflow" not in told
    assert ("the log of ingest_events, try 1, cannot be read" in told) == (end == "failed")


@pytest.mark.parametrize("trouble", [None, 503, 403], ids=["no answer", "an error of the server", "refused"])
def test_a_run_that_goes_on_unseen_is_named_with_the_place_to_look(tmp_path: Path, trouble: int | None):
    with serving(Airflow(trouble=[trouble] * 100)) as airflow:
        code, told = triggered(tmp_path, airflow.url, patience=1)
    assert code == 3, told
    assert f"run {RUN} goes on" in told and "no Airflow" not in told
    assert f"look at {airflow.url}/dags/reco_daily/runs/manual__2026-03-02T04%3A00%3A00%2B00%3A00" in told


def test_a_trigger_that_is_not_answered_may_have_started_a_run_and_is_not_sent_again(tmp_path: Path):
    with serving(Airflow(lost=True)) as airflow:
        code, told = triggered(tmp_path, airflow.url)
    assert (code, airflow.triggered) == (3, 1), told
    assert "whether a run was started is not known" in told and f"look at {airflow.url}/dags/reco_daily/runs" in told


def test_where_no_airflow_is_it_says_so_at_once(tmp_path: Path):
    code, told = triggered(tmp_path, "http://127.0.0.1:1")
    assert code == 2 and "no Airflow at http://127.0.0.1:1" in told and "run make up" in told
