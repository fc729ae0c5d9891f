"""Which model: the newest snapshot of a day, the version trained on it, the version that serves a day."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pyspark.sql import Row
from pyspark.sql import functions as F

from lakerec.config import Config
from lakerec.errors import NotEnoughDataError
from lakerec.lake import Lake

FOLDER = "_models"


@dataclass(frozen=True)
class Promotion:
    """The model that serves a day: its version and its artefact's folder below the lake."""

    version: str
    path: str


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


def promote(lake: Lake, version: str, day: date, reason: str) -> None:
    """Append a version to ml.promotions from a day on; the caller holds the lease."""
    path = f"{FOLDER}/{version}"
    entry = 1 + max((row["entry"] for row in _log_now(lake)), default=0)
    line = {"effective_from": day, "version": version, "entry": entry, "path": path, "reason": reason}
    lake.append_rows("ml.promotions", [line])


def newest(lake: Lake) -> str | None:
    """The version of the newest entry of ml.promotions, whatever day it serves from."""
    last = max(_log_now(lake), key=lambda row: row["entry"], default=None)
    return last["version"] if last else None


def _log_now(lake: Lake) -> list[Row]:
    """ml.promotions as it is now, not as this run has read it: somebody may have rolled back since."""
    return lake.read("ml.promotions", lake.version("ml.promotions")).collect()


def tracking_uri(lake: Lake) -> str:
    """MLflow's database beside the lake's tables."""
    file = lake.local_folder("_mlflow/mlflow.db")
    file.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{file}"
