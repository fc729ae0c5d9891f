"""Secrets of Airflow's connections for the one process that needs them: in no template, no command and no log."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowNotFoundException

# The connection whose URI a job finds in an environment variable; without it the worker's own variable holds.
VARIABLES = {"LAKEREC_SERVING_URI": "lakerec_serving"}


@contextmanager
def secrets() -> Iterator[None]:
    """The environment with the URI of each connection that there is, and as it was behind it."""
    before = dict(os.environ)
    for variable, connection in VARIABLES.items():
        with suppress(AirflowNotFoundException):
            os.environ[variable] = Connection.get(connection).get_uri()
    try:
        yield
    finally:
        for variable in VARIABLES:
            os.environ.pop(variable, None)
        os.environ |= {name: before[name] for name in VARIABLES if name in before}
