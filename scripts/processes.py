"""Long-running processes by name, each in a session of its own, so that all its descendants can be ended.

python processes.py FOLDER start NAME COMMAND...   does nothing where it runs already
python processes.py FOLDER alive NAME              exit code 0 where it runs
python processes.py FOLDER stop                    ends all, with descendants, also after a crash

FOLDER/NAME holds the process id and its start time, FOLDER/NAME.log the output.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

STOP_SECONDS = 15  # Airflow's scheduler waits a few seconds for its workers


def start(folder: Path, name: str, command: list[str]) -> None:
    """Start the command detached from this terminal, unless the process of this name runs."""
    if leader(folder / name) is not None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    end(session(folder / name))  # what a crashed one left behind
    with open(folder / f"{name}.log", "ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, close_fds=True
        )
    (folder / name).write_text(f"{process.pid} {psutil.Process(process.pid).create_time()}")


def stop(folder: Path) -> None:
    """End every session recorded in the folder."""
    records = [path for path in sorted(folder.glob("*")) if path.suffix != ".log"]
    end([process for path in records for process in session(path)])
    for path in records:
        path.unlink()


def leader(record: Path) -> psutil.Process | None:
    """The recorded process, if it runs."""
    with suppress(FileNotFoundError, psutil.NoSuchProcess):
        pid, started = read(record)
        process = psutil.Process(pid)
        if same(process, started) and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def session(record: Path) -> list[psutil.Process]:
    """The processes of the recorded session. While one is left, no other process is given its id."""
    if not record.exists():
        return []
    pid, started = read(record)
    with suppress(psutil.NoSuchProcess):
        if not same(psutil.Process(pid), started):
            return []
    return [process for process in psutil.process_iter() if session_id(process.pid) == pid]


def read(record: Path) -> tuple[int, float]:
    """Process id and start time (seconds since 1970) of a record."""
    pid, started = record.read_text().split()
    return int(pid), float(started)


def same(process: psutil.Process, started: float) -> bool:
    """Whether this is the recorded process, and not another one with its id."""
    return abs(process.create_time() - started) < 1


def session_id(pid: int) -> int | None:
    """The session of a process, or None where it has ended."""
    with suppress(ProcessLookupError, PermissionError):
        return os.getsid(pid)
    return None


def end(members: list[psutil.Process]) -> None:
    """Ask them to end, wait STOP_SECONDS, kill."""
    for signal in ("terminate", "kill"):
        for process in members:
            with suppress(psutil.NoSuchProcess):
                getattr(process, signal)()
        _, members = psutil.wait_procs(members, timeout=STOP_SECONDS)


def main(arguments: list[str]) -> int:
    """The command line above."""
    match arguments:
        case [folder, "start", name, *command] if command:
            start(Path(folder), name, command)
        case [folder, "alive", name]:
            return 0 if leader(Path(folder) / name) else 1
        case [folder, "stop"]:
            stop(Path(folder))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
