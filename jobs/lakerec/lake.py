"""The only reader and writer of Delta: pinned reads, whole-day replacement, one lease per lake, the ledger of runs."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
from delta import exceptions
from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema

from lakerec import __version__
from lakerec.config import Config
from lakerec.errors import (
    ConfigError,
    ConflictError,
    ConnectionFailedError,
    ContractError,
    LakeBusyError,
    StaleRunError,
)
from lakerec.files import files
from lakerec.tables import Table, table

RUNS = "ops.runs"
# How far back in a table's history a slow run looks for a newer one.
LOOK_BACK = 60
# Seconds in which the JVM of a killed run is sure to have ended.
DYING = 60
# Any number that is the lake's own: the key of the advisory lock in PostgreSQL.
LOCK_SPACE = 0x1A6E
COMMIT = re.compile(r"^(\d{20})\.json$")
CONFLICTS = tuple(getattr(exceptions, name) for name in exceptions.__all__)  # they have no root of their own


@dataclass(frozen=True)
class Window:
    """Days [start, end)."""

    start: date
    end: date

    @property
    def days(self) -> int:
        """How many days it has."""
        return (self.end - self.start).days

    def where(self, column: str) -> str:
        """The window as an SQL predicate on a date column."""
        return f"{column} >= '{self.start}' AND {column} < '{self.end}'"

    def overlaps(self, other: Window) -> bool:
        """Whether the two have a day in common."""
        return self.start < other.end and other.start < self.end


@dataclass
class Run:
    """One run of one job: what it is, what it read and what it wrote."""

    run_id: str
    job: str
    window: Window
    config_hash: str
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    inputs: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, int] = field(default_factory=dict)
    # Counts per ingest day that go to ops.runs once the table is committed: a commit carries them, so that the
    # next run can write them where this one dies in between.
    owed: dict[date, dict[str, int]] = field(default_factory=dict)
    # What every row of ops.runs says beside the counts.
    notes: dict[str, str] = field(default_factory=dict)

    def metadata(self, replaced: Window | None = None) -> str:
        """What each commit carries in `userMetadata`: the run, its window, the versions it read, the days replaced."""
        window = {"start": str(self.window.start), "end": str(self.window.end)}
        fields = {"run_id": self.run_id, "job": self.job, "config_hash": self.config_hash, "inputs": self.inputs}
        days = {"replaced": [str(replaced.start), str(replaced.end)]} if replaced else {}
        owed = {"owed": {str(day): counts for day, counts in self.owed.items()}} if self.owed else {}
        return json.dumps(fields | window | days | owed, sort_keys=True)

    def row(self, status: str, counts: dict[str, Any], day: date | None = None) -> dict[str, Any]:
        """The run as a row of ops.runs (of one ingest day, where the counts are by day)."""
        known = {name: counts.get(name) for name in ("read", "written", "duplicate", "quarantined", "bad")}
        details = self.notes | {k: str(v) for k, v in counts.items() if k not in known}
        return {
            "run_id": self.run_id,
            "job": self.job,
            "ingest_date": day,
            "window_start": self.window.start,
            "window_end": self.window.end,
            "status": status,
            **{f"rows_{name}": value for name, value in known.items()},
            "details": details,
            "inputs": dict(self.inputs),
            "outputs": dict(self.outputs),
            "config_hash": self.config_hash,
            "code_version": __version__,
            "started_at": self.started_at,
            "seconds": (datetime.now(UTC) - self.started_at).total_seconds(),
        }

    def rows(self, status: str, counts: Mapping[date, Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The run as a row of ops.runs for each ingest day; one without a day where there is none."""
        by_day = [self.row(status, dict(found), day) for day, found in sorted(counts.items())]
        return by_day or [self.row(status, {"read": 0, "written": 0})]


class Lake:
    """A lake as one run sees it: every table it reads stays at the version of its first reading."""

    def __init__(self, spark: SparkSession, config: Config, run: Run) -> None:
        self.spark = spark
        self.config = config
        self.run = run
        # Raises where a lease that can be lost was lost: a file's cannot, a connection's can.
        self._still_held: Callable[[], None] = lambda: None

    def path(self, name: str) -> str:
        """Where a table lives: LAKE/<layer>/<table>."""
        return f"{self.config.lake.rstrip('/')}/{table(name).path}"

    def exists(self, name: str) -> bool:
        """Whether the table was ever written."""
        return self.version(name) is not None

    def version(self, name: str) -> int | None:
        """The newest version of a table; None where it does not exist."""
        return max(self._versions(name), default=None)

    def history(self, name: str, limit: int = 1) -> list[dict[str, Any]]:
        """The newest commits of a table, newest first: version and the run's metadata (nothing of a foreign commit).

        Read off the log's own files (Delta protocol, "Delta Log Entries"): DESCRIBE HISTORY is a Spark job each time.
        """
        return list(self._commits(name, limit))

    def _commits(self, name: str, limit: int) -> Iterator[dict[str, Any]]:
        for version in sorted(self._versions(name), reverse=True)[:limit]:
            yield {"version": version, **self._commit_info(name, version)}

    def writer(self, name: str, version: int) -> str:
        """The run that made a version; empty where its commit is gone or says nothing."""
        known = self._commit_info(name, version) if version in self._versions(name) else {}
        return str(known.get("run_id", ""))

    def _versions(self, name: str) -> list[int]:
        return [int(found.group(1)) for found in map(COMMIT.match, files(self.spark).names(self._log(name))) if found]

    def _commit_info(self, name: str, version: int) -> dict[str, Any]:
        first = json.loads(files(self.spark).first_line(self._commit_file(name, version), "UTF-8") or "{}")
        return _run_metadata(first.get("commitInfo", {}).get("userMetadata"))

    def _commit(self, name: str, version: int) -> list[str]:
        """The actions of a commit, a line of JSON each."""
        return files(self.spark).text(self._commit_file(name, version)).splitlines()

    def _commit_file(self, name: str, version: int) -> str:
        return f"{self._log(name)}/{version:020d}.json"

    def _log(self, name: str) -> str:
        return f"{self.path(name)}/_delta_log"

    def rows_added(self, name: str, version: int) -> dict[date, int]:
        """How many rows a commit of this run added to each day of a table partitioned by day, by the log's own counts.

        Empty where the version is another run's: this one had nothing to change.
        """
        if self.writer(name, version) != self.run.run_id:
            return {}
        column = table(name).partition[0]
        found: dict[date, int] = {}
        for line in self._commit(name, version):
            if added := json.loads(line).get("add"):
                day = date.fromisoformat(added["partitionValues"][column])
                found[day] = found.get(day, 0) + int(json.loads(added["stats"])["numRecords"])
        return found

    def read(self, name: str, version: int | None = None) -> DataFrame:
        """A table at the version this run first saw (or at the one given); empty where it does not exist."""
        pinned = self.run.inputs.get(name) if version is None else version
        pinned = self.version(name) if pinned is None else pinned
        if pinned is None:
            return self.spark.createDataFrame([], table(name).schema())
        if version is None:
            self.run.inputs[name] = pinned
        return self.spark.read.format("delta").option("versionAsOf", pinned).load(self.path(name))

    def replace(self, name: str, rows: DataFrame, days: Window | None = None, where: str | None = None) -> int:
        """Replace the rows of `days` (or of an SQL predicate; of the whole table) in one commit; its version.

        Raises ContractError where a column of the DDL is missing, StaleRunError where a newer run came first.
        """
        spec = table(name)
        condition = where or (days.where(spec.partition[0]) if days else None)
        self._refuse_stale(name, days)
        writer = _conformed(rows, spec).write.format("delta").mode("overwrite")
        if condition:
            writer = writer.option("replaceWhere", condition)
        return self._save(writer, spec, days)

    def append(self, name: str, rows: DataFrame) -> int:
        """Append rows in one commit; the table's new version."""
        spec = table(name)
        return self._save(_conformed(rows, spec).write.format("delta").mode("append"), spec)

    def append_rows(self, name: str, rows: list[dict[str, Any]]) -> int:
        """Append rows given as dictionaries by column name (missing columns are null)."""
        spec = table(name)
        return self.append(name, self._frame(spec, rows))

    def replace_rows(self, name: str, rows: list[dict[str, Any]], where: str) -> int:
        """Replace the rows of a predicate by rows given as dictionaries by column name."""
        spec = table(name)
        return self.replace(name, self._frame(spec, rows), where=where)

    def _frame(self, spec: Table, rows: list[dict[str, Any]]) -> DataFrame:
        """Dictionaries as a DataFrame by way of Arrow: a list of tuples would start a Python worker."""
        whole = [{column: row.get(column) for column in spec.column_names} for row in rows]
        arrow = pa.Table.from_pylist(whole, schema=to_arrow_schema(spec.schema(), timezone="UTC"))
        return self.spark.createDataFrame(arrow, spec.schema()).coalesce(1)

    def tidy(self, name: str) -> int:
        """Compact a table's small files and remove files older than a week that no version needs; files compacted."""
        found = DeltaTable.forPath(self.spark, self.path(name))
        compacted = found.optimize().executeCompaction().select("metrics.numFilesRemoved").first()
        found.vacuum()
        return int(compacted["numFilesRemoved"]) if compacted else 0

    def _save(self, writer: Any, spec: Table, days: Window | None = None) -> int:
        if spec.partition:
            writer = writer.partitionBy(*spec.partition)
        self._still_held()
        try:
            writer.option("userMetadata", self.run.metadata(days)).save(self.path(spec.name))
        except CONFLICTS as error:
            raise ConflictError(
                f"{self.path(spec.name)}: another program has committed while this run wrote, without the lake's "
                f"lease; this run's rows are not in it ({_first_line(error)}). Run the job again, and let that program "
                "write when no job runs"
            ) from None
        self.run.outputs[spec.name] = version = self._saved(spec.name)
        return version

    def _saved(self, name: str) -> int:
        """The version of this run's last commit, behind which a foreign program's may lie.

        The table's newest version where there is none: Delta makes no commit of what changes nothing.
        """
        for commit in self._commits(name, LOOK_BACK):
            if commit.get("run_id") == self.run.run_id:
                return int(commit["version"])
        return max(self._versions(name))

    def _refuse_stale(self, name: str, days: Window | None) -> None:
        for commit in self.history(name, LOOK_BACK):
            newer = [t for t, v in commit.get("inputs", {}).items() if v > self.run.inputs.get(t, v)]
            if newer and _touches(commit, days):
                raise StaleRunError(
                    f"{self.run.job}: run {commit.get('run_id')} has written {name} from newer versions of "
                    f"{', '.join(newer)} than this run read; nothing was overwritten. Run the job again."
                )

    def record(self, rows: list[dict[str, Any]]) -> None:
        """Append rows of `Run.row` to ops.runs: the last commit of a run."""
        self.append_rows(RUNS, rows)

    def complete(self, name: str) -> None:
        """Write the ops.runs row of a run of this job that committed `name` and died before it could record itself.

        The commits of others (upkeep, foreign writers) that lie above it are passed over.
        """
        last = next((found for found in self._commits(name, LOOK_BACK) if found.get("job") == self.run.job), {})
        if not last or last["run_id"] == self.run.run_id:
            return
        if last["run_id"] in {commit.get("run_id") for commit in self.history(RUNS, LOOK_BACK)}:
            return
        if self.exists(RUNS):
            ledger = self.spark.read.format("delta").load(self.path(RUNS))
            if ledger.where(F.col("run_id") == last["run_id"]).limit(1).count():
                return
        window = Window(date.fromisoformat(last["start"]), date.fromisoformat(last["end"]))
        dead = Run(last["run_id"], last["job"], window, last["config_hash"], inputs=last["inputs"])
        dead.outputs[name] = last["version"]
        told = {"completed_by": self.run.run_id}
        owed = {date.fromisoformat(day): counts | told for day, counts in last.get("owed", {}).items()}
        self.append_rows(RUNS, dead.rows("ok", owed) if owed else [dead.row("ok", told)])

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Hold the lake's only lease; wait as long as the configuration says, then raise LakeBusyError."""
        settings = self.config.lease
        if settings.uri_env:
            uri = os.environ.get(settings.uri_env, "")
            with _postgres_lease(uri, self.config.lake, settings.wait_seconds) as self._still_held:
                yield
        elif "://" in self.config.lake:
            raise ConfigError(f"the lake {self.config.lake} is no local folder: set lease.uri_env to a PostgreSQL")
        else:
            folder = Path(self.config.lake)
            with (
                file_lease(folder, self.run.job, self.run.run_id, settings.wait_seconds),
                _jvm_lease(self.spark, folder),
            ):
                yield

    def local_folder(self, relative: str) -> Path:
        """A folder of files below the lake on this machine's disk (the lake itself must be a local folder)."""
        if "://" in self.config.lake:
            raise ConfigError(f"model files need a lake in a local or mounted folder, not {self.config.lake}")
        return Path(self.config.lake) / relative


def _run_metadata(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _touches(commit: dict[str, Any], days: Window | None) -> bool:
    """Whether a commit replaced one of these days (a commit that does not say which may have)."""
    if days is None or "replaced" not in commit:
        return True
    start, end = map(date.fromisoformat, commit["replaced"])
    return days.overlaps(Window(start, end))


def _conformed(rows: DataFrame, spec: Table) -> DataFrame:
    """Exactly the columns of the DDL, in its order, cast to its types, with its comments."""
    missing = [name for name in spec.column_names if name not in rows.columns]
    extra = [name for name in rows.columns if name not in spec.column_names]
    if missing or extra:
        raise ContractError(f"{spec.name}: columns missing {missing}, not in the DDL {extra}")
    columns = (F.col(f"`{f.name}`").cast(f.dataType).alias(f.name, metadata=f.metadata) for f in spec.schema().fields)
    return rows.select(*columns)


@contextmanager
def file_lease(lake: Path, job: str, run_id: str, wait_seconds: int) -> Iterator[None]:
    """An exclusive lock on a file of the lake; the kernel frees it when its process dies, however it dies."""
    lake.mkdir(parents=True, exist_ok=True)
    with (lake / "_lease").open("a+") as file:
        deadline = time.monotonic() + wait_seconds
        while not _try_lock(file):
            if time.monotonic() >= deadline:
                file.seek(0)
                raise LakeBusyError(
                    f"the lake {lake} is held by {file.read().strip() or 'another run'}; "
                    f"waited {wait_seconds} s. Wait for it to end, or end it, and run again."
                )
            time.sleep(0.2)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        file.truncate(0)
        file.write(f"{job} (run {run_id}, process {os.getpid()}, since {since})")
        file.flush()
        yield


def _try_lock(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _jvm_lease(spark: SparkSession, lake: Path) -> Iterator[None]:
    """A lock of the JVM's own beside the lease: where Python alone was killed, its JVM may be about to commit."""
    jvm: Any = spark._jvm
    file = jvm.java.io.RandomAccessFile(str(lake / "_lease.jvm"), "rw")
    try:
        deadline = time.monotonic() + DYING
        while file.getChannel().tryLock() is None:
            if time.monotonic() >= deadline:
                raise LakeBusyError(
                    f"the Java process of a run that was killed still writes to the lake {lake}; waited {DYING} s. "
                    "Wait for it to end, or end it, and run again."
                )
            time.sleep(0.2)
        yield
    finally:
        file.close()


@contextmanager
def _postgres_lease(uri: str, lake: str, wait_seconds: int) -> Iterator[Callable[[], None]]:
    """A session-level advisory lock: PostgreSQL frees it when the connection of the driver goes.

    Yields what raises ConnectionFailedError where it has gone: another run may hold the lease by then.
    """
    if not uri:
        raise ConfigError("lease.uri_env names an environment variable that is not set")
    with _answering(lake), psycopg.connect(uri, autocommit=True, connect_timeout=10) as connection:
        connection.execute("SELECT set_config('lock_timeout', %s, false)", (f"{max(wait_seconds, 1)}s",))
        try:
            connection.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", (LOCK_SPACE, lake))
        except psycopg.errors.LockNotAvailable:
            raise LakeBusyError(f"the lake {lake} is held by another run; waited {wait_seconds} s") from None

        def still_held() -> None:
            with _answering(lake):
                connection.execute("SELECT 1")

        yield still_held


@contextmanager
def _answering(lake: str) -> Iterator[None]:
    """Raise ConnectionFailedError where the lease's PostgreSQL does not answer."""
    try:
        yield
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise ConnectionFailedError(
            f"the lease of {lake} cannot be had, or was lost, since its PostgreSQL does not answer ({error}); nothing "
            "was written without it. See to the server of lease.uri_env, then run again"
        ) from None


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
