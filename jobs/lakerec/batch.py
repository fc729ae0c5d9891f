"""Batch inference in buckets of users: what a killed run had scored is not scored again, and how far it is is told."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from lakerec.errors import ModelError
from lakerec.lake import local_frame
from lakerec.scoring import SCORED, BatchFunction, bucket_file, buckets_in

USERS = 1000  # of a bucket at most, about: what a killed run loses of each core's work
FEW = 100  # a worker takes some ten seconds to load the model: fewer users than this are done sooner by one
WAVES = 4  # buckets per core at least, so that cores end together
KEPT_DAYS = 7  # what a failed run had scored is there to go on from
EVERY = 15.0  # seconds between two lines of progress
BROKEN = 0.01  # share of users that may fail before the run does
DONE = "bucket int, users long, failed long, first_failure string"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Scored:
    """Rows user_id, item_id, score, source, and how many users they are of."""

    rows: DataFrame
    users: int
    resumed: int
    failed: int
    seconds: float


def counts(parts: Sequence[Scored]) -> dict[str, object]:
    """What ops.runs tells of the scoring of one or more days; nothing of none."""
    if not parts:
        return {}
    found = {name: sum(getattr(part, name) for part in parts) for name in ("users", "resumed", "failed")}
    seconds = max(sum(part.seconds for part in parts), 1e-9)
    return found | {"users_per_second": f"{(found['users'] - found['resumed']) / seconds:.1f}"}


def count_of(users: int, cores: int) -> int:
    """How many buckets so many users make on so many cores; part of what a workspace is named by."""
    return max(1, min(cores * WAVES, users // FEW), -(-users // USERS))


def fingerprint(*parts: object) -> str:
    """A name for what scores depend on: the same parts, the same name."""
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def workspace(folder: Path, name: str, run_id: str) -> Iterator[Path]:
    """A folder for the buckets of `name`, kept where the run fails; one of its own while another run is at it.

    `name` is DAY-INPUTS: behind a run that has ended, what others of the day had from other inputs is of no use.
    """
    with ExitStack() as held:
        place = folder / name
        if not _taken(place, held):
            place = folder / f"{name}-{run_id}"
            _taken(place, held)  # or on a file system that locks no folders
        yield place
        siblings = [
            each for each in folder.glob(f"{name.rpartition('-')[0]}-*") if each != place and _taken(each, held)
        ]
        for done in (place, *siblings, *_forgotten(folder)):
            shutil.rmtree(done, ignore_errors=True)


def _taken(place: Path, held: ExitStack) -> bool:
    """Whether a folder is there and locked by nobody else, now that it was asked for; the lock is held from here on."""
    while True:
        place.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(place, os.O_RDONLY)
        except FileNotFoundError:  # a run that has just ended has removed it
            continue
        held.callback(os.close, lock)
        if not _locked(lock):
            return False
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), place.stat()):
                return True


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held by another run, or a file system that locks no folders
        return False
    return True


def _forgotten(folder: Path) -> list[Path]:
    """What runs left that nobody took up."""
    found = []
    for each in folder.iterdir():
        with suppress(FileNotFoundError):  # removed by a run that has just ended
            if time.time() - each.stat().st_mtime > KEPT_DAYS * 86400:
                found.append(each)
    return found


def run(
    spark: SparkSession, users: DataFrame, total: int, buckets: int, score: BatchFunction, place: Path, say: Say
) -> Scored:
    """Score `users` (user_id and what the function reads), `total` of them, in `buckets` of them into `place`.

    A bucket whose file is there is not scored again. ModelError where more than BROKEN of the users fail.
    """
    began = time.monotonic()
    there = buckets_in(place)
    resumed = sum(there.values())
    if there:
        say(f"{resumed} of {total} users were scored by a run that did not end: their lists are kept")
    bucket = F.pmod(F.xxhash64("user_id"), F.lit(buckets)).cast("int")
    due = users.withColumn("bucket", bucket).where(~F.col("bucket").isin([*there, -1]))
    with _progress(place, total, resumed, say):
        # By number, not by hash: hashed buckets share partitions, and one core waits for another.
        told = due.repartitionById(buckets, "bucket").mapInPandas(score, DONE).collect()
    failed = _failed(told, total, say)
    files = [bucket_file(place, number, count) for number, count in sorted(buckets_in(place).items())]
    partly = [row for row in told if 0 < row["failed"] < row["users"]]
    files += [bucket_file(place, row["bucket"], row["users"], row["failed"]) for row in partly]
    found = [f"file://{file}" for file in files]  # Hadoop's default file system may be another
    rows = spark.read.schema(SCORED).parquet(*found) if found else local_frame(spark, StructType.fromDDL(SCORED))
    return Scored(rows, total, resumed, failed, time.monotonic() - began)


def _failed(told: Sequence[Row], total: int, say: Say) -> int:
    """How many users could not be scored; ModelError where they are many, or where nobody could."""
    failed, faults = 0, [row for row in told if row["failed"]]
    for row in faults:
        if row["failed"] < 0:
            raise ModelError(row["first_failure"])
        failed += row["failed"]
    if failed:
        text = f"{failed} of {total} users could not be scored, the first: {faults[0]['first_failure']}"
        if failed > max(1, BROKEN * total) or failed == total:
            raise ModelError(f"{text}; nothing is written: look at the model and its inputs, then run again")
        say(f"{text}; they keep the list of everyone")
    return failed


@contextmanager
def _progress(place: Path, total: int, resumed: int, say: Say) -> Iterator[None]:
    """Lines of progress while the buckets' files appear."""
    ended, began = threading.Event(), time.monotonic()

    def watch() -> None:
        while not ended.wait(EVERY):
            done = sum(buckets_in(place).values())
            speed = (done - resumed) / (time.monotonic() - began)
            left = f"{(total - done) / speed / 60:.1f} min left" if speed else "no bucket done yet"
            say(f"{done} of {total} users, {speed:.1f} users/s, {left}")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
