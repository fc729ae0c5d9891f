"""What may go from a lake, and what must stay whatever its age: days of tables, models, what runs left behind."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lakerec.config import Config
from lakerec.sources import BEGINNING


@dataclass(frozen=True)
class Kept:
    """A table's day, and of whom the newest day stays; () for that of the whole table, None where nothing has to."""

    day: str
    newest_of: tuple[str, ...] | None


RULES = {
    "quarantine.events": Kept("ingest_date", None),
    "ml.sequences": Kept("as_of_date", ("user_id",)),
    "ml.behaviour_patterns": Kept("as_of_date", ()),
    "ml.user_patterns": Kept("as_of_date", ()),
    "gold.recommendations": Kept("as_of_date", ("user_id",)),
}


def kept_from(config: Config, name: str, end: date) -> date:
    """The first day that a table keeps whole at an upkeep of days up to `end` (excluded); BEGINNING if it keeps all."""
    days = config.retention.get(name)
    return BEGINNING if days is None else end - timedelta(days=days)


def staying(rows: DataFrame, rule: Kept, before: date) -> DataFrame:
    """The rows older than `before` that stay: those of the newest day of whom the rule names."""
    old = rows.where(F.col(rule.day) < F.lit(before))
    if rule.newest_of is None:
        return old.where(F.lit(False))
    newest = rows.groupBy(*rule.newest_of).agg(F.max(rule.day).alias(rule.day))
    return old.join(newest, on=[*rule.newest_of, rule.day], how="left_semi")


def going(rows: DataFrame, rule: Kept, before: date) -> dict[date, int]:
    """How many rows of each day older than `before` do not stay; of the days that lose some."""
    there, stay = rows.where(F.col(rule.day) < F.lit(before)), staying(rows, rule, before)
    marks = there.select(rule.day, F.lit(1).alias("one")).unionAll(stay.select(rule.day, F.lit(-1).alias("one")))
    found = marks.groupBy(rule.day).agg(F.sum("one").alias("rows")).where("rows > 0")
    return {row[rule.day]: int(row["rows"]) for row in found.collect()}


def superseded(snapshots: DataFrame, before: date) -> list[str]:
    """The training snapshots of days before `before`, but for the newest of all."""
    newest = snapshots.agg(F.max("as_of_date").alias("newest"))
    older = snapshots.join(newest, on=F.col("as_of_date") < F.col("newest"), how="left_semi")
    found = older.where(F.col("as_of_date") < F.lit(before)).select("snapshot_id").distinct().orderBy("snapshot_id")
    return [str(row["snapshot_id"]) for row in found.collect()]


def without_manifest(examples: DataFrame, snapshots: DataFrame, before: date) -> list[str]:
    """The training snapshots that have examples alone, as their day's was built anew, with no cut from `before` on."""
    cuts = examples.groupBy("snapshot_id").agg(F.max("cut_date").alias("last"))
    old = cuts.where(F.col("last") < F.lit(before)).join(snapshots, on="snapshot_id", how="left_anti")
    return [str(row["snapshot_id"]) for row in old.select("snapshot_id").orderBy("snapshot_id").collect()]


def idle(folder: Path, days: float, kept: Collection[str] = ()) -> list[Path]:
    """What lies in a folder, has none of the `kept` names and was not written to for `days`; sorted."""
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    return [each for each in there if each.name not in kept and time.time() - touched(each) > days * 86400]


def remove(places: Iterable[Path]) -> None:
    """Remove files, links and whole folders."""
    for place in places:
        shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink(missing_ok=True)


def touched(place: Path) -> float:
    """When a file, or the newest of a folder's files, was last written, in seconds since 1970; now if it has gone."""
    newest = 0.0
    for each in (place, *place.rglob("*")):
        with suppress(FileNotFoundError):  # a training or a scoring beside the upkeep has renamed or removed it
            newest = max(newest, each.lstat().st_mtime)
    return newest or time.time()
