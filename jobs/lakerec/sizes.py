"""How large a lake is and what its jobs cost: a row per table for ops.table_sizes, and both for people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from rich.console import Console
from rich.table import Table

from lakerec.files import files
from lakerec.lake import RUNS, SMALL_FILE, Lake
from lakerec.tables import sql_text, table

SIZES = "ops.table_sizes"
FOLDERS = ("_models", "_mlflow", "_dq", "_scoring", "_serving")  # what a lake holds beside its tables
COST_DAYS = 30


def of_files(files: DataFrame, day: str | None) -> dict[str, Any]:
    """files, small_files, bytes, rows, partitions, first_day, last_day of data files, partitioned by `day` if at all.

    `files` has partition (map), bytes, rows.
    """
    each = files.groupBy(F.to_json("partition").alias("of")).agg(
        F.count(F.lit(1)).alias("files"),
        F.count_if(F.col("bytes") < SMALL_FILE).alias("small"),
        F.sum("bytes").alias("bytes"),
        F.sum("rows").alias("rows"),
        F.first(F.to_date(F.col("partition")[day or ""])).alias("day"),
    )
    found = each.agg(
        F.sum("files").alias("files"),
        F.sum(F.when(F.col("files") > 1, F.col("small")).otherwise(0)).alias("small_files"),
        F.sum("bytes").alias("bytes"),
        F.sum("rows").alias("rows"),
        F.count(F.lit(1)).alias("partitions"),
        F.min("day").alias("first_day"),
        F.max("day").alias("last_day"),
    )
    (row,) = found.collect()
    return {name: 0 if value is None and "day" not in name else value for name, value in row.asDict().items()}


def of_table(lake: Lake, name: str, as_of: date) -> dict[str, Any]:
    """A table as a row of ops.table_sizes."""
    by_day = next((column for column in table(name).partition if column.endswith("_date")), None)
    known, log = of_files(lake.data_files(name), by_day), lake.log_usage(name)
    old = lake.usage(table(name).path)[1] - log["log_bytes"] - known["bytes"]
    fields = {"as_of_date": as_of, "table_name": name, "version": lake.version(name), "old_bytes": max(old, 0)}
    return fields | known | log


def of_folder(lake: Lake, name: str, as_of: date) -> dict[str, Any]:
    """A folder beside the tables as a row of ops.table_sizes."""
    count, size = files(lake.spark).usage(f"file://{lake.local_folder(name)}")
    return {"as_of_date": as_of, "table_name": name, "files": count, "bytes": size}


def print_report(lake: Lake) -> None:
    """Print the last sizes with their growth since the upkeep before, and the seconds of each job lately."""
    growth = lake.spark.sql(sql_text("views", "table_growth"), sizes=lake.newest(SIZES))
    columns = ("files", "small_files", "MB", "rows", "days", "commits", "log_files", "old_MB", "grown_rows", "grown_MB")
    _print(f"sizes of {lake.config.lake}", ("table_name", *columns), growth.orderBy("table_name").collect())
    runs = lake.spark.sql(sql_text("views", "runs"), runs=lake.newest(RUNS))
    cost = lake.spark.sql(sql_text("views", "job_seconds"), days=COST_DAYS, runs=runs)
    dearest = cost.orderBy(F.desc("seconds"), "job").collect()
    _print(f"seconds by job, the last {COST_DAYS} days", ("job", "runs", "seconds", "median", "longest"), dearest)


def _print(title: str, columns: Sequence[str], rows: Sequence[Any]) -> None:
    shown = Table(title=title, title_justify="left")
    for name in columns:
        shown.add_column(name, justify="left" if name == columns[0] else "right")
    for row in rows:
        shown.add_row(*(_told(row[name]) for name in columns))
    Console(width=160).print(shown)


def _told(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:,}"
