"""make audit: what is known of pinned packages, and what is not, with a database that a test serves on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAULT = {
    "id": "TEST-1",
    "summary": "a fault",
    "affected": [
        {
            "package": {"name": "jinja2", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "3.0"}]}],
        }
    ],
}


class Database(BaseHTTPRequestHandler):
    """OSV's answers: one package has a fault."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"vulns": [FAULT]} if asked["package"]["name"] == "jinja2" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def database() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Database)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/query"
    server.shutdown()
    server.server_close()


def audit(folder: Path, pins: str, url: str) -> subprocess.CompletedProcess[str]:
    file = folder / "pins.txt"
    file.write_text(pins)
    command = [sys.executable, str(ROOT / "scripts/audit.py"), str(file)]
    return subprocess.run(command, env={"LAKEREC_OSV_URL": url}, capture_output=True, text=True, timeout=120)


def test_a_known_fault_is_named_with_the_release_that_mends_it(tmp_path: Path, database: str):
    done = audit(tmp_path, "jinja2==2.0\nsix==1.16.0\n", database)
    assert done.returncode == 1
    assert "jinja2 2.0: TEST-1, mended by 3.0" in done.stdout and "2 packages, 1 known faults" in done.stdout


def test_none_is_a_success(tmp_path: Path, database: str):
    done = audit(tmp_path, "six==1.16.0\n", database)
    assert (done.returncode, done.stdout) == (0, "pins.txt: 1 packages, 0 known faults\n")


def test_a_database_that_does_not_answer_is_no_success_and_no_fault(tmp_path: Path):
    done = audit(tmp_path, "six==1.16.0\n", "http://127.0.0.1:1/query")
    assert done.returncode == 3 and done.stdout == ""
    assert "pins.txt: NOT AUDITED, the database of faults did not answer" in done.stderr
