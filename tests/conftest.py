"""What every test shares: one Spark session for the whole run, and a lake of a few small days."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from deltalake import DeltaTable
from pyspark.sql import SparkSession

# Before anything loads OpenMP: on two shared cores its threads wait for each other, a second becomes twenty.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from lakerec import job as jobs
from lakerec.config import Config, load_config
from lakerec.lake import Window
from lakerec.session import build_session

# Versions that are kept for a second, and so no longer than a training may take.
SHORT_LIVED = {"maintenance": {"versions_days": 0.00001, "log_days": 3}, "airflow": {"training_minutes": 0.01}}
Start = Callable[..., subprocess.Popen]
ROOT = Path(__file__).resolve().parents[1]
DAY = date(2026, 3, 2)
HEADER = "event_id,user_id,item_id,event_type,event_time,price"
LAKE_STEPS = ("ingest_events", "ingest_catalogue", "conform_events", "conform_catalogue", "build_sequences")

SETTINGS: dict[str, Any] = {
    "lake": "lake",
    "timezone": "UTC",
    "sources": {
        "events": {
            "path": "events/{date}.csv.gz",
            "columns": {
                "event_id": "event_id",
                "user_id": "user_id",
                "item_id": "item_id",
                "event_type": "event_type",
                "event_time": "to_timestamp(event_time)",
                "value": "price",
            },
        },
        "items": {
            "path": "items.csv.gz",
            "mode": "snapshot",
            "columns": {"item_id": "item_id", "title": "title", "text": "title"},
        },
    },
    "event_types": {"view": 1, "purchase": 5},
    "late_days": 2,
    "lease": {"wait_seconds": 0},
    "spark": {"small_days": True},
    "candidates": {"per_user": 8, "popular_days": 7},
    "policy": {"k": 5},
    "scorer": {
        "history_tokens": 32,
        "candidate_tokens": 8,
        "training": {"freeze": "head", "max_slates": 40, "epochs": 1, "horizon_days": 1, "cuts": 1},
    },
}


def pytest_configure() -> None:
    """Name a file for the main module: one of xdist's has none, and PySpark takes it for a doctest and ends it."""
    vars(sys.modules["__main__"]).setdefault("__file__", __file__)


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """The project's own session, with few shuffle partitions."""
    file = tmp_path_factory.mktemp("session") / "config.yaml"
    extra = {"spark": {"driver_memory": "2g", "properties": {"spark.sql.shuffle.partitions": "2"}}}
    file.write_text(yaml.safe_dump(SETTINGS | extra))
    # For many days: the suite runs for minutes, so the JVM's full compiler pays.
    session = build_session(load_config(file), "tests", days=100)
    yield session
    session.stop()


@dataclass
class Shop:
    """A deployment in a temporary folder: its files, its configuration and its lake."""

    folder: Path
    spark: SparkSession
    settings: dict[str, Any] = field(default_factory=lambda: yaml.safe_load(yaml.safe_dump(SETTINGS)))

    @property
    def config(self) -> Config:
        """The configuration as the YAML on disk says it."""
        file = self.folder / "config.yaml"
        file.write_text(yaml.safe_dump(self.settings))
        return load_config(file)

    def deliver(self, day: date, rows: list[str], header: str = HEADER) -> Path:
        """Write a day's file of events."""
        return self.write(f"events/{day}.csv.gz", header, rows)

    def write(self, name: str, header: str, rows: list[str]) -> Path:
        """Write a gzip file below the folder."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress("\n".join([header, *rows, ""]).encode(), mtime=0))
        return file

    def run(self, *steps: str, start: date = DAY, days: int = 1, **options: Any) -> dict[str, Any]:
        """Run steps over a window; the counts of the last one."""
        counts: dict[str, Any] = {}
        for step in steps:
            counts = jobs.body(step)(self.job(step, start, days, **options))
        return counts

    def job(self, step: str, start: date = DAY, days: int = 1, **options: Any) -> jobs.Job:
        """A job over a window, ready to run."""
        window = Window(start, start + timedelta(days=days))
        return jobs.start(self.config, self.spark, step, window, **options)

    def rows(self, name: str, lake: str = "lake") -> list[dict[str, Any]]:
        """A table's rows, in a total order; an empty list where it does not exist."""
        path = self.folder / lake / name.replace(".", "/")
        if not list(path.glob("_delta_log/*.json")):
            return []
        return sorted(DeltaTable(str(path)).to_pyarrow_table().to_pylist(), key=repr)

    def version(self, name: str) -> int:
        """A table's version; -1 where it does not exist."""
        path = self.folder / "lake" / name.replace(".", "/")
        return DeltaTable(str(path)).version() if list(path.glob("_delta_log/*.json")) else -1


@pytest.fixture()
def shop(tmp_path: Path, spark: SparkSession) -> Shop:
    """An empty deployment with a catalogue of ten items."""
    made = Shop(tmp_path, spark)
    made.write("items.csv.gz", "item_id,title", [f"i{n},thing number {n}" for n in range(10)])
    return made


@pytest.fixture()
def start() -> Iterator[Start]:
    """Starts a process whose output goes to a file: command, file, variables of its environment; each ends."""
    from tests.processes import starting

    yield from starting()


def event(n: int, user: str = "u1", day: date = DAY, item: str = "", kind: str = "purchase", hour: int = 12) -> str:
    """One row of a day's file: the n-th event of a day."""
    return f"{day}-{n},{user},{item or f'i{n % 10}'},{kind},{day} {hour:02d}:{n % 60:02d}:00,{n}.5"


def day_after(days: int) -> date:
    """The day so many days behind the first."""
    return DAY + timedelta(days=days)


def real_data() -> Path:
    """The folder of the real files; the test is skipped, and says so, where there is none."""
    folder = Path(os.environ.get("LAKEREC_DATA", ROOT.parent / "shared" / "data"))
    if not folder.exists():
        pytest.skip(f"needs the real files in {folder} (or in LAKEREC_DATA)")
    return folder
