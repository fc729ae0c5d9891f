"""A table as one file for whoever is outside the lake: CSV without formulas, JSON lines, or Parquet."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, date, datetime
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet
from pyspark.sql import SparkSession
from pyspark.sql.pandas.types import to_arrow_schema

from lakerec.config import Config
from lakerec.errors import UsageError
from lakerec.lake import Window
from lakerec.session import streamed
from lakerec.show import looking
from lakerec.tables import Table, table, table_names

Rows = Iterable[dict[str, Any]]
Put = Callable[[list[dict[str, Any]]], object]
# What makes a cell a formula in a spreadsheet (OWASP, "CSV Injection").
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
CHUNK = 10_000  # rows in memory


def export(config: Config, spark: SparkSession, name: str, days: Window | None, out: Path, kind: str) -> int:
    """Write a table, or some of its days, as one file; how many rows. UsageError where it has no such days."""
    spec = _spec(name)
    rows = looking(config, spark, "export").lake.read(name)
    if days is not None:
        rows = rows.where(days.where(_day_column(spec)))
    ordered = streamed(rows.select(*spec.column_names).orderBy(*spec.key))
    found = (in_utc(row.asDict(recursive=True)) for row in ordered)
    return write(found, to_arrow_schema(spec.schema(), timezone="UTC"), out, kind)


def in_utc(value: Any) -> Any:
    """A value whose times, which Spark gives in the machine's zone and without saying so, are UTC's and say so."""
    if isinstance(value, dict):
        return {name: in_utc(one) for name, one in value.items()}
    if isinstance(value, list):
        return [in_utc(one) for one in value]
    return value.astimezone(UTC) if isinstance(value, datetime) else value


def _spec(name: str) -> Table:
    if name not in table_names():
        raise UsageError(f"--table {name}: no such table; tables are {', '.join(table_names())}")
    return table(name)


def _day_column(spec: Table) -> str:
    column = next((one for one in spec.partition if one.endswith("_date")), None)
    if column is None:
        raise UsageError(f"{spec.name} has no days: leave --start and --end out")
    return column


def write(rows: Rows, schema: pa.Schema, out: Path, kind: str) -> int:
    """Write rows, by column name, to a file that appears when it is whole; how many they were."""
    out.parent.mkdir(parents=True, exist_ok=True)
    draft, count, left = out.with_name(f".{out.name}.{os.getpid()}"), 0, iter(rows)
    try:
        with KINDS[kind](draft, schema) as put:
            while chunk := list(islice(left, CHUNK)):
                put(chunk)
                count += len(chunk)
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    return count


def cell(value: Any) -> Any:
    """A value as a cell: a number as it is, a text that begins like a formula behind an apostrophe, others as JSON."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return f"'{value}" if value.startswith(FORMULA) else value
    return _plain(value) if isinstance(value, date | datetime) else _as_json(value)


def _plain(value: Any) -> str:
    """Days and times in ISO 8601."""
    return str(value.isoformat()) if isinstance(value, date | datetime) else str(value)


def _as_json(value: Any) -> str:
    return json.dumps(value, default=_plain, ensure_ascii=False)


def _number(value: Any) -> Any:
    """JSON has neither nan nor infinity."""
    return None if isinstance(value, float) and not isfinite(value) else value


@contextmanager
def _csv(file: Path, schema: pa.Schema) -> Iterator[Put]:
    """Every text is quoted: a spreadsheet that splits at another sign than the comma splits none."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writerow(schema.names)
        yield lambda chunk: writer.writerows([cell(row[name]) for name in schema.names] for row in chunk)


@contextmanager
def _json(file: Path, schema: pa.Schema) -> Iterator[Put]:
    with file.open("w", encoding="utf-8") as stream:
        yield lambda chunk: stream.writelines(
            _as_json({name: _number(row[name]) for name in schema.names}) + "\n" for row in chunk
        )


@contextmanager
def _parquet(file: Path, schema: pa.Schema) -> Iterator[Put]:
    with parquet.ParquetWriter(file, schema) as writer:
        yield lambda chunk: writer.write_table(pa.Table.from_pylist(chunk, schema))


KINDS: dict[str, Callable[[Path, pa.Schema], AbstractContextManager[Put]]] = {
    "csv": _csv,
    "json": _json,
    "parquet": _parquet,
}
