"""The run ledger for people: what ran, and what it takes to make a run's rows again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import tzinfo
from typing import Any

from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from rich.console import Console
from rich.table import Table

from lakerec.config import Config
from lakerec.errors import UsageError
from lakerec.job import STEPS, command
from lakerec.lake import LISTS, RUNS, Lake
from lakerec.show import looking
from lakerec.tables import sql_text

WIDTH = 180  # where the table goes to a file or a pipe
COUNTS = ("rows_read", "rows_written", "rows_quarantined")


def show_runs(config: Config, spark: SparkSession, job: str | None, count: int) -> None:
    """Print the `count` newest runs, of one job where it is named, newest first."""
    runs = spark.sql(sql_text("views", "runs"), runs=_ledger(looking(config, spark, "runs").lake))
    mine = runs.where(F.col("job") == job) if job else runs
    if not (newest := mine.orderBy(F.desc("started_at"), F.desc("run_id")).limit(count).collect()):
        known = ", ".join(sorted(row["job"] for row in runs.select("job").distinct().collect()))
        raise UsageError(f"{RUNS} has no run of a job {job!r}; it has those of {known}")
    table = Table(title=f"runs of {config.lake}", title_justify="left")
    for name in ("started", "job", "window", "status", "read", "written", "quarantined", "s", "run"):
        table.add_column(name, overflow="fold", no_wrap=name == "run")
    for row in newest:
        counts = [_told(row[name]) for name in COUNTS]
        began = row["started_at"].astimezone(config.zone)
        seconds = f"{row['seconds'] or 0:.1f}"
        table.add_row(
            f"{began:%Y-%m-%d %H:%M}", row["job"], _window(row), row["status"], *counts, seconds, row["run_id"]
        )
    console = Console()
    console.width = console.width if console.is_terminal else WIDTH
    console.print(table)


def show_run(config: Config, spark: SparkSession, run_id: str) -> None:
    """Print one run: code, settings, the versions it read and wrote and who wrote what it read, counts, model."""
    lake = looking(config, spark, "runs").lake
    ledger = _ledger(lake)
    rows = ledger.where(F.col("run_id") == run_id).orderBy("ingest_date").collect()
    if not rows:
        raise UsageError(f"{RUNS} knows no run {run_id!r}; `lakerec runs` lists the newest")
    inputs = rows[0]["inputs"] or {}
    places = {table: lake.path(table) for table, version in inputs.items() if lake.readable(table, version)}
    print(explained(rows, _writers(lake, ledger, inputs), _models(lake, rows[0]), places, config.zone))
    if (step := rows[0]["job"]) in STEPS:
        others = "" if rows[0]["config_hash"] == config.hash() else ", and by other settings than its own"
        print(f"\nto make its rows anew, from its inputs as they are now{others}")
        every_day = "every_day" in (rows[0]["details"] or {})
        print(f"  {command(config, step, rows[0]['window_start'], rows[0]['window_end'], every_day)}")
    if settings := lake.kept_settings(rows[0]["config_hash"]):
        print(f"\nits settings\n  {settings}")


def explained(
    rows: Sequence[Row], writers: Mapping[str, str], models: Sequence[str], paths: Mapping[str, str], zone: tzinfo
) -> str:
    """A run as text; writers name the run behind each version that was read, paths the folder of each table that can
    still be read at its version.
    """
    first = rows[0]
    lines = [
        f"run      {first['run_id']}",
        f"job      {first['job']}, window {_window(first)}, {first['status']}, {first['seconds'] or 0:.1f} s",
        f"started  {first['started_at'].astimezone(zone):%Y-%m-%d %H:%M:%S %Z}",
        f"code     lakerec {first['code_version']}, settings {first['config_hash']}",
        *(f"model    {model}" for model in models),
        *(f"{key:8s} {value}" for key, value in sorted((first["details"] or {}).items())),
    ]
    counted = [row for row in rows if row["ingest_date"] is not None]
    lines += [f"counts   {_counts(row)}" for row in rows if row["ingest_date"] is None]
    lines += ["", "days"] * bool(counted)
    lines += [f"  {row['ingest_date']}  {_counts(row)}" for row in counted]
    for told, versions in (("read", first["inputs"] or {}), ("wrote", first["outputs"] or {})):
        lines += ["", told] * bool(versions)
        lines += [
            _version(table, number, writers if told == "read" else {}) for table, number in sorted(versions.items())
        ]
    lines += ["", "to see again what it read"] * bool(first["inputs"])
    for table, number in sorted((first["inputs"] or {}).items()):
        gone = f"  {table} version {number} is gone: the upkeep keeps old versions for maintenance.versions_days"
        lines.append(f"  SELECT * FROM delta.`{paths[table]}` VERSION AS OF {number}" if table in paths else gone)
    return "\n".join(lines)


def _counts(row: Row) -> str:
    return ", ".join(f"{name.removeprefix('rows_')} {_told(row[name])}" for name in COUNTS)


def _version(table: str, number: int, writers: Mapping[str, str]) -> str:
    by = f"  by {writers[table]}" if table in writers else ""
    return f"  {table:28s}version {number}{by}"


def _writers(lake: Lake, ledger: DataFrame, inputs: Mapping[str, int]) -> dict[str, str]:
    """The run that wrote each version read, as its commit says; of a commit that is gone or says nothing, the newest
    run before it that the ledger knows.
    """
    known = {table: lake.writer(table, version) for table, version in inputs.items()}
    guessed = _last_writers(ledger, inputs) if "" in known.values() else {}
    return {
        table: run_id or f"{guessed[table]} or later" for table, run_id in known.items() if run_id or table in guessed
    }


def _last_writers(ledger: DataFrame, inputs: Mapping[str, int]) -> dict[str, str]:
    written = ledger.select("run_id", F.explode("outputs").alias("table", "version")).distinct()
    known: dict[str, tuple[int, str]] = {}
    for row in written.where(F.col("table").isin(list(inputs))).collect():
        if row["version"] <= inputs[row["table"]]:
            known[row["table"]] = max(known.get(row["table"], (-1, "")), (row["version"], row["run_id"]))
    return {table: run_id for table, (_, run_id) in known.items()}


def _models(lake: Lake, run: Row) -> list[str]:
    """The models behind the lists that a run wrote and that still stand, where it died before it could say."""
    if LISTS not in (run["outputs"] or {}) or "model" in (run["details"] or {}):
        return []
    lists = lake.read(LISTS).where(F.col("run_id") == run["run_id"])
    return [str(row[0]) for row in lists.select("model_version").distinct().orderBy("model_version").collect()]


def _ledger(lake: Lake) -> DataFrame:
    if not lake.exists(RUNS):
        raise UsageError(f"{lake.path(RUNS)}: no run was recorded in this lake yet; run `lakerec run` or a DAG first")
    return lake.read(RUNS)


def _window(row: Row) -> str:
    return f"{row['window_start']} .. {row['window_end']}"


def _told(value: Any) -> str:
    return "-" if value is None else f"{value:,}"
