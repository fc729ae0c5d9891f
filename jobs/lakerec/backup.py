"""Backups of a whole lake: each a folder that is a lake by itself, whose unchanged files are links to the last one's.

Delta's files are never changed once written. So a backup pins every table's version under the lease, which takes
moments, and copies without it: what is committed meanwhile is left out by its version. No Spark.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from lakerec import __version__
from lakerec.config import Config
from lakerec.errors import BackupError, ConfigError, LakeBusyError
from lakerec.lake import COMMIT, LISTS, held, live_files, locked
from lakerec.tables import table, table_names

MANIFEST = "backup.json"
LOG, LAST_CHECKPOINT = "_delta_log", "_last_checkpoint"
WRITING = ".writing"  # locked while a backup is written: the kernel frees it, however its process ends
RESTORED = ".restored."  # begins a folder of a lake: what is left of a backup to be moved in, whole and checked
REGISTRY = "_mlflow/mlflow.db"
# What SQLite writes beside a database: of another moment than the copy, which it would be rolled back by.
UNDER_WAY = {f"{REGISTRY}-{kind}" for kind in ("journal", "wal", "shm")}
# What a backup does not hold, and why it need not.
LEFT_OUT = {
    "_lease": "belongs to a process",
    "_lease.jvm": "belongs to a process",
    "_serving": "the embedded PostgreSQL: publish_recommendations fills a new one from gold.recommendations",
    "_scoring": "what a scoring that runs has done so far",
    "_dq": "pages of Data Docs: the outcomes are rows of ops.dq_results",
}
# What a lake without a table may have.
OF_NO_RUN = ("_lease", "_lease.jvm", "_schema.json", "._schema.json.crc")


@dataclass(frozen=True)
class Backup:
    """What a backup holds: each table's version, and the SHA-256 of each file by its path in the lake."""

    taken_at: str
    code_version: str
    tables: dict[str, int]
    files: dict[str, str]


def back_up(config: Config, folder: Path, run_id: str) -> tuple[Path, Backup, int]:
    """Write a backup below `folder`: where it is, what it holds, and how many files were copied and not linked.

    Raises LakeBusyError where no moment comes in which no run holds the lease, BackupError where it is not whole.
    """
    lake = _local(config)
    if folder.resolve().is_relative_to(lake.resolve()):
        raise BackupError(f"{folder} lies in the lake {lake}: choose a folder outside it, best on another disk")
    with held(config, "backup", run_id):
        if half := _half_restored(lake):
            raise BackupError(f"the lake {lake} is half restored: run `lakerec restore-lake` with `--at {half}` first")
        tables, now = pinned(lake), datetime.now(UTC)
    if not tables:
        raise BackupError(f"the lake {lake} has no table, nothing to back up: is it the right lake?")
    place = folder / f"{now:%Y%m%dT%H%M%S.%f}"
    draft = folder / f".{place.name}.{socket.gethostname()}"
    _remove_dead(folder)
    with locked(draft / WRITING, f"the draft {draft}", "backup", run_id, 0):
        try:
            before = backups(folder)
            held_files, copied = _copy_all(lake, draft, tables, before[-1] if before else None)
            made = Backup(now.isoformat(timespec="seconds"), __version__, tables, held_files)
            _check_whole(draft, made)
            (draft / MANIFEST).write_text(json.dumps(asdict(made), indent=0), encoding="utf-8")
            (draft / WRITING).unlink()
            draft.rename(place)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return place, made, copied


def _remove_dead(folder: Path) -> None:
    """Remove the drafts of this machine whose processes were killed: their locks are free.

    Of another machine's nothing is known: not every file system tells locks from one machine to the other.
    """
    for draft in (one for one in folder.glob(".[0-9]*") if one.name.endswith(f".{socket.gethostname()}")):
        with suppress(LakeBusyError), locked(draft / WRITING, f"the draft {draft}", "backup", "that removes it", 0):
            shutil.rmtree(draft, ignore_errors=True)


def restore_lake(config: Config, folder: Path, name: str | None) -> tuple[Path, Backup]:
    """Fill an empty lake from a backup below `folder`, the newest unless named; every file is checked by its hash.

    One that was killed goes on. Raises BackupError where there is no such backup, where it is damaged, or where the
    lake is not empty.
    """
    lake, place = _local(config), _named(folder, name)
    made = manifest(place)
    draft, whole = lake / ".restoring", lake / f"{RESTORED}{place.name}"
    with held(config, "restore-lake", place.name):
        if whole.is_dir():
            _check_untouched(lake, made)
        else:
            _check_empty(lake, draft)
            shutil.rmtree(draft, ignore_errors=True)
            for relative, digest in made.files.items():
                _bring_back(place, draft, relative, digest)
            draft.rename(whole)
        for one in whole.iterdir():
            one.rename(lake / one.name)
        whole.rmdir()
    return place, made


def _half_restored(lake: Path) -> str | None:
    """The backup that a restore of this lake was killed with, once its files began to appear."""
    return next((one.name.removeprefix(RESTORED) for one in lake.glob(f"{RESTORED}*")), None)


def _check_empty(lake: Path, draft: Path) -> None:
    if half := _half_restored(lake):
        raise BackupError(f"the lake {lake} is half restored: `--at {half}` goes on, or move the lake away first")
    if there := [one.name for one in lake.iterdir() if one.name not in (*OF_NO_RUN, draft.name)]:
        raise BackupError(f"the lake {lake} is not empty ({', '.join(sorted(there)[:5])}): move it away first")


def _check_untouched(lake: Path, made: Backup) -> None:
    """Raise BackupError where a run wrote to the half of a lake that was there."""
    for name, version in pinned(lake).items():
        if version != made.tables.get(name):
            raise BackupError(
                f"{name}: a run wrote to the half-restored lake {lake}; move it away, then restore it with Airflow down"
            )


def last_lists(config: Config, made: Backup) -> date | None:
    """The newest day of lists in a lake that was filled from a backup; None where it has none."""
    place, version = Path(config.lake) / table(LISTS).path, made.tables.get(LISTS)
    names = [] if version is None else [str(file.relative_to(place)) for file in live_files(place, version)]
    days = [date.fromisoformat(found[1]) for name in names if (found := re.match(r"as_of_date=([\d-]+)/", name))]
    return max(days, default=None)


def _bring_back(place: Path, draft: Path, relative: str, digest: str) -> None:
    if ".." in Path(relative).parts or Path(relative).is_absolute():
        raise BackupError(
            f"{place / MANIFEST}: {relative} leads out of the lake; nothing was restored: use an earlier backup"
        )
    if not (place / relative).is_file():
        raise BackupError(f"{place / relative} is missing: the backup is damaged; use an earlier one")
    _copy(place / relative, draft / relative)
    if _sha256(draft / relative) != digest:
        raise BackupError(
            f"{place / relative} differs from its hash: the backup is damaged, and each other one that has "
            "this file from the same time; use one that has not"
        )


def backups(folder: Path) -> list[Path]:
    """The whole backups below a folder, oldest first."""
    return sorted(file.parent for file in folder.glob(f"[0-9]*/{MANIFEST}"))


def manifest(place: Path) -> Backup:
    """What a backup holds; raises BackupError where that cannot be read."""
    try:
        return Backup(**json.loads((place / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BackupError(f"{place / MANIFEST} is no backup's list of files ({error}): use an earlier one") from None


def pinned(lake: Path) -> dict[str, int]:
    """The newest version of every table that is there."""
    logs = {name: lake / table(name).path / LOG for name in table_names()}
    return {name: max(_versions(log)) for name, log in logs.items() if log.is_dir() and _versions(log)}


def kept(relative: Path, tables: Mapping[str, int]) -> bool:
    """Whether a file of a lake belongs to a backup with these versions of the tables."""
    if relative.parts[0] in LEFT_OUT or any(part.startswith(".") for part in relative.parts):
        return False
    if relative.as_posix() in UNDER_WAY:
        return False
    if LOG not in relative.parts:
        return True
    name, number = ".".join(relative.parts[:2]), relative.name.split(".")[0]
    return number.isdigit() and int(number) <= tables.get(name, -1)


def _local(config: Config) -> Path:
    if "://" in config.lake:
        raise ConfigError(f"{config.lake} is no folder: an object store has versions and copies of its own")
    if config.files:
        raise ConfigError(
            f"{config.where('files')}: models lie in {config.files}: copy that folder and the lake by hand"
        )
    return Path(config.lake)


def _named(folder: Path, name: str | None) -> Path:
    known = backups(folder)
    found = next((one for one in reversed(known) if name in (None, one.name)), None)
    if found is None:
        raise BackupError(f"{folder} has no backup{f' {name}' if name else ''}: {_listed(known)}")
    return found


def _listed(known: list[Path]) -> str:
    return f"it has {', '.join(one.name for one in known)}" if known else "`lakerec backup` writes one"


def _versions(log: Path) -> list[int]:
    return [int(found[1]) for found in map(COMMIT.match, os.listdir(log)) if found]


def _copy_all(lake: Path, draft: Path, tables: Mapping[str, int], before: Path | None) -> tuple[dict[str, str], int]:
    """Copy or link each file; their hashes, and how many were copied. A file that goes meanwhile is left out.

    What is linked is read: all backups that have a file share it, and its loss would be theirs.
    """
    known = manifest(before).files if before else {}
    found, copied = {}, 0
    for relative in sorted(_walk(lake)):
        if not kept(relative, tables):
            continue
        path = relative.as_posix()
        old = before / relative if before and path in known else None
        with suppress(FileNotFoundError):
            if old is not None and path != REGISTRY and _intact(old, lake / relative, known[path]):
                _link(old, draft / relative)
                found[path] = known[path]
            else:
                (_copy_database if path == REGISTRY else _copy)(lake / relative, draft / relative)
                found[path], copied = _sha256(draft / relative), copied + 1
    return found, copied


def _walk(lake: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(lake, followlinks=True):  # a model may be a link to where it was trained
        yield from (Path(folder, name).relative_to(lake) for name in names)


def _intact(old: Path, file: Path, digest: str) -> bool:
    """Whether an older backup has a file as it is now, and its disk gives back what was written."""
    now = file.stat()
    try:
        known = old.stat()
        unchanged = (known.st_size, known.st_mtime_ns) == (now.st_size, now.st_mtime_ns)
        return unchanged and _sha256(old) == digest
    except OSError:
        return False


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def _link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the disk has none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _copy_database(source: Path, target: Path) -> None:
    """SQLite's own copy: whole, whatever is written meanwhile."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


def _check_whole(draft: Path, made: Backup) -> None:
    """Raise BackupError where a table's version needs a file that the backup lacks."""
    for name, version in made.tables.items():
        place = draft / table(name).path
        missing = [one for one in live_files(place, version) if not one.is_file()]
        if missing:
            raise BackupError(f"{name}: {missing[0]} went away while it was copied; run the backup again")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
