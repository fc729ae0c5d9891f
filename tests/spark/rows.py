"""Rows of silver.events, silver.items and ml.sequences for the tests, written short."""

import re
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from lakerec.lake import local_frame

TABLES = Path(__file__).parents[2] / "sql" / "tables"


def schema(table: str) -> str:
    """The columns of a table as Spark's short DDL, comments left out."""
    lines = (TABLES / f"{table}.sql").read_text().splitlines()
    columns = (re.sub(r" COMMENT '.*'", "", line).strip() for line in lines if line.startswith("  "))
    return " ".join(columns)


def small_frame(spark: SparkSession, rows: Sequence[Any], ddl: str) -> DataFrame:
    """Tuples, or dictionaries whose missing columns are null, as a DataFrame; without a Python worker."""
    known = StructType.fromDDL(ddl)
    whole = [row if isinstance(row, dict) else dict(zip(known.names, row, strict=True)) for row in rows]
    return local_frame(spark, known, whole)


def event(
    user: str, item: str | None, day: date, minute: int = 0, kind: str = "buy", arrived: date | None = None
) -> dict:
    """A row of silver.events, `minute` minutes past noon; it arrives on its own day unless told otherwise."""
    time = datetime(day.year, day.month, day.day, 12) + timedelta(minutes=minute)
    return {
        "event_date": day,
        "event_id": f"{user}-{item}-{time:%H%M}-{kind}",
        "user_id": user,
        "item_id": item,
        "event_type": kind,
        "event_time": time,
        "ingest_date": arrived or day,
    }


def item(name: str, since: date, until: date | None = None, text: str | None = None) -> dict:
    """A row of silver.items."""
    return {"item_id": name, "valid_from": since, "valid_to": until, "title": f"title {name}", "text": text}


def sequences(events: list[dict], length: int = 50) -> list[dict]:
    """Rows of ml.sequences by their definition: per user and day of arrival the last events known by then."""
    pairs = sorted({(e["user_id"], e["ingest_date"]) for e in events})
    return [_sequence(user, day, events, length) for user, day in pairs]


def _sequence(user: str, day: date, events: list[dict], length: int) -> dict:
    known = [e for e in events if e["user_id"] == user and e["ingest_date"] <= day]
    known.sort(key=lambda e: (e["ingest_date"], e["event_time"], e["event_id"]))
    last = sorted(known[-length:], key=lambda e: (e["event_time"], e["event_id"]))
    return {
        "as_of_date": day,
        "user_id": user,
        "item_ids": [e["item_id"] for e in last],
        "event_types": [e["event_type"] for e in last],
        "event_times": [e["event_time"] for e in last],
        "text": " ".join(str(e["item_id"]) for e in last),
        "events": len(known),
    }
