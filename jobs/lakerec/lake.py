"""The only reader and writer of Delta: pinned reads, whole-day replacement, one lease per lake, the ledger of runs."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema

from lakerec import __version__
from lakerec.config import Config, Maintenance
from lakerec.errors import ConfigError, ContractError, LakeBusyError, StaleRunError
from lakerec.files import files
from lakerec.tables import Table, table

RUNS = "ops.runs"
# How far back in a table's history a slow run looks for a newer one.
LOOK_BACK = 60
# Any number that is the lake's own: the key of the advisory lock in PostgreSQL.
LOCK_SPACE = 0x1A6E
COMMIT = re.compile(r"^(\d{20})\.json$")
# Seconds between two tries of a run that waits for the file lease.
POLL = 0.2
# Below this OPTIMIZE merges a file with others of its partition (Spark reads such files one task each at the least).
SMALL_FILE = 16 * 2**20
# What a table keeps that does not say otherwise: files of replaced versions a week, commits 30 days.
DELTA_KEEPS = {
    "delta.deletedFileRetentionDuration": "interval 604800 seconds",
    "delta.logRetentionDuration": "interval 2592000 seconds",
}


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
        """How many rows a commit added to each day of a table partitioned by day, by the log's own counts."""
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

    def pin(self, names: Iterable[str]) -> None:
        """Read these tables at their newest versions from now on: under the lease, one state of the lake."""
        self.run.inputs |= {name: version for name in names if (version := self.version(name)) is not None}

    def tidy(self, name: str, kept: Maintenance) -> int:
        """Merge a table's small files, remove what no kept version needs, shorten its log; how many files were merged.

        A checkpoint has Delta remove the commits before it that are older than `log_days`; the newest always stays.
        """
        self._keep(name, kept)
        found = DeltaTable.forPath(self.spark, self.path(name))
        merged = found.optimize().executeCompaction().select("metrics.numFilesRemoved").first()
        found.vacuum()
        self._snapshot(name).deltaLog().checkpoint()
        return int(merged["numFilesRemoved"]) if merged else 0

    def _keep(self, name: str, kept: Maintenance) -> None:
        """Have the table's properties say how long Delta keeps what is replaced; a commit only where they differ."""
        seconds = dict(zip(DELTA_KEEPS, (kept.versions_days * 86400, kept.log_days * 86400), strict=True))
        wanted = {key: f"interval {int(value)} seconds" for key, value in seconds.items()}
        said = self._snapshot(name).metadata().configuration()
        held = {key: said.apply(key) if said.contains(key) else default for key, default in DELTA_KEEPS.items()}
        if held != wanted:
            pairs = ", ".join(f"'{key}' = '{text}'" for key, text in wanted.items())
            self.spark.sql(f"ALTER TABLE delta.`{self.path(name)}` SET TBLPROPERTIES ({pairs})")

    def _snapshot(self, name: str) -> Any:
        """Delta's own view of a table's newest version, in the JVM."""
        jvm: Any = self.spark._jvm
        log = jvm.org.apache.spark.sql.delta.DeltaLog.forTable(self.spark._jsparkSession, self.path(name))
        return log.update(False, jvm.scala.Option.empty(), jvm.scala.Option.empty())

    def usage(self, relative: str) -> tuple[int, int]:
        """How many files a folder of the lake has, and their bytes."""
        return files(self.spark).usage(f"{self.config.lake.rstrip('/')}/{relative}")

    def log_usage(self, name: str) -> dict[str, int]:
        """commits that a table's log still has, log_files and log_bytes of all of it."""
        count, size = files(self.spark).usage(self._log(name))
        return {"commits": len(self._versions(name)), "log_files": count, "log_bytes": size}

    def data_files(self, name: str) -> DataFrame:
        """path, partition (map), bytes and rows of each data file of a table's newest version, by its log."""
        files_of = DataFrame(self._snapshot(name).allFiles().toDF(), self.spark)
        rows = F.get_json_object("stats", "$.numRecords").cast("bigint").alias("rows")
        return files_of.select("path", F.col("partitionValues").alias("partition"), F.col("size").alias("bytes"), rows)

    def _save(self, writer: Any, spec: Table, days: Window | None = None) -> int:
        if spec.partition:
            writer = writer.partitionBy(*spec.partition)
        writer.option("userMetadata", self.run.metadata(days)).save(self.path(spec.name))
        version = self.version(spec.name)
        assert version is not None
        self.run.outputs[spec.name] = version
        return version

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
            with _postgres_lease(os.environ.get(settings.uri_env, ""), self.config.lake, settings.wait_seconds):
                yield
        elif "://" in self.config.lake:
            raise ConfigError(f"the lake {self.config.lake} is no local folder: set lease.uri_env to a PostgreSQL")
        else:
            with file_lease(Path(self.config.lake), self.run.job, self.run.run_id, settings.wait_seconds):
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
            time.sleep(POLL)
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
def _postgres_lease(uri: str, lake: str, wait_seconds: int) -> Iterator[None]:
    """A session-level advisory lock: PostgreSQL frees it when the connection of the driver goes."""
    if not uri:
        raise ConfigError("lease.uri_env names an environment variable that is not set")
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute("SELECT set_config('lock_timeout', %s, false)", (f"{max(wait_seconds, 1)}s",))
        try:
            connection.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", (LOCK_SPACE, lake))
        except psycopg.errors.LockNotAvailable:
            raise LakeBusyError(f"the lake {lake} is held by another run; waited {wait_seconds} s") from None
        yield
