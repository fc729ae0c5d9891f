"""Backups of a lake of real Delta tables: whole, incremental, consistent beside a writer, refused where damaged."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from argparse import Namespace
from contextlib import closing
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from deltalake import DeltaTable, write_deltalake
from tests.conftest import SETTINGS

from lakerec import backup, cli
from lakerec.backup import back_up, backups, kept, restore_lake
from lakerec.config import Config, load_config
from lakerec.errors import BackupError, ConfigError, LakeBusyError
from lakerec.lake import held

TABLES = ("silver/events", "ml/sequences", "gold/recommendations")


def commit(lake: Path, table: str, n: int) -> None:
    """One more commit: a day's rows."""
    rows = pa.table({"as_of_date": [date(2026, 3, 1 + n % 28)] * 3, "n": [n] * 3})
    write_deltalake(lake / table, rows, mode="append", partition_by=["as_of_date"])


def rows(lake: Path, table: str) -> list[tuple]:
    return sorted(map(tuple, DeltaTable(str(lake / table)).to_pandas().to_numpy().tolist()))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A lake of three tables with some commits, a model, a registry, and what is no part of a backup."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(SETTINGS))
    config = load_config(file)
    lake = Path(config.lake)
    for n in range(3):
        for table in TABLES:
            commit(lake, table, n)
    for name in (
        "_models/v1/manifest.json",
        "_models/.v2.77/half",
        "_serving/uri",
        "_scoring/x/bucket",
        "_dq/page.html",
    ):
        (lake / name).parent.mkdir(parents=True)
        (lake / name).write_text(name)
    (lake / "_mlflow").mkdir()
    with closing(sqlite3.connect(lake / "_mlflow/mlflow.db")) as base:
        base.execute("create table runs (name text)")
        base.execute("insert into runs values ('one')")
        base.commit()
    return config


def test_a_destroyed_lake_comes_back_with_every_table_model_and_registry(config: Config, tmp_path: Path):
    lake, folder = Path(config.lake), tmp_path / "backups"
    before = {table: rows(lake, table) for table in TABLES}
    place, made, _ = back_up(config, folder, "run")
    assert {table: rows(place, table) for table in TABLES} == before  # a backup is a lake by itself
    shutil.rmtree(lake)
    assert restore_lake(config, folder, None) == (place, made)
    assert {table: rows(lake, table) for table in TABLES} == before
    assert DeltaTable(str(lake / TABLES[0]), version=1).to_pyarrow_table().num_rows == 6  # with its history
    assert sorted(one.name for one in lake.iterdir()) == ["_lease", "_mlflow", "_models", "gold", "ml", "silver"]
    assert [one.name for one in (lake / "_models").iterdir()] == ["v1"]
    with closing(sqlite3.connect(lake / "_mlflow/mlflow.db")) as base:
        assert base.execute("select name from runs").fetchall() == [("one",)]
    commit(lake, TABLES[0], 3)  # and goes on
    assert DeltaTable(str(lake / TABLES[0])).version() == 3


def test_the_command_that_publishes_the_last_lists_of_a_restored_lake_is_told(config: Config, tmp_path: Path, capsys):
    back_up(config, tmp_path / "backups", "run")
    copy = tmp_path / "copy"
    cli.restore_whole_lake(Namespace(config=config.file, lake=str(copy), folder=tmp_path / "backups", at=None))
    told = capsys.readouterr().out
    assert f"jobs/publish_recommendations.py --config {config.file} --lake {copy} " in told
    assert told.endswith("--start 2026-03-03 --end 2026-03-04\n")


def test_a_backup_may_lie_where_a_path_has_blanks_and_letters_of_any_alphabet(config: Config, tmp_path: Path):
    lake = Path(config.lake)
    write_deltalake(lake / "silver/kg", pa.table({"kind": ["a b/ü"], "n": [1]}), partition_by=["kind"])
    for _ in range(2):  # the second looks for what the first has
        place, _, _ = back_up(config, tmp_path / "back ups of März", "run")
    assert rows(place, "silver/kg") == rows(lake, "silver/kg") == [("a b/ü", 1)]


def test_the_second_backup_copies_only_what_is_new_and_outlives_the_first(config: Config, tmp_path: Path):
    lake, folder = Path(config.lake), tmp_path / "backups"
    first, _, copied = back_up(config, folder, "run")
    assert copied > 15
    commit(lake, TABLES[0], 3)
    second, made, copied = back_up(config, folder, "run")
    assert copied == 3  # a data file, a commit, and the registry, which is a file that changes
    data = next(name for name in made.files if name.endswith(".parquet") and name.startswith("ml/"))
    assert (first / data).stat().st_ino == (second / data).stat().st_ino != (lake / data).stat().st_ino
    shutil.rmtree(first)
    shutil.rmtree(lake)
    restore_lake(config, folder, second.name)
    assert len(rows(lake, TABLES[0])) == 12


@pytest.mark.parametrize("gone", [False, True], ids=["other bytes", "gone"])
def test_a_file_that_is_lost_in_the_last_backup_is_copied_anew(config: Config, tmp_path: Path, gone: bool):
    lake, folder = Path(config.lake), tmp_path / "backups"
    first, made, _ = back_up(config, folder, "run")
    data = next(name for name in made.files if name.endswith(".parquet"))
    known = (first / data).stat()
    rotten = bytearray((first / data).read_bytes())
    rotten[7] ^= 1
    (first / data).write_bytes(rotten)
    os.utime(first / data, ns=(known.st_atime_ns, known.st_mtime_ns))
    if gone:
        (first / data).unlink()
    second, made, _ = back_up(config, folder, "run")
    assert (second / data).read_bytes() == (lake / data).read_bytes()
    shutil.rmtree(lake)
    with pytest.raises(BackupError, match="is missing" if gone else "differs from its hash"):
        restore_lake(config, folder, first.name)
    restore_lake(config, folder, second.name)


def test_a_version_that_was_written_again_otherwise_is_not_taken_for_the_old_one(config: Config, tmp_path: Path):
    lake, folder = Path(config.lake), tmp_path / "backups"
    first, _, _ = back_up(config, folder, "run")
    commit(lake, TABLES[0], 3)
    late, _, _ = back_up(config, folder, "run")
    shutil.rmtree(lake)
    restore_lake(config, folder, first.name)
    commit(lake, TABLES[0], 9)  # version 3 once more, with other rows
    again, _, _ = back_up(config, folder, "run")
    assert [row[1] for row in rows(late, TABLES[0])][-1] == 3
    assert [row[1] for row in rows(again, TABLES[0])][-1] == 9


def test_a_backup_beside_a_writer_holds_one_state_of_all_tables(config: Config, tmp_path: Path):
    """The writer commits to the three tables in turn under the lease: a state between is none."""
    lake, over = Path(config.lake), threading.Event()
    patient = config.model_copy(update={"lease": config.lease.model_copy(update={"wait_seconds": 30})})

    def write() -> None:
        for n in range(3, 1000):
            if over.is_set():
                return
            with held(patient, "writer", f"run-{n}"):
                for table in TABLES:
                    commit(lake, table, n)
            time.sleep(0.01)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        made = [back_up(patient, tmp_path / "backups", "run")]
        while len(made) < 200 and (len(made) < 4 or made[0][1].tables == made[-1][1].tables):
            time.sleep(0.3)  # the writer's turn: it looks for the lease every 0.2 s
            made.append(back_up(patient, tmp_path / "backups", "run"))
    finally:
        over.set()
        writer.join()
    versions = [set(one.tables.values()) for _, one, _ in made]
    assert all(len(found) == 1 for found in versions) and len({min(found) for found in versions}) > 1
    for place, one, _ in made:
        assert {table: len(rows(place, table)) for table in TABLES} == dict.fromkeys(
            TABLES, 3 * (1 + min(one.tables.values()))
        )


def test_a_run_that_holds_the_lease_is_named(config: Config, tmp_path: Path):
    with (
        held(
            config,
            "conform_events",
            "the-run",
        ),
        pytest.raises(LakeBusyError, match="conform_events"),
    ):
        back_up(config, tmp_path / "backups", "run")
    assert backups(tmp_path / "backups") == []


def test_a_file_that_went_away_while_it_was_copied_is_named_and_nothing_is_left(config, tmp_path, monkeypatch):
    """As a vacuum from outside would do it: between the look at the folder and the copy of the file."""
    victim = next((Path(config.lake) / TABLES[0]).rglob("*.parquet"))
    walk = backup._walk

    def vacuumed(lake: Path):
        found = list(walk(lake))
        victim.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(backup, "_walk", vacuumed)
    with pytest.raises(BackupError, match=rf"silver.events: .*{victim.name} went away"):
        back_up(config, tmp_path / "backups", "run")
    assert list((tmp_path / "backups").iterdir()) == []


def test_a_damaged_backup_is_named_and_the_lake_stays_empty(config: Config, tmp_path: Path):
    place, made, _ = back_up(config, tmp_path / "backups", "run")
    victim = next(name for name in made.files if name.endswith(".parquet"))
    content = bytearray((place / victim).read_bytes())
    content[10] ^= 1
    (place / victim).write_bytes(content)
    shutil.rmtree(config.lake)
    with pytest.raises(BackupError, match=rf"{Path(victim).name} differs from its hash"):
        restore_lake(config, tmp_path / "backups", None)
    assert {one.name for one in Path(config.lake).iterdir()} <= {"_lease", ".restoring"}


def test_a_backup_that_leads_out_of_the_lake_is_refused(config: Config, tmp_path: Path):
    place, _, _ = back_up(config, tmp_path / "backups", "run")
    told = (place / "backup.json").read_text()
    (place / "backup.json").write_text(told.replace('"_models/v1/manifest.json"', '"../../planted"'))
    shutil.rmtree(config.lake)
    with pytest.raises(BackupError, match="leads out of"):
        restore_lake(config, tmp_path / "backups", None)
    assert not (tmp_path / "planted").exists()


def test_a_lake_that_is_not_empty_is_not_touched(config: Config, tmp_path: Path):
    back_up(config, tmp_path / "backups", "run")
    commit(Path(config.lake), TABLES[0], 3)
    with pytest.raises(BackupError, match="is not empty"):
        restore_lake(config, tmp_path / "backups", None)
    assert len(rows(Path(config.lake), TABLES[0])) == 12


def killed(text: str, config: Config, folder: Path) -> None:
    """A process that runs these lines with a configuration and a folder of backups until it kills itself -9."""
    lines = "import os, sys, pathlib; from lakerec import backup; from lakerec.config import load_config\n"
    lines += "config, folder = load_config(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2])\n"
    done = subprocess.run([sys.executable, "-c", lines + text, str(config.file), str(folder)])
    assert done.returncode == -signal.SIGKILL


def test_the_draft_of_a_killed_backup_is_removed_by_the_next_one_and_no_other_draft(config, tmp_path, monkeypatch):
    folder = tmp_path / "backups"
    die = "backup._check_whole = lambda *_: os.kill(os.getpid(), 9)\nbackup.back_up(config, folder, 'run')"
    killed(die, config, folder)
    (left,) = folder.iterdir()
    assert left.name.startswith(".2") and len(list(left.rglob("*.parquet"))) == 9
    another = folder / ".20260301T000000.000000.another-machine"
    another.mkdir()
    check, inner = backup._check_whole, []

    def beside(*given: object) -> None:
        monkeypatch.setattr(backup, "_check_whole", check)
        inner.append(back_up(config, folder, "beside")[0])  # while the first one still writes
        check(*given)

    monkeypatch.setattr(backup, "_check_whole", beside)
    outer = back_up(config, folder, "run")[0]
    assert {*folder.iterdir()} == {another, outer, *inner}
    shutil.rmtree(config.lake)
    restore_lake(config, folder, outer.name)
    assert not list(Path(config.lake).rglob(".writing"))


RESTORE = """
rename, left = pathlib.Path.rename, [{}]
def dying(self, target):
    if not left[0]:
        os.kill(os.getpid(), 9)
    left[0] -= 1
    return rename(self, target)
pathlib.Path.rename = dying
backup.restore_lake(config, folder, None)
"""


@pytest.mark.parametrize("moved", [0, 1, 2, 5], ids=["checked", "none moved", "one moved", "all but one moved"])
def test_a_restore_that_was_killed_goes_on(config: Config, tmp_path: Path, moved: int):
    lake, folder = Path(config.lake), tmp_path / "backups"
    before = {table: rows(lake, table) for table in TABLES}
    place, made, _ = back_up(config, folder, "run")
    shutil.rmtree(lake)
    killed(RESTORE.format(moved), config, folder)
    assert restore_lake(config, folder, None) == (place, made)
    assert {table: rows(lake, table) for table in TABLES} == before
    assert sorted(one.name for one in lake.iterdir()) == ["_lease", "_mlflow", "_models", "gold", "ml", "silver"]


def test_a_half_restored_lake_is_no_other_backups_and_is_not_backed_up_and_not_written_over(config, tmp_path: Path):
    lake, folder = Path(config.lake), tmp_path / "backups"
    first, _, _ = back_up(config, folder, "run")
    second, _, _ = back_up(config, folder, "run")
    shutil.rmtree(lake)
    killed(RESTORE.format(5), config, folder)
    with pytest.raises(BackupError, match=rf"half restored: `--at {second.name}` goes on"):
        restore_lake(config, folder, first.name)
    with pytest.raises(BackupError, match=rf"half restored: .*`--at {second.name}`"):
        back_up(config, folder, "run")
    there = next(table for table in TABLES if (lake / table).is_dir())
    commit(lake, there, 3)
    with pytest.raises(BackupError, match="a run wrote to the half-restored lake"):
        restore_lake(config, folder, None)


@pytest.mark.parametrize(("lake", "files"), [("s3a://shop/lake", "files"), ("lake", "files")])
def test_a_lake_that_is_not_whole_in_one_folder_is_refused(config: Config, tmp_path: Path, lake: str, files: str):
    config.file.write_text(yaml.safe_dump(SETTINGS | {"lake": lake, "files": files}))
    with pytest.raises(ConfigError, match=r"is no folder: an object store|copy that folder and the lake by hand"):
        back_up(load_config(config.file), tmp_path / "backups", "run")
    assert not (tmp_path / "backups").exists()


def test_what_is_no_backup_is_named(config: Config, tmp_path: Path):
    with pytest.raises(BackupError, match="has no backup"):
        restore_lake(config, tmp_path / "nowhere", None)
    with pytest.raises(BackupError, match="lies in the lake"):
        back_up(config, Path(config.lake) / "backups", "run")
    place, _, _ = back_up(config, tmp_path / "backups", "run")
    with pytest.raises(BackupError, match=rf"no backup ../{place.name}: it has {place.name}"):
        restore_lake(config, tmp_path / "backups", f"../{place.name}")


def test_a_backup_is_closed_to_others_like_the_lake(config: Config, tmp_path: Path):
    before = os.umask(0o027)
    try:
        place, _, _ = back_up(config, tmp_path / "backups", "run")
    finally:
        os.umask(before)
    assert place.stat().st_mode & 0o007 == 0


@pytest.mark.parametrize(
    ("path", "belongs"),
    [
        ("silver/events/_delta_log/00000000000000000002.json", True),
        ("silver/events/_delta_log/00000000000000000003.json", False),
        ("silver/events/_delta_log/00000000000000000002.checkpoint.parquet", True),
        ("silver/events/_delta_log/00000000000000000010.checkpoint.0000000001.0000000002.parquet", False),
        ("silver/events/_delta_log/_last_checkpoint", False),
        ("silver/items/_delta_log/00000000000000000000.json", False),  # not pinned: it came later
        ("silver/events/event_date=2026-03-01/part-0.snappy.parquet", True),
        ("silver/events/event_date=2026-03-01/.part-0.snappy.parquet.crc", False),
        ("_schema.json", True),
        ("_serving/cluster/base/1", False),
        ("_mlflow/mlflow.db", True),
        ("_mlflow/mlflow.db-journal", False),  # it would roll the database's copy back
        ("_mlflow/mlflow.db-wal", False),
    ],
)
def test_what_belongs_to_a_backup(path: str, belongs: bool):
    assert kept(Path(path), {"silver.events": 2}) is belongs
