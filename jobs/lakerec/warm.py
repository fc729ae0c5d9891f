"""A Spark driver that stays warm between the tasks of a day: `spark.reuse` of the YAML.

    python -m lakerec.warm step --state DIR NAME --config FILE --start DAY --end DAY
    python -m lakerec.warm stop --state DIR

`step` is what an Airflow task runs: a small client that starts the driver where there is none, hands it the step,
prints what it prints and ends with its exit code. One driver for each state folder takes a step at a time. It ends
after IDLE_SECONDS without one, and gives way to a new one where code, configuration or environment have changed.
A client that dies takes the driver with it, JVM first: a step that nobody waits for must not become a second writer.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the client has to start at once
    from pyspark.sql import SparkSession

HOME = Path(__file__).resolve().parents[2]
IDLE_SECONDS = 900
START_SECONDS = 60  # until a new driver answers; its Spark starts behind that
# Begins a line that is no output: TAKEN before the step, `exit CODE` behind it; OTHER from a driver of another state.
MARK = b"\0"
OTHER, TAKEN = "other", "taken"
TRIES = 3  # a driver that dies, one of another state, a new one
# What differs from task to task and says nothing of the driver: each step brings its own.
OF_ATTEMPT = ("LAKEREC_TASK", "LAKEREC_RUN_ID", "LAKEREC_LINEAGE_PARENT")
PREFIXES = ("LAKEREC_", "AWS_", "OPENLINEAGE_", "PG", "JAVA_HOME")  # of variables that a driver depends on
NAMED = re.compile(rb"""_env['"]?\s*:\s*['"]?([A-Za-z_]\w*)""")  # the YAML's variables: uri_env: SHOP_DB
COMPILES = 100  # days: the driver lives long, so the JVM compiles in full
BROKEN = 1


def main(argv: list[str]) -> int:
    """The command line above; the exit code of the step."""
    command, _, state, *rest = argv
    place = Place(Path(state))
    if command == "serve":
        return serve(place, rest[0])
    if command == "stop":
        return stop(place)
    try:
        return step(place, rest)
    except PermissionError as error:  # the state folder, or the YAML
        from lakerec.job import guarded

        return guarded(partial(_raise, error))


def _raise(error: Exception) -> None:
    raise error


class Place:
    """Where the driver of a state folder listens: short, because a socket's path must be, and the user's own."""

    def __init__(self, state: Path) -> None:
        known = hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:16]
        self.state = state
        self.folder = Path(tempfile.gettempdir()) / f"lakerec-{os.getuid()}"
        self.folder.mkdir(mode=0o700, exist_ok=True)
        if self.folder.stat().st_uid != os.getuid() or self.folder.stat().st_mode & 0o077:
            sys.exit(f"{self.folder} is not this user's alone: remove it, then run again")
        self.socket, self.lock = self.folder / f"{known}.sock", self.folder / f"{known}.lock"

    @property
    def log(self) -> Path:
        """What the driver and its JVM say between steps."""
        return self.state / "warm.log"


def step(place: Place, argv: list[str]) -> int:
    """Have a driver take a step; its exit code. A step that may have begun is never handed to another one."""
    config = Path(argv[argv.index("--config") + 1]).resolve()
    attempt = {name: os.environ.get(name, "") for name in OF_ATTEMPT}
    asked = {"argv": argv, "print": fingerprint(config), "attempt": attempt}
    word = ""
    for _ in range(TRIES):
        with connected(place, config) as line:
            word = relayed(line, asked)
        if word.startswith("exit "):
            return int(word.removeprefix("exit "))
        if word == TAKEN:
            break
    where = "in the middle of the step" if word == TAKEN else "before it took the step"
    print(f"the warm driver has ended {where}: see {place.log}", flush=True)
    return BROKEN


def relayed(line: socket.socket, asked: dict[str, Any]) -> str:
    """Ask the driver, and print what comes until its last word; that, or where it died TAKEN or nothing."""
    word = ""
    with suppress(ConnectionError):
        line.sendall(json.dumps(asked).encode() + b"\n")
        for text in line.makefile("rb"):
            if not text.startswith(MARK):
                sys.stdout.buffer.write(text)
                sys.stdout.flush()
            elif (word := text[1:].decode().strip()) != TAKEN:
                break
    return word


def fingerprint(config: Path) -> str:
    """What a driver must be started anew for: code, SQL, expectations, the YAML, the environment."""
    text = config.read_bytes()
    named = {name.decode() for name in NAMED.findall(text)}
    found = hashlib.sha256(text)
    for folder in ("jobs", "sql", "expectations"):
        for file in sorted((HOME / folder).rglob("*.*")):
            if file.suffix in (".py", ".sql", ".yaml"):
                known = file.stat()
                found.update(f"{file} {known.st_size} {known.st_mtime_ns}\n".encode())
    ours = (
        f"{k}={v}"
        for k, v in sorted(os.environ.items())
        if (k.startswith(PREFIXES) or k in named) and k not in OF_ATTEMPT
    )
    found.update("\n".join(ours).encode())
    return found.hexdigest()


@contextmanager
def connected(place: Place, config: Path) -> Iterator[socket.socket]:
    """A line to the driver, which is started where none answers."""
    deadline, process = time.monotonic() + START_SECONDS, None
    while True:
        line = socket.socket(socket.AF_UNIX)
        try:
            line.connect(str(place.socket))
            break
        except OSError:
            line.close()
        if process is None or process.poll() is not None:  # one that found the lock taken has ended
            process = started(place, config)
        if time.monotonic() > deadline:
            sys.exit(f"the warm driver did not start within {START_SECONDS} s: see {place.log}")
        time.sleep(0.2)
    with line:
        yield line


def started(place: Place, config: Path) -> subprocess.Popen[bytes]:
    """The driver as a process that outlives this task, and is none of those that end with it."""
    known = {name: value for name, value in os.environ.items() if name not in OF_ATTEMPT}
    command = [sys.executable, "-m", "lakerec.warm", "serve", "--state", str(place.state), str(config)]
    with place.log.open("ab") as log:
        return subprocess.Popen(
            command, env=known, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def stop(place: Place) -> int:
    """End the driver, if there is one, when it has done its step."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as line:
        line.connect(str(place.socket))
        relayed(line, {"argv": [], "print": ""})
    return 0


def serve(place: Place, config: str) -> int:
    """The driver: take steps until nobody asks for IDLE_SECONDS, or one ends in a fault of the code."""
    with place.lock.open("a") as lock, socket.socket(socket.AF_UNIX) as listener:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return 0  # another one answers
        place.socket.unlink(missing_ok=True)
        listener.bind(str(place.socket))
        listener.listen()
        listener.settimeout(IDLE_SECONDS)
        try:
            _serve(listener, Path(config))
        except TimeoutError:
            print("nobody has asked for long: the warm driver ends", flush=True)
        finally:
            place.socket.unlink(missing_ok=True)
    return 0


def _serve(listener: socket.socket, config: Path) -> None:
    """Start Spark, then take a step after another; a configuration that is wrong is the first client's to hear."""
    from lakerec.errors import LakerecError
    from lakerec.job import SPARK_IS_UP, private

    private()

    known, began = fingerprint(config), time.monotonic()
    try:
        spark = _session(config)
    except LakerecError as error:
        with listener.accept()[0] as line:
            line.sendall(f"{error.told}\n".encode() + MARK + f"exit {error.exit_code}\n".encode())
        return
    words = SPARK_IS_UP.format(time.monotonic() - began) + "\n"  # the first step waited for it
    try:
        _take_steps(listener, spark, known, words)
    finally:
        listener.close()  # a client that came now would wait in vain
        with suppress(Exception):  # a JVM that has died cannot stop
            spark.stop()


def _take_steps(listener: socket.socket, spark: SparkSession, known: str, words: str) -> None:
    """A step after another, until one is of another state, ends in a fault of the code, or loses the JVM."""
    from lakerec.errors import ProcessLostError

    goes_on = True
    while goes_on:
        with listener.accept()[0] as line:
            word, words = _answer(line, listener, spark, known, words), ""
            goes_on = word not in (OTHER, f"exit {BROKEN}", f"exit {ProcessLostError.exit_code}")
            if not goes_on:
                listener.close()  # before the word: the next client shall not wait in this one's queue
            with suppress(OSError):
                line.sendall(MARK + word.encode() + b"\n")


def _session(config: Path) -> SparkSession:
    from lakerec.config import load_config
    from lakerec.job import check_expressions, import_ahead
    from lakerec.session import build_session

    import_ahead("great_expectations")
    read = load_config(config)
    spark = build_session(read, "lakerec warm", COMPILES)
    check_expressions(read, spark)
    return spark


def _answer(line: socket.socket, listener: socket.socket, spark: SparkSession, known: str, words: str) -> str:
    """Take the step that a client asks for, behind some words to it; how it ended."""
    asked = json.loads(line.makefile("rb").readline() or b"{}")
    if asked.get("print") != known:
        return OTHER
    try:
        line.sendall(MARK + f"{TAKEN}\n".encode())  # from here on the client hands the step to no other driver
    except OSError:
        return ""  # it died while it waited
    os.environ.update(asked["attempt"])
    with _outputs_to(line), _watched(line, listener, spark):
        print(words, end="", flush=True)
        return f"exit {_taken(asked['argv'], spark)}"


def _taken(argv: list[str], spark: SparkSession) -> int:
    """Run a step; its exit code, BROKEN with a stack trace for a fault of the code."""
    import traceback

    from lakerec.config import load_config
    from lakerec.job import body, carry_out, give_back, guarded, parsed

    name, *rest = argv
    try:
        given = parsed(name, rest)
        return guarded(lambda: carry_out(spark, load_config(given.config, given.lake), name, body(name), given))
    except (Exception, SystemExit):
        traceback.print_exc()
        return BROKEN
    finally:
        give_back()


@contextmanager
def _outputs_to(line: socket.socket) -> Iterator[None]:
    """Standard output and error go to the client for as long as its step takes."""
    kept = [os.dup(number) for number in (1, 2)]
    for number in (1, 2):
        os.dup2(line.fileno(), number)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)


@contextmanager
def _watched(line: socket.socket, listener: socket.socket, spark: SparkSession) -> Iterator[None]:
    """End this process, JVM first, if the client goes while its step runs."""
    done = threading.Event()

    def watch() -> None:
        try:
            gone = not line.recv(1, socket.MSG_PEEK)  # a client says nothing more: it dies, or this side closes
        except OSError:  # it died with output that it had not read
            gone = True
        if gone and not done.is_set():
            _end(listener, spark)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _end(listener: socket.socket, spark: Any) -> None:
    """The JVM first: while it lives it may commit, and the lease falls with this process.

    By the system: one that hangs would answer no call. Who asks meanwhile shall not wait here, but start another.
    """
    listener.close()
    with suppress(Exception):
        jvm = spark.sparkContext._gateway.proc
        jvm.kill()
        jvm.wait(timeout=10)
    os._exit(BROKEN)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
