"""A project whose spark-submit only says how it would end."""

from __future__ import annotations

from pathlib import Path

import pytest

FAKE = """#!/bin/sh
[ "$FAKE_CODE" = sleep ] && { setsid sleep 300 & wait; }
printf "%s\\n" "${FAKE_WORDS:-the last words of application_1_1}"
exit "$FAKE_CODE"
"""


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """An AIRFLOW_HOME, and a project whose spark-submit says FAKE_WORDS and exits with FAKE_CODE."""
    folder = tmp_path_factory.mktemp("airflow")
    binary = folder / ".venv" / "bin" / "spark-submit"
    binary.parent.mkdir(parents=True)
    binary.write_text(FAKE)
    binary.chmod(0o755)
    return folder
