"""Alerts to a real web server and a real mail server, by the connections of the environment."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_string
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import yaml
from tests.dags.test_dags import PYTHON, drive

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-airflow: run make install")
FAILED = "Cannot execute: spark-submit score_candidates.py. Error code is: 13."


class Web(BaseHTTPRequestHandler):
    """Keeps what was posted; answers with the server's status."""

    def do_POST(self) -> None:
        """Keep the JSON."""
        self.server.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))  # type: ignore[attr-defined]
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.end_headers()


class Mail(socketserver.StreamRequestHandler):
    """As much of SMTP as a client without login needs; keeps the messages."""

    def handle(self) -> None:
        """One conversation."""
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline().decode().strip():
            word = line.split()[0].upper()
            if word == "DATA":
                self.wfile.write(b"354 go on\r\n")
                told = iter(self.rfile.readline, b".\r\n")
                self.server.got.append(message_from_string(b"".join(told).decode()))  # type: ignore[attr-defined]
            self.wfile.write(b"221 bye\r\n" if word == "QUIT" else b"250 ok\r\n")


@contextmanager
def serving(server: Any) -> Iterator[Any]:
    server.got, server.status = [], 200
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def web() -> Iterator[Any]:
    with serving(HTTPServer(("127.0.0.1", 0), Web)) as server:
        yield server


@pytest.fixture
def mail() -> Iterator[Any]:
    with serving(socketserver.TCPServer(("127.0.0.1", 0), Mail)) as server:
        yield server


def alerted(home, tmp_path, web, mail, message: str) -> None:
    deployment = tmp_path / "shop.yaml"
    deployment.write_text(yaml.safe_dump({"alerts": {"email": ["oncall@shop.example"], "webhook": "lakerec_alerts"}}))
    hook = {"conn_type": "http", "host": f"http://127.0.0.1:{web.server_port}/hook"}
    smtp = {"conn_type": "smtp", "host": "127.0.0.1", "port": mail.server_address[1]}
    smtp["extra"] = {"disable_ssl": True, "disable_tls": True, "from_email": "lake@shop.example", "retry_limit": 1}
    drive(
        home,
        "alerted",
        message,
        AIRFLOW_VAR_LAKEREC_CONFIG=str(deployment),
        AIRFLOW_CONN_LAKEREC_ALERTS=json.dumps(hook),
        AIRFLOW_CONN_SMTP_DEFAULT=json.dumps(smtp),
    )


def body(message: Message) -> str:
    (text,) = (part.get_payload(decode=True) for part in message.walk() if not part.is_multipart())
    return text.decode()


def test_a_failure_and_a_late_day_reach_mail_and_webhook_with_the_page_to_read(home, tmp_path, web, mail) -> None:
    alerted(home, tmp_path, web, mail, FAILED)
    failed, late = (one["text"] for one in web.got)  # the backfill's late day is told to nobody
    assert failed == (
        f"reco_daily.score_candidates failed\nrun run-1\n{FAILED}\nlog http://ui/log\n"
        "what to do: docs/operations.md#modelerror"
    )
    assert late == (
        "reco_daily is late\nrun scheduled-2 should have ended by 2024-07-02T06:00:00Z\n"
        "what to do: docs/operations.md#reco_daily-is-late"
    )
    assert [one["Subject"] for one in mail.got] == [
        "lakerec: reco_daily.score_candidates failed",
        "lakerec: reco_daily is late",
    ]
    assert mail.got[0]["To"] == "oncall@shop.example"
    assert "docs/operations.md#modelerror" in body(mail.got[0])


def test_a_failure_without_a_named_error_is_told_with_its_exit_code(home, tmp_path, web, mail) -> None:
    alerted(home, tmp_path, web, mail, "Cannot execute: spark-submit a.py. Error code is: 137.\nits last words")
    lines = web.got[0]["text"].splitlines()
    assert lines[2] == "its last words (exit code 137)"
    assert lines[4] == "what to do: docs/operations.md#a-task-that-ends-without-a-named-error"


def test_a_webhook_that_refuses_does_not_keep_the_mail_back(home, tmp_path, web, mail) -> None:
    web.status = 500
    alerted(home, tmp_path, web, mail, "no answer <b>&</b>")
    assert (len(web.got), len(mail.got)) == (2, 2)
    assert "no answer &lt;b&gt;&amp;&lt;/b&gt;" in body(mail.got[0])
