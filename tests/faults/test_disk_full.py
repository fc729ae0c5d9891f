"""A disk without room: one message that names it, every table as it was, and the next run makes what was due."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from stages import DAYS, NEXT, Stages, state
from tests.conftest import Shop, Start
from tests.processes import ended, said

from lakerec import serving
from lakerec.errors import DiskFullError
from lakerec.lake import RUNS
from lakerec.tables import table_names

pytestmark = pytest.mark.faults
MEGABYTES = 400
# A step, what it writes, and the room that is left: for a start, and not for the end.
STEPS = [
    ("ingest_events", "bronze.events", 24 << 10),
    ("conform_events", "silver.events", 48 << 10),
    ("embed_items", "ml.item_embeddings", 8 << 10),
    ("train_scorer", "", 512 << 10),
    ("score_candidates", "gold.recommendations", 12 << 10),
]


@pytest.fixture()
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of MEGABYTES in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    options = ["-o", f"size={MEGABYTES}m", "lakerec-test", str(place)]
    done = subprocess.run(["mount", "-t", "tmpfs", *options], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this process may not mount: {done.stderr}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path, left: int) -> Path:
    """A file that leaves so many bytes."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        for _ in range((shutil.disk_usage(disk).free - left) >> 12):
            file.write(bytes(4096))
    return ballast


@pytest.mark.parametrize(("step", "name", "left"), STEPS, ids=[step for step, *_ in STEPS])
def test_a_full_disk_is_one_message_and_leaves_the_tables(
    step: str, name: str, left: int, disk: Path, before: Callable[..., Shop], start: Start, stages: Stages
):
    shop = before(step)
    shutil.move(shop.folder / "lake", disk / "lake") if (shop.folder / "lake").exists() else (disk / "lake").mkdir()
    (shop.folder / "lake").symlink_to(disk / "lake")
    told_before = (
        "quarantine.events",
        "ops.dq_results",
        RUNS,
    )  # of the gate; of the failure, where room is left for it
    steady = [each for each in table_names() if each not in told_before]
    versions = [shop.version(each) for each in steady]
    ballast = fill(disk, left)
    text = ended(start, shop, step, DAYS, DiskFullError.exit_code)
    message = said(text, "DiskFullError")
    assert f"{disk / 'lake'} has 0 MB free" in message and "make room" in message
    assert "Traceback" not in message
    assert {row["status"] for row in shop.rows(RUNS) if row["job"] == step} <= {"failed"}
    ballast.unlink()
    assert [shop.version(each) for each in steady] == versions
    ended(start, shop, step, DAYS)
    quiet, names = Shop(stages[NEXT[step]], shop.spark), [name] if name else []
    assert state(shop, *names) == state(quiet, *names)
    assert models(shop) == models(quiet)


def test_a_server_without_room_serves_the_lists_it_has(disk: Path, before: Callable[..., Shop], start: Start):
    """The embedded one, whose disk is the lake's; any other says the same of its own."""
    shop, step = before("publish_recommendations"), "publish_recommendations"
    shutil.move(shop.folder / "lake", disk / "lake")
    (shop.folder / "lake").symlink_to(disk / "lake")
    ballast = fill(disk, 1 << 20)  # for the server's folders, and not for its cluster
    assert "make room" in said(ended(start, shop, step, DAYS, DiskFullError.exit_code), "DiskFullError")
    ballast.unlink()
    ended(start, shop, step, DAYS)
    with serving.target(shop.config) as uri:
        lists = rows_of(uri)
        ballast = fill(disk, 64 << 10)
        message = said(ended(start, shop, step, DAYS, DiskFullError.exit_code), "DiskFullError")
        assert "PostgreSQL serving" in message and "No space left" in message and "are whole" in message
        assert rows_of(uri) == lists
        ballast.unlink()
        ended(start, shop, step, DAYS)
        assert rows_of(uri) == lists


def rows_of(uri: str) -> list[tuple[Any, ...]]:
    """What is served."""
    with psycopg.connect(uri) as connection:
        return connection.execute("select * from serving.recommendations order by user_id, rank").fetchall()


def models(shop: Shop) -> list[str]:
    """What lies among the models, drafts and checkpoints included."""
    return sorted(file.name for file in shop.folder.glob("lake/_models/*"))
