"""The upkeep killed -9, at moments all over its run: what has to stay is there, and the next upkeep does the rest."""

from __future__ import annotations

import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from deltalake import DeltaTable
from stages import DAYS, OWN
from tests.conftest import SHORT_LIVED, Shop, Start, day_after
from tests.processes import ended, job_command, kill

pytestmark = pytest.mark.faults
STEP, MOMENTS = "maintain_lake", 6
RETENTION = {"quarantine.events": 2, "gold.recommendations": 2}


def aged(shop: Shop) -> Shop:
    """A lake of many small commits, with days past their retention and versions past theirs."""
    shop.settings |= {"retention": RETENTION, **SHORT_LIVED}
    lake = shop.job("score_candidates").lake
    fields = {"rank": 1, "item_id": "i1", "score": 0.5, "source": "text", "propensity": 1.0, "model_version": "m"}
    for n in range(3):
        lists = [{"as_of_date": day_after(n), "user_id": user, **fields} for user in ("u1", "nobody-else", "*")]
        lake.append_rows("gold.recommendations", lists)
        lake.append_rows("quarantine.events", [{"ingest_date": day_after(n), "row_number": 100 + n}])
    return shop


def tables(shop: Shop) -> list[str]:
    """Every table but what is told of runs and of sizes."""
    found = [log.parent for log in (shop.folder / "lake").glob("*/*/_delta_log")]
    return sorted(f"{one.parent.name}.{one.name}" for one in found if one.parent.name not in {"ops", "_dq"})


def rows(shop: Shop) -> dict[str, Counter]:
    """Each table's rows without what names a run, with how often each is there."""
    return {name: Counter(map(told, shop.rows(name))) for name in tables(shop)}


def told(row: dict) -> str:
    return repr([(name, value) for name, value in row.items() if name not in OWN])


def on_disk(shop: Shop, name: str) -> tuple[set[Path], set[Path]]:
    """The table's data files: those that are there, and those of its version."""
    folder = shop.folder / "lake" / name.replace(".", "/")
    there = {file for file in folder.rglob("*.parquet") if "_delta_log" not in file.parts}
    return there, {Path(file.removeprefix("file://")) for file in DeltaTable(str(folder)).file_uris()}


def test_killed_at_moments_all_over_its_run(before: Callable[..., Shop], start: Start):
    shop, quiet = aged(before("end")), aged(before("end", "quiet"))
    first, began = rows(shop), time.monotonic()
    ended(start, quiet, STEP, DAYS)
    seconds, last = time.monotonic() - began, rows(quiet)
    assert any(last[name] != first[name] for name in RETENTION)
    draw, died, seen = random.Random(STEP), 0, []
    for moment in range(MOMENTS):
        process, began = start(job_command(shop, STEP, days=DAYS), shop.folder / "out.txt"), time.monotonic()
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds * (0.25 + 0.75 * (moment + draw.random()) / MOMENTS))
            seconds = time.monotonic() - began  # it came to its end: less was left to do, or the machine is faster now
        died += process.poll() is None
        kill(process, whole=moment % 2 == 0)  # else its JVM is left to find out
        now = rows(shop)
        assert all(last[name] <= now[name] <= first[name] for name in first)
        seen.append(now)
    assert died >= MOMENTS // 2 and seen[0] != last  # it died before all was done, too
    ended(start, shop, STEP, DAYS)
    assert rows(shop) == last
    for name in tables(shop):
        there, current = on_disk(shop, name)
        assert len(current) == len(on_disk(quiet, name)[1]) and there >= current
    # What the killed ones had written and not committed goes with the next upkeep.
    time.sleep(1)
    ended(start, shop, STEP, DAYS)
    assert {name: on_disk(shop, name)[0] for name in tables(shop)} == {
        name: on_disk(shop, name)[1] for name in tables(shop)
    }
