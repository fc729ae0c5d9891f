"""A year of days, one by one: does a day cost more when a year lies behind it?

The simulator's shop, 365 windows of one day through every step of reco_daily in one warm session, with the upkeep and
the audits of lake_maintenance each week. Wall and processor seconds of each step (the second also hold on a machine
that others use); files and logs of each table at each upkeep. The popular list is served (no model: what grows with
the lake is looked at, not the scoring of so many users).
A year passes in hours, so the clock is helped: after each day the logs' files are aged by a day, and versions are kept
for about as long as seven of these days take. Aim: a day of the last week at most 1.3 times one of the first.
The result is written anew after every week, so that a year cut short is one of fewer days. With `--folder` the shop and
its lake stay, and a year that was stopped goes on behind its last whole day, in a session of its own; the result says
at which days a session began.

`--leap 357` asks the same in half an hour: the first 357 days come in one window and go through the upkeep, then each
day behind them is run in turn with a first day of an empty lake, in the same session, so that whatever else the machine
does falls on both. The logs of such a lake have fewer commits than a year of days leaves between two upkeeps.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psutil
import yaml
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from record import ROOT, keep

from lakerec import job as jobs
from lakerec import serving
from lakerec.config import Config, load_config
from lakerec.job import LAKE_STEPS, SERVING_STEPS
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
Day = Mapping[str, tuple[float, float]]  # wall and processor seconds of each step


@dataclass
class Passed:
    """What is known of the days so far; `began` are the days at which a session did."""

    days: list[Day]
    upkeep: list[Day]
    measured: list[dict[str, dict[str, int]]]
    began: list[int]

    @classmethod
    def of(cls, file: Path) -> Passed:
        """What a stopped year has left in its folder; nothing where there is none."""
        return cls(**json.loads(file.read_text())) if file.exists() else cls([], [], [], [])

    def keep(self, file: Path) -> None:
        """Leave it for a session that goes on."""
        written = file.with_suffix(".new")
        written.write_text(json.dumps(asdict(self)))
        written.replace(file)


def deployment(folder: Path, days: int, users: int, items: int) -> Config:
    """The demo's shop with files and a lake in a folder of its own; the one that is there where a year goes on."""
    if (file := folder / "conf" / "year.yaml").exists():
        return load_config(file)
    simulate(folder / "demo-data", FIRST, days, users, items, 7)
    raw = yaml.safe_load((ROOT / "conf/demo.yaml").read_text())
    raw["maintenance"] = {"versions_days": WEEK * SECONDS_A_DAY / 86400}
    raw["airflow"] = {"training_minutes": 1}  # none runs, and versions have to outlive one
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(raw))
    return load_config(file)


def timed(config: Config, spark: SparkSession, step: str, day: int) -> tuple[float, float]:
    """Wall and processor seconds of one step on the n-th day, from 1."""
    start = FIRST + timedelta(days=day - 1)
    began, used = time.monotonic(), processor_seconds()
    jobs.body(step)(jobs.start(config, spark, step, Window(start, start + timedelta(days=1))))
    return time.monotonic() - began, processor_seconds() - used


def processor_seconds() -> float:
    """What this process and all that it started have used so far: Python, the JVM."""
    me, total = psutil.Process(), 0.0
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # one that has just ended
            total += sum(process.cpu_times()[:2])
    return total


def aged_by_a_day(lake: Path) -> None:
    """Make every file of the tables' logs a day older: by that Delta knows what is past its retention."""
    for file in lake.glob("*/*/_delta_log/*"):
        known = file.stat()
        os.utime(file, (known.st_atime, known.st_mtime - 86400))


def leap(config: Config, spark: SparkSession, count: int) -> None:
    """So many days in one window: every table, a list for everyone on each day, the upkeep."""
    whole = Window(FIRST, FIRST + timedelta(days=count))
    for step in LAKE_STEPS:
        jobs.body(step)(jobs.start(config, spark, step, whole))
    for step in SERVING_STEPS:
        timed(config, spark, step, count)
    lake = jobs.start(config, spark, "bench", whole).lake
    last = lake.read("gold.recommendations").drop("as_of_date")  # the list for everyone, on each day
    days = spark.range(count).select(F.expr(f"date_add(DATE'{FIRST}', cast(id as int))").alias("as_of_date"))
    lake.replace("gold.recommendations", last.crossJoin(days), whole)
    for step in UPKEEP:
        timed(config, spark, step, count)


def paired(old: Config, spark: SparkSession, folder: Path, behind: int, count: int, about: Mapping[str, int]) -> None:
    """So many days of a lake with days behind it, in turn with the first days of an empty one; keep the ratios."""
    new = load_config(old.file, str(folder / "empty"))
    days: dict[str, list[Day]] = {"first_days": [], "days_behind": []}
    with Path(os.devnull).open("w") as quiet, serving.target(old), serving.target(new):
        with contextlib.redirect_stdout(quiet):
            leap(old, spark, behind)
        for n in range(1, count + 1):
            with contextlib.redirect_stdout(quiet):
                days["first_days"].append({step: timed(new, spark, step, n) for step in STEPS})
                days["days_behind"].append({step: timed(old, spark, step, behind + n) for step in STEPS})
            told = {name: sum(wall for wall, _ in found[-1].values()) for name, found in days.items()}
            print(f"day {n}: {told['first_days']:.1f} s, day {behind + n}: {told['days_behind']:.1f} s", flush=True)
    figures: dict[str, Any] = {}
    for name, kind in (("wall", 0), ("processor", 1)):
        # The first day loads the model and compiles: neither lake is charged with it.
        medians_of = {which: medians(found[1:], kind) for which, found in days.items()}
        ratio = {
            step: round(last / max(medians_of["first_days"][step], 0.01), 2)
            for step, last in medians_of["days_behind"].items()
        }
        figures[name] = {"ratio": ratio, **medians_of}
    keep("speed", "year_leap", {**about, "goal": GOAL, "behind": behind, "pairs": count - 1, **figures})


def sizes(config: Config, spark: SparkSession, day: int) -> dict[str, dict[str, int]]:
    """What the upkeep of a day has measured, by table."""
    end = FIRST + timedelta(days=day)
    lake = jobs.start(config, spark, "bench", Window(end - timedelta(days=1), end)).lake
    rows = lake.read(SIZES).where(f"as_of_date = '{end - timedelta(days=1)}' AND version IS NOT NULL").collect()
    return {row["table_name"]: {name: row[name] for name in SIZE_COLUMNS} for row in rows}


def medians(days: Sequence[Day], kind: int) -> dict[str, float]:
    """The median seconds of each step, and of the whole day, over some days; kind 0 wall, 1 processor."""
    by_step = {name: statistics.median(day[name][kind] for day in days) for name in days[0]}
    whole = statistics.median(sum(step[kind] for step in day.values()) for day in days)
    return {name: round(value, 2) for name, value in {**by_step, "day": whole}.items()}


def compared(days: Sequence[Day], kind: int) -> dict[str, Any]:
    """The days around the fifth, the last week, and the one by the other; each week's median day."""
    first, last = medians(days[1 : 1 + WEEK], kind), medians(days[-WEEK:], kind)
    weeks = [medians(days[n : n + WEEK], kind)["day"] for n in range(0, len(days) - WEEK + 1, WEEK)]
    growth = {name: round(last[name] / max(first[name], 0.01), 2) for name in first}
    return {"growth": growth, "first_week_seconds": first, "last_week_seconds": last, "day_seconds_by_week": weeks}


def report(passed: Passed, about: Mapping[str, int]) -> None:
    """Keep what is known so far."""
    days, measured = passed.days, passed.measured
    upkeeps = {f"{which}_upkeep_seconds": medians([passed.upkeep[n]], 0) for which, n in (("first", 0), ("last", -1))}
    tables = {"first_sizes": measured[0], "middle_sizes": measured[len(measured) // 2], "last_sizes": measured[-1]}
    kinds = {"wall": compared(days, 0), "processor": compared(days, 1)}
    known = {**about, "goal": GOAL, "days": len(days), "sessions_began": passed.began}
    keep("speed", "year", {**known, **kinds, **upkeeps, **tables})


def main() -> None:
    """Run the days; keep and print the result after each week."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("days", 365), ("users", 120), ("items", 80)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--leap", type=int, default=0, help="so many days in one window, then --pairs in turn")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="where shop and lake stay, so that a stopped year can go on")
    given = parser.parse_args()
    place = contextlib.nullcontext(str(given.folder)) if given.folder else tempfile.TemporaryDirectory()
    with place as folder:
        config = deployment(Path(folder), max(given.days, given.leap + given.pairs), given.users, given.items)
        spark = build_session(config, "year", given.days)
        if given.leap and given.pairs > 1:
            about = {"users": given.users, "items": given.items}
            paired(config, spark, Path(folder), given.leap, given.pairs, about)
            return
        with serving.target(config):  # a server that runs all day, as a deployment's does
            about = {"users": given.users, "items": given.items}
            run(config, spark, given.days, about, Path(folder) / "passed.json")


def run(config: Config, spark: SparkSession, count: int, about: Mapping[str, int], file: Path) -> None:
    """So many days, one by one, and after each week the upkeep and a report; what is in the file has passed."""
    passed = Passed.of(file)
    passed.began.append(len(passed.days) + 1)
    for day in range(len(passed.days) + 1, count + 1):
        with Path(os.devnull).open("w") as quiet, contextlib.redirect_stdout(quiet):
            passed.days.append({step: timed(config, spark, step, day) for step in STEPS})
            if not day % WEEK:
                passed.upkeep.append({step: timed(config, spark, step, day) for step in UPKEEP})
                passed.measured.append(sizes(config, spark, day))
        aged_by_a_day(Path(config.lake))
        passed.keep(file)
        took = (f"{step} {wall:.1f} s" for step, (wall, _) in passed.days[-1].items())
        print(f"day {day}: " + ", ".join(took), flush=True)
        if not day % WEEK and day > WEEK:
            report(passed, about)


if __name__ == "__main__":
    main()
