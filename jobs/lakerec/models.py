"""Which model: the newest snapshot of a day, the version trained on it, the version that serves a day."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from pyspark.sql import Row
from pyspark.sql import functions as F

from lakerec.config import Config
from lakerec.errors import NotEnoughDataError
from lakerec.lake import Lake, Window

FOLDER = "_models"


@dataclass(frozen=True)
class Promotion:
    """The model that serves a day: its version and its artefact's folder below the lake."""

    version: str
    path: str


@dataclass(frozen=True)
class Day:
    """One day to be scored: its model, and the days on which a sequence asks for a new list (None: everybody's)."""

    day: date
    model: Promotion | None
    active: Window | None


def snapshot_of(lake: Lake, as_of: date) -> str:
    """The snapshot built as of a day; raises NotEnoughDataError where there is none."""
    row = lake.read("ml.snapshots").where(F.col("as_of_date") == F.lit(as_of)).first()
    if row is None:
        raise NotEnoughDataError(f"no training snapshot as of {as_of}: run build_examples for that day first")
    return str(row["snapshot_id"])


def version_of(snapshot: str, as_of: date, config: Config) -> str:
    """The version of the model trained on a snapshot with these settings: the same input gives the same name."""
    settings = hashlib.sha256(config.scorer.model_dump_json().encode()).hexdigest()
    return f"{as_of:%Y%m%d}-{snapshot[:8]}-{settings[:6]}"


def folder(lake: Lake, version: str) -> Path:
    """Where a version's artefact lies."""
    return lake.local_folder(f"{FOLDER}/{version}")


def promotions(lake: Lake) -> list[Row]:
    """The log of promotions, newest first: by effective_from, of one day by entry."""
    log = lake.read("ml.promotions").orderBy(F.col("effective_from").desc(), F.col("entry").desc())
    return log.collect()


def serving_on(log: list[Row], day: date) -> Promotion | None:
    """What a log, newest first, names for a day; None before any promotion."""
    row = next((row for row in log if row["effective_from"] <= day), None)
    return Promotion(row["version"], row["path"]) if row else None


def serving(lake: Lake, day: date) -> Promotion | None:
    """What ml.promotions names for a day; None before any promotion."""
    return serving_on(promotions(lake), day)


def planned(log: list[Row], since: date, day: date, served: bool) -> Day:
    """Everybody is scored where another model (or none) served before `since`, or where no user had a list yet."""
    model, earlier = serving_on(log, day), serving_on(log, since - timedelta(days=1))
    changed = Window(since, day + timedelta(days=1))
    return Day(day, model, changed if served and model == earlier else None)


def promote(lake: Lake, version: str, day: date, reason: str) -> None:
    """Append a version to ml.promotions from a day on; the caller holds the lease."""
    path = f"{FOLDER}/{version}"
    entry = lake.read("ml.promotions").agg(F.coalesce(F.max("entry"), F.lit(0)).alias("last")).first()
    assert entry is not None
    line = {"effective_from": day, "version": version, "entry": entry["last"] + 1, "path": path, "reason": reason}
    lake.append_rows("ml.promotions", [line])


def tracking_uri(lake: Lake) -> str:
    """MLflow's database beside the lake's tables."""
    file = lake.local_folder("_mlflow/mlflow.db")
    file.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{file}"
