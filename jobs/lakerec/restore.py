"""One table back to an earlier version, and what was made from the rows that it has no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException

from lakerec.errors import UsageError
from lakerec.job import Job, command
from lakerec.lake import LISTS, LOOK_BACK, RUNS, Lake, Window
from lakerec.tables import table_names

PROMOTIONS, FORGOTTEN = "ml.promotions", "ops.tombstones"
SCORE, PUBLISH = "score_candidates", "publish_recommendations"
LOGS = {
    PROMOTIONS: "`lakerec rollback` appends to it",
    RUNS: "what ran stays true",
    FORGOTTEN: "an earlier version would bring people back who were to be forgotten",
}


def restore(job: Job, name: str, version: int | None, day: date | None, order: Sequence[str]) -> str:
    """Restore a table to a version, or to its last one of a day, under the lease; what was done and what is to be done.

    `order` has the jobs that may have to run again, in that of a run. Raises UsageError where there is no such table,
    version or day, or where files of the version were removed.
    """
    _check(name)
    with job.lake.lease():
        job.lake.complete(name)
        now = job.lake.version(name)
        wanted = _wanted(job, name, version, day)
        changed, newest = days_replaced(job.lake, name, wanted), job.lake.newest_day(LISTS)
        restored = _restored(job.lake, name, wanted)
        made = downstream(name, newest_inputs(job.lake))
        job.lake.record([job.run.row("ok", {"table": name, "was": now, "restored_to": wanted})])
        left = job.lake.newest_day(LISTS)
    again = {*made.values(), *([PUBLISH] if LISTS in {name, *made} else [])}
    again |= {SCORE} if left != newest else set()  # the site has lists of a day that gold has no more
    windows = {
        one: window for one in order if one in again and (window := _window(one, changed, newest, name == LISTS))
    }
    return told(job, name, wanted, restored, changed, list(made), windows)


def _window(step: str, changed: Window | None, newest: date | None, lists: bool) -> tuple[str, str] | None:
    """First day and day behind the last of a step that runs again: lists up to the newest, of which the site's are."""
    start, end = (str(changed.start), str(changed.end)) if changed else ("FIRST_DAY", "DAY_BEHIND_THE_LAST")
    if step not in (SCORE, PUBLISH):
        return start, end
    if newest is None:
        return None
    first = str(newest) if step == PUBLISH or lists or (changed and changed.start > newest) else start
    return first, str(newest + timedelta(days=1))


def _check(name: str) -> None:
    if name not in table_names():
        raise UsageError(f"{name} is no table of the lake; tables are {', '.join(table_names())}")
    if name in LOGS:
        raise UsageError(f"{name} is a log that is only appended to: {LOGS[name]}")


def _wanted(job: Job, name: str, version: int | None, day: date | None) -> int:
    """The version that was asked for."""
    kept = job.lake.versions(name)
    if not kept:
        raise UsageError(f"{name} was never written in {job.config.lake}")
    if day is not None:
        end = datetime.combine(day + timedelta(days=1), datetime.min.time(), job.config.zone).astimezone(UTC)
        version = next((one for one in kept if job.lake.written_at(name, one) < end), None)
        if version is None:
            raise UsageError(
                f"{name}: its oldest version is of {job.lake.written_at(name, kept[-1]):%Y-%m-%d}, not {day}"
            )
    if version not in kept:
        raise UsageError(f"{name} has no version {version}: it has {kept[-1]} to {kept[0]}")
    return version


def _restored(lake: Lake, name: str, version: int) -> int:
    try:
        return lake.restore(name, version)
    except (PySparkException, Py4JJavaError) as error:
        cause = next(iter(str(error).splitlines()), "")[:300]
        raise UsageError(
            f"{name} cannot be restored to version {version}: {cause}. lake_maintenance removes files that only "
            "old versions need: choose a newer version, or restore a backup of the lake elsewhere"
        ) from None


def days_replaced(lake: Lake, name: str, version: int) -> Window | None:
    """The days that commits behind a version have replaced; None where one of them does not say which, or where there
    are more than are looked at.
    """
    later = [commit for commit in lake.history(name, LOOK_BACK) if commit["version"] > version]
    if not later or later[-1]["version"] > version + 1 or not all("replaced" in commit for commit in later):
        return None
    starts, ends = zip(*(map(date.fromisoformat, commit["replaced"]) for commit in later), strict=True)
    return Window(min(starts), max(ends))


def newest_inputs(lake: Lake) -> dict[str, tuple[str, set[str]]]:
    """By table: the job of its newest commit that says so, and the tables which that run read.

    What was made of the table alone, as upkeep shortens it, says nothing of where its rows come from. What ran
    follows from no table.
    """
    found = {}
    for name in (one for one in table_names() if one != RUNS):
        commits = lake.history(name, LOOK_BACK)
        last: dict[str, Any] = next((one for one in commits if set(one.get("inputs", ())) - {name}), {})
        if last:
            found[name] = (str(last["job"]), set(last["inputs"]))
    return found


def downstream(name: str, made_from: Mapping[str, tuple[str, set[str]]]) -> dict[str, str]:
    """Each table made from `name`, straight or by way of others, with the job that made it."""
    found: dict[str, str] = {}
    layer = {name}
    while layer:
        layer = {one for one, (_, read) in made_from.items() if read & layer and one not in found and one != name}
        found |= {one: made_from[one][0] for one in sorted(layer)}
    return found


def told(
    job: Job,
    name: str,
    wanted: int,
    now: int,
    days: Window | None,
    made: Sequence[str],
    windows: Mapping[str, tuple[str, str]],
) -> str:
    """For people: what the table is now, and the commands that make the rest agree with it."""
    span = f"days {days.start} .. {days.end - timedelta(days=1)}" if days else "any of its days"
    lines = [f"{name} has the rows of version {wanted} again, as version {now}; {span} may have changed"]
    lines += [f"made from what it was: {', '.join(made) or 'nothing in the lake'}"]
    lines += ["to make what follows agree with it, in this order:"] * bool(windows)
    for one, (start, end) in windows.items():
        lines.append(f"  {command(job.config, one, start, end, every_day=one == SCORE)}")
    return "\n".join(lines)
