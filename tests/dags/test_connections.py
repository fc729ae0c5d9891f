"""A password of Airflow's reaches the job's environment, and nothing else: no template, command line or log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.dags.test_dags import PYTHON, drive

SECRET = "tOps/Ecret@"
URI = "postgres://ann:tOps%2FEcret%40@127.0.0.1:5432/serving?sslmode=require"
CONNECTION = json.dumps(
    {
        "conn_type": "postgres",
        "login": "ann",
        "password": SECRET,
        "host": "127.0.0.1",
        "port": 5432,
        "schema": "serving",
        "extra": {"sslmode": "require"},
    }
)
# What was submitted, and what the job would find in its environment.
FAKE = """#!/bin/sh
printf '%s' "$LAKEREC_SERVING_URI" > "$LAKEREC_HOME/found"
printf '%s ' "$@" > "$LAKEREC_HOME/submitted"
exit "$FAKE_CODE"
"""

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-airflow: run make install")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    binary = tmp_path / ".venv" / "bin" / "spark-submit"
    binary.parent.mkdir(parents=True)
    binary.write_text(FAKE)
    binary.chmod(0o755)
    return tmp_path


def test_a_connection_reaches_the_job_and_no_command_or_log(home: Path) -> None:
    told = drive(home, "execute", [0], LAKEREC_HOME=str(home), AIRFLOW_CONN_LAKEREC_SERVING=CONNECTION)
    assert list(told["0"]) == ["bronze.events"]
    assert (home / "found").read_text() == URI
    assert "tOps" not in (home / "submitted").read_text()
    logs = [file.read_bytes() for file in home.rglob("*") if file.is_file() and file.name != "found"]
    assert not any(b"tOps" in log for log in logs)


def test_without_a_connection_the_workers_own_variable_holds(home: Path) -> None:
    drive(home, "execute", [0], LAKEREC_HOME=str(home), LAKEREC_SERVING_URI=URI)
    assert (home / "found").read_text() == URI
    assert "tOps" not in (home / "submitted").read_text()


def test_no_rendered_template_has_a_secret(home: Path) -> None:
    secrets = {"AIRFLOW_CONN_LAKEREC_SERVING": CONNECTION, "LAKEREC_SERVING_URI": URI, "LAKEREC_USER_KEY": SECRET}
    found = json.dumps(drive(home, "load", LAKEREC_HOME=str(home), **secrets))
    assert "publish_recommendations" in found and "tOps" not in found
