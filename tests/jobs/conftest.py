"""A PostgreSQL for the tests of jobs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lakerec import postgres


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of an embedded server that runs."""
    folder = tmp_path_factory.mktemp("postgres")
    postgres.start(folder)
    yield folder
    postgres.stop(folder)
