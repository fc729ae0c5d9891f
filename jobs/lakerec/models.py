"""Which model: the newest snapshot of a day, the version trained on it, the version that serves a day."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pyspark.sql import Row
from pyspark.sql import functions as F

from lakerec.config import Config
from lakerec.errors import ConfigError, ModelError, NotEnoughDataError, UsageError
from lakerec.lake import Lake, locked
from lakerec.names import as_part

FOLDER = "_models"
ROLLED_BACK = "rolled back"  # how the reason of a rollback begins in ml.promotions


@dataclass(frozen=True)
class Promotion:
    """The model that serves a day: its version, its artefact's folder below the lake and why it was promoted."""

    version: str
    path: str
    reason: str = ""


def snapshot_of(lake: Lake, as_of: date) -> str:
    """The snapshot built as of a day; raises NotEnoughDataError where there is none."""
    row = lake.read("ml.snapshots").where(F.col("as_of_date") == F.lit(as_of)).first()
    if row is None:
        raise NotEnoughDataError(f"no training snapshot as of {as_of}: run build_examples for that day first")
    return str(row["snapshot_id"])


def version_of(snapshot: str, as_of: date, config: Config) -> str:
    """The version of the model trained on a snapshot with these settings: the same input gives the same name."""
    settings = hashlib.sha256(config.decisive().encode()).hexdigest()
    return f"{as_of:%Y%m%d}-{snapshot[:8]}-{settings[:6]}"


def folder(lake: Lake, version: str) -> Path:
    """Where a version's artefact lies; raises UsageError for what cannot be a version's name."""
    return lake.local_folder(f"{FOLDER}/{as_part(version, 'version of a model')}")


def check_one_process(config: Config) -> None:
    """Raise ConfigError in one of torchrun's processes: each would start Spark, and wait at the version's lock."""
    if (count := int(os.environ.get("WORLD_SIZE") or 1)) > 1:
        raise ConfigError(
            f"{config.where('scorer', 'training', 'processes')}: a training starts its processes itself, and "
            f"WORLD_SIZE is {count}, as torchrun sets it: start train_scorer without torchrun and set this to {count}"
        )


@contextmanager
def training(lake: Lake, version: str) -> Iterator[None]:
    """Be a version's only training; raises LakeBusyError after the wait.

    The lock's file goes with whatever else a training leaves beside its artefact.
    """
    out, run = folder(lake, version), lake.run
    place, wait = out.with_name(f".{version}.lock"), lake.config.lease.wait_seconds
    with locked(place, f"the training of {version}", run.job, run.run_id, wait):
        yield


def promotions(lake: Lake) -> list[Row]:
    """The log of promotions, newest first: by effective_from, of one day by entry."""
    return _newest_first(lake.read("ml.promotions").collect())


def _newest_first(log: list[Row]) -> list[Row]:
    return sorted(log, key=lambda row: (row["effective_from"], row["entry"]), reverse=True)


def serving_on(log: list[Row], day: date) -> Promotion | None:
    """What a log, newest first, names for a day; None before any promotion."""
    row = next((row for row in log if row["effective_from"] <= day), None)
    return Promotion(row["version"], row["path"], row["reason"] or "") if row else None


def version_on(log: list[Row], day: date) -> str:
    """What fills a day's lists: the version that serves it, `popularity` without one."""
    model = serving_on(log, day)
    return model.version if model else "popularity"


def serving(lake: Lake, day: date) -> Promotion | None:
    """What ml.promotions names for a day; None before any promotion."""
    return serving_on(promotions(lake), day)


def promote(lake: Lake, version: str, day: date, reason: str) -> None:
    """Append a version to ml.promotions from a day on; the caller holds the lease."""
    path = f"{FOLDER}/{version}"
    entry = 1 + max((row["entry"] for row in _log_now(lake)), default=0)
    line = {"effective_from": day, "version": version, "entry": entry, "path": path, "reason": reason}
    lake.append_rows("ml.promotions", [line])


def roll_back(lake: Lake, version: str, day: date, who: str) -> str:
    """Let a version serve from a day on, recorded under the lease; why it serves. Twice adds no second entry.

    Raises ModelError where its artefact is missing or damaged, UsageError where a later entry would serve on, or
    where later lists are out: of what they were made must stay true.
    """
    check_artefact(folder(lake, version))
    with lake.lease():
        earliest = rollback_day(lake)
        if earliest and day < earliest:
            raise UsageError(
                f"{day} is before {earliest}, the day of the newest lists or promotion: roll back from then"
            )
        serves = serving_on(_newest_first(_log_now(lake)), day)
        told = f"{ROLLED_BACK} by {who}, run {lake.run.run_id}"
        if serves and serves.version == version:
            told = serves.reason
        else:
            promote(lake, version, day, told)
        lake.record([lake.run.row("ok", {"version": version, "rollback": told})])
    return told


def rollback_day(lake: Lake) -> date | None:
    """The first day that a rollback may speak of: that of the newest lists or promotion; None before any."""
    lists = lake.read("gold.recommendations", lake.version("gold.recommendations")).agg(
        F.max("as_of_date").alias("day")
    )
    days = [row["day"] for row in lists.collect()] + [row["effective_from"] for row in _log_now(lake)]
    return max((day for day in days if day), default=None)


def withdrawn(log: list[Row], version: str, day: date) -> str | None:
    """Why a version that was promoted serves no more: the reason of a rollback behind its last entry, up to a day."""
    last = max((row["entry"] for row in log if row["version"] == version), default=None)
    later = [row for row in log if last is not None and row["entry"] > last and row["effective_from"] <= day]
    undone = [row for row in later if (row["reason"] or "").startswith(ROLLED_BACK)]
    return str(max(undone, key=lambda row: row["entry"])["reason"]) if undone else None


def check_artefact(path: Path) -> None:
    """Raise ModelError where a folder holds no manifest, or a file of it is missing or differs from its hash."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        files = manifest.get("files", {}).items()
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{path} holds no model ({error}); see ml.promotions for versions") from None
    for name, expected in files:
        if not (path / name).is_file() or _sha256(path / name) != expected:
            raise ModelError(f"{path / name} is missing or differs from its hash; copy the artefact again")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def newest(lake: Lake) -> str | None:
    """The version of the newest entry of ml.promotions, whatever day it serves from."""
    last = max(_log_now(lake), key=lambda row: row["entry"], default=None)
    return last["version"] if last else None


def needed(lake: Lake, config: Config) -> set[str]:
    """The versions that have served or will, and the one that the configuration names as a teacher."""
    return {row["version"] for row in _log_now(lake)} | {Path(config.scorer.training.teacher).name}


def _log_now(lake: Lake) -> list[Row]:
    """ml.promotions as it is now, not as this run has read it: somebody may have rolled back since."""
    return lake.read("ml.promotions", lake.version("ml.promotions")).collect()


def tracking_uri(lake: Lake) -> str:
    """MLflow's database beside the lake's tables."""
    file = lake.local_folder("_mlflow/mlflow.db")
    file.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{file}"
