"""Which days a run is about, what waits for what, and what is worth a retry: pure functions, without Airflow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

FINAL = (*range(10, 20), *range(30, 40))  # exit codes of lakerec.errors for faults of input: the same input fails again
# The errors by their exit codes; each is a section of docs/operations.md.
ERRORS = {
    10: "ConfigError",
    11: "SourceError",
    12: "DataQualityError",
    13: "ModelError",
    14: "NotEnoughDataError",
    15: "ServingError",
    16: "UsageError",
    17: "ContractError",
    18: "AlreadyServedError",
    19: "StaleListsError",
    20: "LakeBusyError",
    21: "StaleRunError",
    22: "ConnectionFailedError",
    23: "DiskFullError",
    24: "ProcessLostError",
    25: "ConflictError",
    30: "BackupError",
}
CAUSE = re.compile(rf"^(?:{'|'.join(ERRORS.values())}): .*")  # the line with which a job ends
# The line of a stack trace that names an exception, as Python and the JVM write it.
THROWN = re.compile(
    r"^(?:Caused by: |: |Exception in thread \"[^\"]*\" )?"
    r"((?:[\w$]+\.)*[\w$]*(?:Error|Exception|Interrupt|Exit|Failure)(?:: .*)?)$"
)
GOES_ON = re.compile(r"^\d\d:\d\d:\d\d \w+: ")  # a job's own line of progress
PASSWORD = re.compile(r"(?<=://)[^\s\"']*@|(?<=password=)[^&\s\"']+", re.IGNORECASE)
LONGEST = 300  # characters of an exception that nobody has named
NOTHING_TO_DO = 18  # AlreadyServedError: the site has lists of a later day
TOO_LONG = "took longer than"  # a try that was ended by its time limit
SUCCESS = "success"
ENDED = {SUCCESS, "failed", "upstream_failed", "skipped", "removed"}  # states in which a task does nothing any more
# How the hook tells the exit code of a driver: of its own process, of YARN's diagnostics, of Kubernetes' pod.
EXIT_CODE = re.compile(r"(?:Error code is: |exited with status |exit_code=)(-?\d+)")


def window(dag_run: Any, params: Mapping[str, Any], timezone: str) -> tuple[str, str]:
    """The days [start, end) of a run: the asked day, its partition, its data interval, the day that ended last.

    A run by hand is about the day that had ended by its logical date: Airflow gives it an interval that is empty where
    the DAG has no schedule, and before the schedule's hour is one of the day before.
    """
    if day := params.get("day") or getattr(dag_run, "partition_key", None):
        start = date.fromisoformat(day)
        return start.isoformat(), (start + timedelta(days=1)).isoformat()
    by_hand = dag_run.run_type == "manual"
    end = local_day((dag_run.logical_date if by_hand else dag_run.data_interval_end) or dag_run.run_after, timezone)
    begin = None if by_hand else dag_run.data_interval_start
    start = local_day(begin, timezone) if begin else end - timedelta(days=1)
    return start.isoformat(), end.isoformat()


def trains(dag_run: Any, end: str, now: datetime, timezone: str) -> bool:
    """Whether a run of reco_daily, `end` the day behind its last, starts a training: on schedule, of the newest day."""
    return dag_run.run_type == "scheduled" and end >= local_day(now, timezone).isoformat()


def local_day(moment: datetime, timezone: str) -> date:
    """The day of a moment in the timezone: an interval from 04:00 to 04:00 is the day it starts in."""
    return moment.astimezone(ZoneInfo(timezone)).date()


def days(start: str, end: str) -> list[str]:
    """Every day of [start, end)."""
    first = date.fromisoformat(start)
    return [(first + timedelta(days=n)).isoformat() for n in range((date.fromisoformat(end) - first).days)]


def chunks(start: str, end: str, days: int, most: int = 1024) -> list[tuple[str, str]]:
    """[start, end) cut into windows of at most `days` days, oldest first; ValueError says what is wrong.

    `most` is how many of them Airflow takes.
    """
    first, last = date.fromisoformat(start), date.fromisoformat(end)
    if first >= last:
        raise ValueError(f"start ({start}) must be before end ({end}): the end is excluded")
    if days < 1:
        raise ValueError(f"chunk_days is {days}: it must be 1 or more")
    starts = [first + timedelta(days=n) for n in range(0, (last - first).days, days)]
    if len(starts) > most:
        needed = -((first - last).days // most)
        raise ValueError(
            f"chunk_days is {days}: that cuts {start} to {end} into {len(starts)} chunks, and Airflow takes {most} "
            f"(core.max_map_length); {needed} or more days to a chunk will do"
        )
    return [(one.isoformat(), min(one + timedelta(days=days), last).isoformat()) for one in starts]


def begun(end: str, now: datetime, timezone: str) -> None:
    """ValueError where the last day of a window has not begun: it would be refused behind all others."""
    if date.fromisoformat(end) > (latest := local_day(now, timezone) + timedelta(days=1)):
        raise ValueError(f"end ({end}) lies behind {latest}: a day that has not begun has no events")


def must_wait(earlier: Iterable[tuple[str | None, bool]]) -> bool:
    """Whether a day's task waits for an earlier day's: that one's state and whether its run goes on, newest first.

    The first success ends the search: it has waited for all before it. A day that failed does not hold up the next.
    """
    for state, running in earlier:
        if state == SUCCESS:
            return False
        if state not in ENDED and running:
            return True
    return False


def exit_code(message: str) -> int | None:
    """The exit code in the failure that spark-submit's hook reports, if it names one."""
    found = EXIT_CODE.search(message)
    return int(found[1]) if found else None


def cause(known: str, line: str) -> str:
    """Why a job has ended, `known` before this line of its log: our error's line, else that of the last exception.

    An exception that the job has gone on behind was not its end.
    """
    if found := CAUSE.search(line):
        return found[0].rstrip()
    if CAUSE.search(known):
        return known
    if found := THROWN.search(line.rstrip()):
        return PASSWORD.sub("(not shown)", found[1])[:LONGEST]
    return "" if GOES_ON.search(line) else known


def page(message: str) -> str:
    """Where the docs say what to do about the failure that spark-submit's hook reports."""
    unnamed = "A task that hangs" if TOO_LONG in message else "A task that ends without a named error"
    name = ERRORS.get(exit_code(message) or 0, unnamed)
    return f"docs/operations.md#{name.lower().replace(' ', '-')}"


def page_of_late(dag_id: str) -> str:
    """Where the docs say what to do about a DAG's run that is not done in time."""
    return f"docs/operations.md#{dag_id}-is-late"


def can_retry(message: str) -> bool:
    """Whether the failure that spark-submit's hook reports may go away: not for an exit code in FINAL."""
    return exit_code(message) not in FINAL
