"""A PostgreSQL for the tests of jobs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lakerec import postgres


@pytest.fixture(scope="session")
def server() -> Iterator[Path]:
    """The folder of an embedded server that runs; not one of pytest's, which another pytest closes to its user."""
    with tempfile.TemporaryDirectory(prefix="lakerec-") as place:
        folder = Path(place) / "postgres"
        postgres.start(folder)
        yield folder
        postgres.stop(folder)
