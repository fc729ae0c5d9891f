"""Faults of the machine have names: what Spark, Python and libraries throw becomes an error that says what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from py4j.protocol import Py4JError, Py4JNetworkError
from tests.conftest import SETTINGS

from lakerec.config import Config
from lakerec.errors import ContractError, DiskFullError, ModelError, ProcessLostError
from lakerec.faults import named, told

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def caused(error: Exception, cause: Exception, said: bool = True) -> Exception:
    """An error raised while another one was dealt with; `said`: by `raise ... from`."""
    try:
        try:
            raise cause
        except Exception as first:
            if said:
                raise error from first
            raise error from None
    except Exception as found:
        return found


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        RuntimeError("Job aborted\n\tat x.y.Z\nCaused by: java.io.IOException: No space left on device\n\tat a.b.C"),
        caused(ModelError("cannot write"), FULL),
        caused(ContractError("an expectation failed"), FULL, said=False),
        RuntimeError("I/O error: Disk quota exceeded (os error 122)"),
        RuntimeError("(sqlite3.OperationalError) database or disk is full"),
    ],
    ids=["python", "jvm", "cause", "hidden cause", "quota", "sqlite"],
)
def test_a_full_disk_is_named_with_the_room_that_is_left(error: Exception, tmp_path: Path) -> None:
    found = named(error, [str(tmp_path), "/nowhere"])
    assert isinstance(found, DiskFullError)
    cause, told = str(found).splitlines()
    assert "full" in cause or "No space" in cause or "quota" in cause
    assert told.startswith(f"{tmp_path} has ") and " MB free" in told and "/nowhere" not in told


def test_the_disk_of_the_models_is_named_where_it_is_not_the_lakes(tmp_path: Path) -> None:
    spark = {"properties": {"spark.local.dir": "/dev/shm"}}
    given = {"lake": "s3a://shop/lake", "files": str(tmp_path), "spark": spark}
    with pytest.raises(DiskFullError) as caught, told(Config.model_validate(SETTINGS | given)):
        raise FULL
    assert f"{tmp_path} has " in str(caught.value) and "/dev/shm has " in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("org.apache.spark.SparkException: Python worker exited unexpectedly (crashed)"),
        RuntimeError("ExecutorLostFailure (executor 1 exited caused by one of the running tasks)"),
        Py4JNetworkError("Answer from Java side is empty"),
        Py4JError("An error occurred while calling o61.save"),
    ],
    ids=["worker", "executor", "no answer", "broken off"],
)
def test_a_process_that_died_is_named(error: Exception) -> None:
    found = named(error, [])
    assert isinstance(found, ProcessLostError) and str(error)[:20] in str(found)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("full of errors"),
        ModelError("the model is missing"),
        Py4JError("An error occurred while calling o61.nothing. Trace:\nMethod nothing([]) does not exist"),
    ],
)
def test_what_is_no_fault_of_the_machine_keeps_its_name(error: Exception) -> None:
    assert named(error, []) is None
