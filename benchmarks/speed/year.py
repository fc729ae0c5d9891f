"""A year of days, one by one: does a day cost more when a year lies behind it?

The simulator's shop, 365 windows of one day through every step of reco_daily in one warm session, with the upkeep and
the audits of lake_maintenance each week. Wall seconds of each step; files and logs of each table at each upkeep. The
popular list is served (no model: what grows with the lake is looked at, not the scoring of so many users).
A year passes in an hour or two, so the clock is helped: after each day the logs' files are aged by a day, and versions
are kept for as long as seven of these days take. Aim: a day of the last week at most 1.3 times one of the first.
The result is written anew after every week, so that a year cut short is one of fewer days.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import yaml
from pyspark.sql import SparkSession

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from record import ROOT, keep

from lakerec import job as jobs
from lakerec import serving
from lakerec.cli import LAKE_STEPS, SERVING_STEPS
from lakerec.config import Config, load_config
from lakerec.lake import Window
from lakerec.session import build_session
from lakerec.simulator import simulate
from lakerec.sizes import SIZES

FIRST = date(2025, 1, 1)
STEPS = (*LAKE_STEPS, *SERVING_STEPS)
UPKEEP = ("maintain_lake", "audit_lake")
WEEK = 7
SECONDS_A_DAY = 15  # about what a day takes here
SIZE_COLUMNS = ("files", "small_files", "partitions", "rows", "commits", "log_files", "log_bytes")
GOAL = 1.3


def deployment(folder: Path, days: int, users: int, items: int) -> Config:
    """The demo's shop with files and a lake in a folder of its own."""
    simulate(folder / "demo-data", FIRST, days, users, items, 7)
    raw = yaml.safe_load((ROOT / "conf/demo.yaml").read_text())
    raw["maintenance"] = {"versions_days": WEEK * SECONDS_A_DAY / 86400}
    file = folder / "conf" / "year.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(raw))
    return load_config(file)


def timed(config: Config, spark: SparkSession, step: str, day: int) -> float:
    """Seconds of one step on the n-th day, from 1; what it says goes to the log."""
    start = FIRST + timedelta(days=day - 1)
    began = time.monotonic()
    jobs.body(step)(jobs.start(config, spark, step, Window(start, start + timedelta(days=1))))
    return time.monotonic() - began


def aged_by_a_day(lake: Path) -> None:
    """Make every file of the tables' logs a day older: by that Delta knows what is past its retention."""
    for file in lake.glob("*/*/_delta_log/*"):
        known = file.stat()
        os.utime(file, (known.st_atime, known.st_mtime - 86400))


def sizes(config: Config, spark: SparkSession, day: int) -> dict[str, dict[str, int]]:
    """What the upkeep of a day has measured, by table."""
    end = FIRST + timedelta(days=day)
    lake = jobs.start(config, spark, "bench", Window(end - timedelta(days=1), end)).lake
    rows = lake.read(SIZES).where(f"as_of_date = '{end - timedelta(days=1)}' AND version IS NOT NULL").collect()
    return {row["table_name"]: {name: row[name] for name in SIZE_COLUMNS} for row in rows}


def medians(days: list[dict[str, float]]) -> dict[str, float]:
    """The median seconds of each step over some days."""
    return {name: round(statistics.median(day[name] for day in days), 2) for name in days[0]}


def report(days: list[dict[str, float]], upkeep: list[dict[str, float]], measured: list[Any], about: Any) -> None:
    """Keep what is known so far."""
    first, last = medians(days[1 : 1 + WEEK]), medians(days[-WEEK:])
    by_week = [medians(days[n : n + WEEK]) for n in range(0, len(days) - WEEK + 1, WEEK)]
    growth = {name: round(last[name] / first[name], 2) for name in first}
    keep(
        "speed",
        "year",
        about
        | {"goal": GOAL, "days": len(days), "growth": growth["day"], "growth_of_steps": growth}
        | {"first_week_seconds": first, "last_week_seconds": last, "day_seconds_by_week": [w["day"] for w in by_week]}
        | {"first_upkeep_seconds": upkeep[0], "last_upkeep_seconds": upkeep[-1]}
        | {"first_sizes": measured[0], "middle_sizes": measured[len(measured) // 2], "last_sizes": measured[-1]},
    )


def main() -> None:
    """Run the days; keep and print the result after each week."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("days", 365), ("users", 120), ("items", 80)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as quiet:
        config = deployment(Path(folder), given.days, given.users, given.items)
        spark = build_session(config, "year", given.days)
        days: list[dict[str, float]] = []
        upkeep: list[dict[str, float]] = []
        measured = []
        with serving.target(config):  # a server that runs all day, as a deployment's does
            for day in range(1, given.days + 1):
                with contextlib.redirect_stdout(quiet):
                    steps = {step: timed(config, spark, step, day) for step in STEPS}
                    days.append(steps | {"day": sum(steps.values())})
                    if not day % WEEK:
                        upkeep.append({name: round(timed(config, spark, name, day), 1) for name in UPKEEP})
                        measured.append(sizes(config, spark, day))
                aged_by_a_day(Path(config.lake))
                told = " ".join(f"{name} {seconds:.1f}" for name, seconds in days[-1].items())
                print(f"{day} {told}", flush=True)
                if not day % WEEK and day > WEEK:
                    report(days, upkeep, measured, {"users": given.users, "items": given.items})


if __name__ == "__main__":
    main()
