"""Jobs as processes of their own, and how they are ended: what the tests of faults and of clusters share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

from tests.conftest import DAY, ROOT, Shop, Start, day_after


def environment() -> dict[str, str]:
    """This process's, without the gateway of its Spark session."""
    return {name: value for name, value in os.environ.items() if name != "PYSPARK_GATEWAY_PORT"}


def starting() -> Iterator[Start]:
    """What starts a process whose output goes to a file; whatever the test does, each ends with it."""
    begun: list[subprocess.Popen] = []

    def start(command: list[str], told: Path, **known: str) -> subprocess.Popen:
        options: dict[str, Any] = {"stderr": subprocess.STDOUT, "start_new_session": True}
        with told.open("w") as output:
            begun.append(subprocess.Popen(command, stdout=output, env=environment() | known, **options))
        return begun[-1]

    yield start
    for process in reversed(begun):
        end(process)


def session(process: subprocess.Popen) -> list[int]:
    """The processes of a process's session: Spark's Python processes leave the group, but not the session."""
    found = []
    for pid in (int(each.name) for each in Path("/proc").glob("[0-9]*")):
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) == process.pid:
                found.append(pid)
    return found


def end(process: subprocess.Popen) -> None:
    """End a process and its session."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    kill(process)


def kill(process: subprocess.Popen, whole: bool = True) -> None:
    """Kill -9 a process, and all of its session where it is to be `whole`; wait for the process alone."""
    for pid in session(process) if whole else [process.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def job_command(shop: Shop, step: str, begin: date = DAY, days: int = 1) -> list[str]:
    """jobs/<step>.py over a window; its configuration is written."""
    assert shop.config
    file, window = ROOT / "jobs" / f"{step}.py", ["--start", str(begin), "--end", str(begin + (day_after(days) - DAY))]
    return [sys.executable, str(file), "--config", str(shop.folder / "config.yaml"), *window]


def wait_until(
    ready: Callable[[], Any], process: subprocess.Popen | None = None, seconds: float = 240, every: float = 0.002
) -> Any:
    """What a condition says once it holds, asked every so many seconds; None where the process ended before it did."""
    until = time.monotonic() + seconds
    while not (found := ready()):
        if process is not None and process.poll() is not None:
            return None
        assert time.monotonic() < until, f"waited {seconds} s in vain"
        time.sleep(every)
    return found


def ended(start: Start, shop: Shop, step: str, days: int, code: int = 0) -> str:
    """A job run to its end, which has this exit code; what it printed."""
    process = start(job_command(shop, step, days=days), file := shop.folder / "out.txt")
    found = process.wait(500)
    assert found == code, file.read_text()[-5000:]
    return file.read_text()


def said(text: str, name: str) -> str:
    """What follows the name of an error at the beginning of a line: the message that a job ends with."""
    _, found, message = text.rpartition(f"\n{name}: ")
    assert found, text[-5000:]
    return message
