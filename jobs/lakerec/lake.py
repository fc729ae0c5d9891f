"""The only reader and writer of Delta: pinned reads, whole-day replacement, one lease per lake, the ledger of runs."""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psycopg
import pyarrow as pa
from delta import exceptions
from delta.tables import DeltaTable
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import DataType, StructType

from lakerec import __version__, migration
from lakerec.config import Config, Maintenance
from lakerec.errors import (
    ConfigError,
    ConflictError,
    ConnectionFailedError,
    ContractError,
    LakeBusyError,
    StaleRunError,
)
from lakerec.files import files
from lakerec.postgres import BOUNDS, refuse_login, uri_of
from lakerec.release import code_version
from lakerec.tables import Migration, Table, fingerprint, migrations, quoted, table, table_names

RUNS, LISTS = "ops.runs", "gold.recommendations"
FAILED, SKIPPED = STOPPED = "failed", "skipped"  # how ops.runs has runs that ended by an error
# How far back in a table's history a slow run looks for a newer one: as many commits at least, and all that were made
# since it began, by clocks that differ by an hour at most.
LOOK_BACK, CLOCKS = 60, timedelta(hours=1)
# So much earlier, at least, than the run that records it a dead run is said to have begun.
BEFORE = timedelta(milliseconds=1)
# Seconds in which the JVM of a killed run is sure to have ended.
DYING = 60
# Any number that is the lake's own: the key of the advisory lock in PostgreSQL.
LOCK_SPACE = 0x1A6E
# Which release's tables a lake has, below it; and Spark's setting for what a statement's commit carries.
SCHEMA = "_schema.json"
SETTINGS = "_settings"
KEEPALIVE = {"tcp_keepalives_idle": "30", "tcp_keepalives_interval": "15", "tcp_keepalives_count": "4"}
# Who holds an advisory lock of two numbers, of which pg_locks tells the second as unsigned.
HOLDER = """
SELECT format('%%s, process %%s of PostgreSQL, since %%s', application_name, pid, backend_start::timestamptz(0))
FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND classid = %s
AND objid::bigint = hashtext(%s)::bigint & 4294967295
"""
USER_METADATA = "spark.databricks.delta.commitInfo.userMetadata"
COMMIT = re.compile(r"^(\d{20})\.json$")
CONFLICTS = tuple(getattr(exceptions, name) for name in exceptions.__all__)  # they have no root of their own
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

    def wider(self, before: int, after: int = 0) -> Window:
        """The window with so many days more before and after it."""
        return Window(self.start - timedelta(days=before), self.end + timedelta(days=after))

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
    # What it looked for and what was not there yet.
    absent: set[str] = field(default_factory=set)
    outputs: dict[str, int] = field(default_factory=dict)
    # Counts per ingest day that go to ops.runs once the table is committed: a commit carries them, so that the
    # next run can write them where this one dies in between.
    owed: dict[date, dict[str, int]] = field(default_factory=dict)
    code: str = field(default_factory=code_version)
    # What every row of ops.runs says beside the counts.
    notes: dict[str, str] = field(default_factory=dict)
    # Whether commits are still to come: nobody may take this run for one that died before it could record itself.
    unfinished: bool = False
    # Whether the ledger has it as one that did not come to its end: what it committed may still have to be recorded.
    stopped: bool = False

    def forget_reads(self) -> None:
        """See every table as it is at its next reading."""
        self.inputs.clear()
        self.absent.clear()

    def metadata(self, replaced: Window | None = None) -> str:
        """What each commit carries in `userMetadata`: the run, its window, the versions it read, the days replaced."""
        window = {"start": str(self.window.start), "end": str(self.window.end)}
        fields: dict[str, Any] = {"run_id": self.run_id, "job": self.job, "inputs": self.inputs}
        fields |= {"config_hash": self.config_hash, "code_version": self.code}
        days = {"replaced": [str(replaced.start), str(replaced.end)]} if replaced else {}
        fields |= {name: True for name in ("unfinished", "stopped") if getattr(self, name)}
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
            "code_version": self.code,
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
        self._settings_kept = False

    def path(self, name: str) -> str:
        """Where a table lives: LAKE/<layer>/<table>."""
        return f"{self.config.lake}/{table(name).path}"

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

    def written_at(self, name: str, version: int) -> datetime:
        """When a version was committed, by its own account, or by its file's time where it gives none (UTC).

        Other writers than Spark may put commitInfo behind other actions, or leave it out (Delta protocol, "Commit
        Provenance Information").
        """
        actions = (json.loads(line) for line in self._commit(name, version) if "commitInfo" in line)
        told = next((one["commitInfo"].get("timestamp") for one in actions if "commitInfo" in one), None)
        milliseconds = told or files(self.spark).modified(self._commit_file(name, version))
        return datetime.fromtimestamp(milliseconds / 1000, UTC)

    def versions(self, name: str) -> list[int]:
        """The versions of a table whose commits are kept, newest first."""
        return sorted(self._versions(name), reverse=True)

    def readable(self, name: str, version: int) -> bool:
        """Whether a version still has its commits and all its files: upkeep removes what only older versions need."""
        try:
            needed = self.read(name, version).inputFiles()
        except (PySparkException, Py4JJavaError):
            return False
        there = files(self.spark).names(self.path(name), below=len(table(name).partition))
        return {file.rsplit("/", 1)[1] for file in needed} <= {*there}

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
        """A table at the version this run first saw (or at the one given); empty where it did not exist.

        It has every column of the DDL: one that came later than the version is null.
        """
        pinned = self.run.inputs.get(name) if version is None else version
        if pinned is None and (name not in self.run.absent or name in self.run.outputs):
            pinned = self.version(name)
        if pinned is None:
            self.run.absent.add(name)
            return local_frame(self.spark, table(name).schema())
        if version is None:
            self.run.inputs[name] = pinned
        return _completed(self.spark.read.format("delta").option("versionAsOf", pinned).load(self.path(name)), name)

    def newest(self, name: str) -> DataFrame:
        """A table as it is now, for a look that is none of the run's inputs: no row that is written follows from it."""
        version = self.version(name)
        return local_frame(self.spark, table(name).schema()) if version is None else self.read(name, version)

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
        """Dictionaries by column name as a DataFrame of one partition."""
        return local_frame(self.spark, spec.schema(), rows).coalesce(1)

    def pin(self, names: Iterable[str]) -> None:
        """Read these tables at their newest versions from now on: under the lease, one state of the lake."""
        for name in names:
            version = self.version(name)
            if version is None:
                self.run.absent.add(name)
            else:
                self.run.inputs[name] = version

    def tidy(self, name: str, kept: Maintenance) -> int:
        """Remove what no kept version needs, merge a table's small files, shorten its log; how many files were merged.

        In this order: on a disk without room the first still can, and makes some. A checkpoint has Delta remove the
        commits before it that are older than `log_days`; the newest always stays.
        """
        self._keep(name, kept)
        found = DeltaTable.forPath(self.spark, self.path(name))
        with self._committing(name):
            found.vacuum()
        with self._committing(name):
            merged = found.optimize().executeCompaction().select("metrics.numFilesRemoved").first()
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
            with self._committing(name):
                self.spark.sql(f"ALTER TABLE delta.`{self.path(name)}` SET TBLPROPERTIES ({pairs})")

    def _snapshot(self, name: str) -> Any:
        """Delta's own view of a table's newest version, in the JVM."""
        jvm: Any = self.spark._jvm
        log = jvm.org.apache.spark.sql.delta.DeltaLog.forTable(self.spark._jsparkSession, self.path(name))
        return log.update(False, jvm.scala.Option.empty(), jvm.scala.Option.empty())

    def usage(self, relative: str) -> tuple[int, int]:
        """How many files a folder of the lake has, and their bytes."""
        return files(self.spark).usage(f"{self.config.lake}/{relative}")

    def log_usage(self, name: str) -> dict[str, int]:
        """commits that a table's log still has, log_files and log_bytes of all of it."""
        count, size = files(self.spark).usage(self._log(name))
        return {"commits": len(self._versions(name)), "log_files": count, "log_bytes": size}

    def data_files(self, name: str) -> DataFrame:
        """path, partition (map), bytes and rows of each data file of a table's newest version, by its log."""
        files_of = DataFrame(self._snapshot(name).allFiles().toDF(), self.spark)
        rows = F.get_json_object("stats", "$.numRecords").cast("bigint").alias("rows")
        return files_of.select("path", F.col("partitionValues").alias("partition"), F.col("size").alias("bytes"), rows)

    def newest_day(self, name: str) -> date | None:
        """The newest day that a table partitioned by days has, by its log; None where it has none."""
        if not self.exists(name):
            return None
        day = F.to_date(F.col("partition")[table(name).partition[0]])
        found = self.data_files(name).agg(F.max(day).alias("day")).first()
        return found["day"] if found else None

    def _save(self, writer: Any, spec: Table, days: Window | None = None) -> int:
        if spec.partition:
            writer = writer.partitionBy(*spec.partition)
        self._keep_settings()
        with self._committing(spec.name):
            writer.option("userMetadata", self.run.metadata(days)).save(self.path(spec.name))
        self.run.outputs[spec.name] = version = self._saved(spec.name)
        return version

    @contextmanager
    def _committing(self, name: str) -> Iterator[None]:
        """Around whatever commits to a table: not without the lease; ConflictError where another program commits, too.

        The lease is asked for before the write, whose commit may come minutes later.
        """
        self._still_held()
        try:
            yield
        except CONFLICTS as error:
            raise ConflictError(
                f"{self.path(name)}: another program has committed while this run wrote, without the lake's "
                f"lease; what this run wrote is not in it ({first_line(error)}). Run the job again, and let that "
                "program write when no job runs"
            ) from None

    def _saved(self, name: str) -> int:
        """The version of this run's last commit, behind which a foreign program's may lie.

        The table's newest version where there is none: Delta makes no commit of what changes nothing.
        """
        for commit in self._commits(name, LOOK_BACK):
            if commit.get("run_id") == self.run.run_id:
                return int(commit["version"])
        return max(self._versions(name))

    def _refuse_stale(self, name: str, days: Window | None) -> None:
        unseen = dict.fromkeys(self.run.absent, -1)
        for commit in self._since(name):
            newer = [t for t, v in commit.get("inputs", {}).items() if v > self.run.inputs.get(t, unseen.get(t, v))]
            if newer and _touches(commit, days):
                raise StaleRunError(
                    f"{self.run.job}: run {commit.get('run_id')} has written {name} from newer versions of "
                    f"{', '.join(newer)} than this run read; nothing was overwritten. Run the job again."
                )

    def _since(self, name: str) -> Iterator[dict[str, Any]]:
        """The newest commits of a table, newest first: LOOK_BACK of them, and all that are not older than this run."""
        for number, commit in enumerate(self._commits(name, sys.maxsize)):
            if number >= LOOK_BACK and self.written_at(name, commit["version"]) < self.run.started_at - CLOCKS:
                return
            yield commit

    def migrate(self) -> dict[str, str]:
        """Bring every table that is there to its DDL, unless this release did before; what was done, by table.

        The caller holds the lease. Raises ContractError, before anything is changed, where a table has what neither its
        DDL nor a migration knows.
        """
        stamp = f"{self.config.lake}/{SCHEMA}"
        if self._stamped(stamp) == fingerprint():
            return {}
        run = Run(f"migrate-{uuid.uuid4().hex[:8]}", "migrate", self.run.window, self.run.config_hash)
        upgrade = Lake(self.spark, self.config, run)
        upgrade._still_held = self._still_held
        there = dict.fromkeys(name for name in (RUNS, *table_names()) if upgrade.exists(name))  # the ledger first
        for name in there:
            upgrade.check_ddl(name, upgrade._schema(name))
        done = {name: told for name in there if (told := upgrade.to_ddl(name))}
        if done:
            upgrade.record([run.row("ok", done)])
        files(self.spark).write(stamp, json.dumps({"tables": fingerprint(), "code_version": __version__}) + "\n")
        return done

    def _stamped(self, stamp: str) -> str | None:
        """Which DDL the lake's stamp names; None without one, or where a run died while it wrote it."""
        try:
            return str(json.loads(files(self.spark).text(stamp))["tables"])
        except (ValueError, KeyError, TypeError, Py4JJavaError):
            return None

    def check_ddl(self, name: str, found: StructType) -> None:
        """Raise ContractError where a table's columns are not to be brought to its DDL."""
        if refused := migration.refused(table(name), found, migrations(name)):
            raise ContractError(
                f"{name} in {self.config.lake}: {', '.join(refused)}. A newer lakerec has written it: run that; or the "
                f"DDL was changed: write sql/migrations/NNNN_{name}.sql (docs/operations.md, Migrations)"
            )

    def to_ddl(self, name: str) -> str:
        """Bring a table to its DDL, in commits of metadata alone unless a migration is due; what was done."""
        before = self.version(name)
        for one in migration.due(migrations(name), self._schema(name)):
            self._take_away(one)
        for statement in migration.statements(table(name), self._schema(name), f"delta.{quoted(self.path(name))}"):
            self.complete(name)
            with self._signed(), self._committing(name):
                self.spark.sql(statement)
        after = self.version(name)
        return f"version {before} to {after}" if before != after else ""

    def _take_away(self, one: Migration) -> None:
        self.complete(one.table)
        rows = self.spark.sql(one.sql, old=self.spark.read.format("delta").load(self.path(one.table)))
        writer = _conformed(_completed(rows, one.table), table(one.table)).write.format("delta").mode("overwrite")
        self._save(writer.option("overwriteSchema", "true"), table(one.table))

    def restore(self, name: str, version: int) -> int:
        """Let a table have the rows of an earlier version again, with the columns of today's DDL; its new version."""
        self.check_ddl(name, self.read(name, version).schema)
        with self._signed(), self._committing(name):
            DeltaTable.forPath(self.spark, self.path(name)).restoreToVersion(version)
        self.to_ddl(name)
        restored = self.run.outputs[name] = self.version(name) or 0
        return restored

    def _schema(self, name: str) -> StructType:
        return self.spark.read.format("delta").load(self.path(name)).schema

    @contextmanager
    def _signed(self) -> Iterator[None]:
        """Let the commits of SQL statements and of Delta's own commands carry the run, as those of writers do."""
        self.spark.conf.set(USER_METADATA, self.run.metadata())
        try:
            yield
        finally:
            self.spark.conf.unset(USER_METADATA)

    def record(self, rows: list[dict[str, Any]]) -> None:
        """Append rows of `Run.row` to ops.runs: the last commit of a run."""
        self.append_rows(RUNS, rows)

    def record_stop(self, status: str, why: Mapping[str, str]) -> None:
        """Append the run to ops.runs as one that ended by an error, unless it has said itself how it ended.

        Not to a lake without a ledger, which may be a slip of the pen; LakeBusyError at once where another run holds
        the lease.
        """
        if RUNS in self.run.outputs or not self.exists(RUNS):
            return
        self.run.stopped = True
        with self.lease(wait_seconds=0):
            self.record([self.run.row(status, dict(why))])

    def _keep_settings(self) -> None:
        """Before a run's first commit: the settings, by the hash that the commit names.

        The first run's stay: where relative paths begin is not in the hash.
        """
        if self._settings_kept:
            return
        self._settings_kept = True
        place = self._settings(self.run.config_hash)
        try:
            json.loads(files(self.spark).text(place))
        except (ValueError, Py4JJavaError):  # half a file of a run that was killed, or none
            files(self.spark).write(place, self.config.shown)

    def kept_settings(self, config_hash: str) -> str | None:
        """The JSON file with the settings of this hash; None where no run has kept them."""
        place = self._settings(config_hash)
        return place if files(self.spark).glob(place) else None

    def _settings(self, config_hash: str) -> str:
        return f"{self.config.lake}/{SETTINGS}/{config_hash}.json"

    def complete(self, *names: str) -> None:
        """Write the ops.runs rows of the runs of this job that committed a table and died before they could do so.

        `names` are the job's tables in the order of its commits. The commits of others (upkeep, foreign writers) that
        lie above are passed over. A run that said of each commit that more were to come may live, and writes its row
        with the last one; or it died on its way, and has not done what it was for.
        """
        dead: dict[str, dict[str, dict[str, Any]]] = {}
        for name in names:
            last = next((found for found in self._commits(name, LOOK_BACK) if found.get("job") == self.run.job), {})
            if last and last["run_id"] != self.run.run_id:
                dead.setdefault(last["run_id"], {})[name] = last
        for run_id, commits in dead.items():
            if not all(commit.get("unfinished") for commit in commits.values()) and not self._recorded(run_id):
                self._record_dead(run_id, commits)

    def _recorded(self, run_id: str) -> bool:
        """Whether ops.runs says how a run ended, other than by an error."""
        if run_id in {one.get("run_id") for one in self.history(RUNS, LOOK_BACK) if not one.get("stopped")}:
            return True
        if not self.exists(RUNS):
            return False
        ledger = self.spark.read.format("delta").load(self.path(RUNS))
        return bool(ledger.where(~F.col("status").isin(*STOPPED) & (F.col("run_id") == run_id)).limit(1).count())

    def _record_dead(self, run_id: str, commits: Mapping[str, dict[str, Any]]) -> None:
        """The row, or the row of each day, that a run owes; `commits` by table, the last at the end.

        Of its time no more is known than when it committed.
        """
        last = list(commits.values())[-1]
        window = Window(date.fromisoformat(last["start"]), date.fromisoformat(last["end"]))
        code = last.get("code_version", "")
        made = sorted(self.written_at(name, commit["version"]) for name, commit in commits.items())
        began = min(made[0], self.run.started_at - BEFORE)  # this run may have waited for the lease since before
        dead = Run(run_id, last["job"], window, last["config_hash"], began, last["inputs"], code=code)
        dead.outputs.update({name: commit["version"] for name, commit in commits.items()})
        told = {"completed_by": self.run.run_id}
        owed = {date.fromisoformat(day): counts | told for day, counts in last.get("owed", {}).items()}
        # In the dead run's name: this one has said nothing of itself yet, and may die before it does.
        ledger = Lake(self.spark, self.config, dead)
        ledger._still_held, ledger._settings_kept = self._still_held, True
        rows = dead.rows("ok", owed) if owed else [dead.row("ok", told)]
        ledger.append_rows(RUNS, [row | {"seconds": (made[-1] - made[0]).total_seconds()} for row in rows])

    @contextmanager
    def lease(self, wait_seconds: int | None = None) -> Iterator[dict[str, str]]:
        """Hold the lake's only lease, its tables brought to this release's DDL; LakeBusyError after the wait.

        Yields what a migration has done, by table.
        """
        own_files(self.config)
        holding = held(self.config, self.run.job, self.run.run_id, wait_seconds)
        with holding as self._still_held, _jvm_lease(self.spark, self.config):
            yield self.migrate()

    def local_folder(self, relative: str) -> Path:
        """A folder of what is no table, on this machine's disk."""
        return self.config.local_folder(relative)


def local_frame(spark: SparkSession, schema: DataType, rows: Sequence[dict[str, Any]] = ()) -> DataFrame:
    """Dictionaries by column name (a missing column is null) as a DataFrame, by way of Arrow.

    For a list, an empty one, too, Spark starts Python workers; and it knows of this one that it is empty.
    """
    assert isinstance(schema, StructType)
    arrow = pa.Table.from_pylist([*rows], schema=to_arrow_schema(schema, timezone="UTC"))
    return spark.createDataFrame(arrow, schema)


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
        raise ContractError(
            f"{spec.name}: columns missing {missing}, not in the DDL {extra}; nothing was written. Let "
            f"sql/tables/{spec.name}.sql and the code that makes the rows name the same columns"
        )
    # As text, and the comments by the schema: a call of the JVM for each column takes seven times as long.
    columns = [
        f"CAST({quoted(f.name)} AS {f.dataType.simpleString()}) AS {quoted(f.name)}" for f in spec.schema().fields
    ]
    return rows.selectExpr(*columns).to(spec.schema())


def _completed(rows: DataFrame, name: str) -> DataFrame:
    """Rows with the columns of the DDL that they lack, as nulls."""
    missing = [field for field in table(name).schema().fields if field.name not in rows.columns]
    if not missing:
        return rows
    return rows.select("*", *[F.lit(None).cast(field.dataType).alias(field.name) for field in missing])


def live_files(place: Path, version: int) -> list[Path]:
    """The files that a version of a table in a local folder is made of; read without Spark."""
    from deltalake import DeltaTable as Snapshot

    # By the log's own paths, which are encoded: file_uris() encodes the folder's path as well.
    added = pa.table(Snapshot(str(place), version=version).get_add_actions())["path"].to_pylist()
    return [place / unquote(path) for path in added]


@contextmanager
def held(config: Config, job: str, run_id: str, wait_seconds: int | None = None) -> Iterator[Callable[[], None]]:
    """Hold a lake's only lease; LakeBusyError where it is not free after the wait (else the YAML's).

    Yields what raises ConnectionFailedError where the lease was lost.
    """
    settings = config.lease
    wait = settings.wait_seconds if wait_seconds is None else wait_seconds
    if settings.uri_env:
        if not (uri := uri_of(settings.uri_env)):
            raise ConfigError(f"{config.where('lease')}: the environment variable {settings.uri_env} is not set")
        with _postgres_lease(uri, config.lake, f"{job} (run {run_id})", wait) as still_held:
            yield still_held
    elif "://" in config.lake:
        place = config.where("lake")
        raise ConfigError(f"{place}: {config.lake} is no folder: set lease.uri_env to a PostgreSQL's URI")
    else:
        with file_lease(Path(config.lake), job, run_id, wait):
            yield lambda: None  # the kernel takes it from no process that lives


@contextmanager
def file_lease(lake: Path, job: str, run_id: str, wait_seconds: int) -> Iterator[None]:
    """An exclusive lock on a file of the lake."""
    with locked(lake / "_lease", f"the lake {lake}", job, run_id, wait_seconds):
        yield


@contextmanager
def locked(place: Path, what: str, job: str, run_id: str, wait_seconds: int) -> Iterator[None]:
    """Hold a lock on a file, which tells by whom; the kernel frees it when its process dies, however it dies.

    Raises LakeBusyError, which names its holder, where `what` it guards is not free after the wait.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("a+") as file:
        deadline = time.monotonic() + wait_seconds
        while not _try_lock(file):
            if time.monotonic() >= deadline:
                file.seek(0)
                raise LakeBusyError(
                    f"{what} is held by {file.read().strip() or 'another run'}; "
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


def own_files(config: Config) -> None:
    """Write into `files` whose folder it is; ConfigError where it is another lake's.

    The upkeep of one lake removes the models there that it has never served.
    """
    if not config.files:
        return
    mark = config.local_folder("_lake")
    mark.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError), mark.open("x", encoding="utf-8") as file:
        file.write(config.lake)
    # Nothing in it: somebody is writing it.
    if (owner := mark.read_text(encoding="utf-8")) not in ("", config.lake):
        raise ConfigError(
            f"{config.where('files')}: {mark.parent} holds the models of the lake {owner}, not of {config.lake}: "
            f"give each lake a folder of its own; where that lake has moved here, remove {mark}"
        )


@contextmanager
def _jvm_lease(spark: SparkSession, config: Config) -> Iterator[None]:
    """A lock of the JVM's own beside the lease: where Python alone was killed, its JVM may be about to commit."""
    jvm: Any = spark._jvm
    place = config.local_folder("_lease.jvm")
    place.parent.mkdir(parents=True, exist_ok=True)
    file = jvm.java.io.RandomAccessFile(str(place), "rw")
    try:
        deadline = time.monotonic() + DYING
        while _jvm_lock(file, place) is None:
            if time.monotonic() >= deadline:
                raise LakeBusyError(
                    f"the Java process of a run that was killed still writes to {config.lake}; waited {DYING} s. "
                    "Wait for it to end, or end it, and run again."
                )
            time.sleep(0.2)
        yield
    finally:
        file.close()


def _jvm_lock(file: Any, place: Path) -> Any:
    try:
        return file.getChannel().tryLock()
    except Py4JJavaError as error:
        if error.java_exception.getClass().getName() != "java.io.IOException":
            raise
        raise ConfigError(
            f"{place} cannot be locked ({first_line(error)}): 'files' has to be on a disk with locks"
        ) from None


@contextmanager
def _postgres_lease(uri: str, lake: str, who: str, wait_seconds: int) -> Iterator[Callable[[], None]]:
    """A session-level advisory lock: PostgreSQL frees it when the connection of the driver goes.

    Yields what raises ConnectionFailedError where it has gone: another run may hold the lease by then.
    """
    with _answering(lake), psycopg.connect(uri, autocommit=True, **BOUNDS) as connection:
        # A machine that loses its power says no goodbye: the server asks, and frees the lock.
        settings = {"lock_timeout": f"{max(wait_seconds, 1)}s", "application_name": who} | KEEPALIVE
        for name, value in settings.items():
            connection.execute("SELECT set_config(%s, %s, false)", (name, value))
        try:
            connection.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", (LOCK_SPACE, lake))
        except psycopg.errors.LockNotAvailable:
            holder = connection.execute(HOLDER, (LOCK_SPACE, lake)).fetchone()
            raise LakeBusyError(
                f"the lake {lake} is held by {holder[0] if holder else 'another run'}; waited {wait_seconds} s. "
                "Wait for it to end, or end it, and run again."
            ) from None

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
        refuse_login(error)
        raise ConnectionFailedError(
            f"the lease of {lake} cannot be had, or was lost, since its PostgreSQL does not answer ({error}); nothing "
            "more is committed without it. See to the server of lease.uri_env, then run again"
        ) from None


def first_line(error: Exception) -> str:
    """The first line of an error's text, its type where it has none; 200 characters at most."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
