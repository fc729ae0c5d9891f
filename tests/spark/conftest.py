"""A SparkSession for the tests of pure transforms, and frames with the schemas of sql/tables."""

import re
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession

TABLES = Path(__file__).parents[2] / "sql" / "tables"


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """A local session of two threads, with the settings of the jobs."""
    settings = {
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.ansi.enabled": "false",
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.extraJavaOptions": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1",
    }
    session = SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


def schema(table: str) -> str:
    """The columns of a table as Spark's short DDL, comments left out."""
    lines = (TABLES / f"{table}.sql").read_text().splitlines()
    columns = (re.sub(r" COMMENT '.*'", "", line).strip() for line in lines if line.startswith("  "))
    return " ".join(columns)


@pytest.fixture(scope="session")
def frame(spark) -> Callable[[str, list[dict]], DataFrame]:
    """Builds a DataFrame with a table's schema; columns that a row does not name are null."""

    def build(table: str, rows: list[dict]) -> DataFrame:
        fields = spark.createDataFrame([], schema(table)).schema
        return spark.createDataFrame([tuple(row.get(name) for name in fields.names) for row in rows], fields)

    return build


def event(user: str, item: str | None, day: date, minute: int = 0, kind: str = "purchase", arrived=None) -> dict:
    """A row of silver.events at noon of a day plus minutes; it arrives on the same day unless told otherwise."""
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
    """Rows of ml.sequences by its definition: per user and arrival day the last events known by then."""
    rows = []
    for user, day in sorted({(e["user_id"], e["ingest_date"]) for e in events}):
        known = [e for e in events if e["user_id"] == user and e["ingest_date"] <= day]
        known.sort(key=lambda e: (e["ingest_date"], e["event_time"], e["event_id"]))
        last = sorted(known[-length:], key=lambda e: (e["event_time"], e["event_id"]))
        rows.append(
            {
                "as_of_date": day,
                "user_id": user,
                "item_ids": [e["item_id"] for e in last],
                "event_types": [e["event_type"] for e in last],
                "event_times": [e["event_time"] for e in last],
                "text": " ".join(str(e["item_id"]) for e in last),
                "events": len(known),
            }
        )
    return rows
