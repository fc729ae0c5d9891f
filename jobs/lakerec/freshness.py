"""Whether the lists are those of today: the newest events, gold's newest day, and what the site serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lakerec.config import Freshness
from lakerec.errors import StaleListsError
from lakerec.ranking import EVERYONE
from lakerec.serving import Published, Served

LOOK_BACK = 31  # days in which a gap is looked for


@dataclass(frozen=True)
class State:
    """The newest day with events, the newest of gold, the lengths of the fallback there and on the site, how many rows
    are to be served and how many are, as of which day, and how many were published for an earlier day; which of the
    LOOK_BACK days no run has taken in.
    """

    events: date | None
    newest: date | None
    fallback: int
    rows: int
    served: date | None
    served_fallback: int
    served_rows: int
    served_before: int
    missed: tuple[date, ...] = ()


def state(
    events: date | None,
    lists: DataFrame,
    latest: DataFrame,
    site: Served,
    published: Sequence[Published],
    missed: tuple[date, ...],
) -> State:
    """The state of the newest events, of gold.recommendations, of its view of latest lists, of the table that the site
    reads, of the publications, newest first, and of the days that were missed.
    """
    newest = lists.agg(F.max("as_of_date").alias("day")).first()
    day = newest["day"] if newest else None
    fallback = lists.where((F.col("as_of_date") == F.lit(day)) & (F.col("user_id") == EVERYONE)).count() if day else 0
    before = next((one.rows for one in published if site.as_of and one.as_of < site.as_of), 0)
    return State(
        events=events,
        newest=day,
        fallback=fallback,
        rows=latest.count(),
        served=site.as_of,
        served_fallback=site.fallback,
        served_rows=site.rows,
        served_before=before,
        missed=missed,
    )


def missed(runs: DataFrame, day: date) -> tuple[date, ...]:
    """The days up to `day` that no run of ingest_events has taken in.

    Airflow makes no run for a day at whose hour it stood still or the DAG was paused.
    """
    done = runs.where("job = 'ingest_events' AND status = 'ok'").select("window_start", "window_end").distinct()
    return gaps([(row["window_start"], row["window_end"]) for row in done.collect()], day)


def gaps(windows: Sequence[tuple[date, date]], day: date) -> tuple[date, ...]:
    """The days that no window (end excluded) has, of LOOK_BACK up to `day`, from the first of all windows on."""
    first = max(min((start for start, _ in windows), default=day), day - timedelta(days=LOOK_BACK - 1))
    days = (first + timedelta(days=n) for n in range((day - first).days + 1))
    return tuple(one for one in days if not any(start <= one < end for start, end in windows))


def faults(found: State, day: date, allowed: Freshness, today: date) -> list[str]:
    """What is wrong with the lists on the morning after `day`, it being `today`; nothing where all is well."""
    told = []
    if found.events is None or (day - found.events).days > allowed.max_quiet_days:
        told.append(f"the newest events are of {found.events or 'no day at all'}: did the files of {day} come?")
    if found.missed:
        listed = ", ".join(str(one) for one in found.missed)
        told.append(f"no run has taken in the files of {listed}: run reco_backfill over them")
    if found.newest is None:
        return [*told, "gold.recommendations is empty"]
    if found.newest >= today:
        told.append(
            f"gold.recommendations has lists of {found.newest}, which has not ended: each day before it is skipped"
        )
    if (age := (day - found.newest).days) > allowed.max_age_days:
        told.append(f"gold.recommendations is as of {found.newest}, {age} days before {day}")
    if not found.fallback:
        told.append(f"gold.recommendations of {found.newest} has no list for everyone (user {EVERYONE!r})")
    if found.served is None:
        return [*told, "the site has no list at all"]
    if not found.served_fallback:
        told.append(f"the site has no list for everyone (user {EVERYONE!r})")
    if (age := (day - found.served).days) > allowed.max_age_days:
        told.append(f"the site serves {found.served}, {age} days before {day}")
    if found.served >= found.newest and found.served_rows != found.rows:
        told.append(f"the site has {found.served_rows} rows, the lake {found.rows}")
    if found.served_rows < allowed.min_share * found.served_before:
        told.append(f"the site serves {found.served_rows} rows, the publication before had {found.served_before}")
    return told


def refuse(told: Sequence[str], day: date) -> None:
    """Raise StaleListsError where there is something to tell."""
    if told:
        raise StaleListsError(
            f"the lists are not those of {day}: {'; '.join(told)}. Look at reco_daily of that day; repair and clear it."
        )
