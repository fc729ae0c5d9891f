"""Whether the lists are those of today: gold's newest day, who has a list in it, and what the site serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lakerec.config import Freshness
from lakerec.errors import StaleListsError
from lakerec.ranking import EVERYONE
from lakerec.serving import Published


@dataclass(frozen=True)
class State:
    """The newest day of gold, the length of its fallback, how many rows are to be served, and what was published.

    `served_rows` and `served_before` are the rows of the newest publication and of the one of an earlier day.
    """

    newest: date | None
    fallback: int
    rows: int
    served: date | None
    served_rows: int
    served_before: int


def state(lists: DataFrame, latest: DataFrame, published: Sequence[Published]) -> State:
    """The state of gold.recommendations, of its view of latest lists, and of the newest publications, newest first."""
    newest = lists.agg(F.max("as_of_date").alias("day")).first()
    day = newest["day"] if newest else None
    fallback = lists.where((F.col("as_of_date") == F.lit(day)) & (F.col("user_id") == EVERYONE)).count() if day else 0
    last = published[0] if published else None
    before = next((one.rows for one in published if last and one.as_of < last.as_of), 0)
    return State(
        day, fallback, latest.count(), last.as_of if last else None, last.rows if last else 0, served_before=before
    )


def faults(found: State, day: date, allowed: Freshness) -> list[str]:
    """What is wrong with the lists on the morning after `day`; nothing where all is well."""
    if found.newest is None:
        return ["gold.recommendations is empty"]
    told = []
    if (age := (day - found.newest).days) > allowed.max_age_days:
        told.append(f"gold.recommendations is as of {found.newest}, {age} days before {day}")
    if not found.fallback:
        told.append(f"gold.recommendations of {found.newest} has no list for everyone (user {EVERYONE!r})")
    if found.served is None:
        return [*told, "nothing has been published"]
    if (age := (day - found.served).days) > allowed.max_age_days:
        told.append(f"the site serves {found.served}, {age} days before {day}")
    if found.served >= found.newest and found.served_rows != found.rows:
        told.append(f"the site got {found.served_rows} rows, the lake has {found.rows}")
    if found.served_rows < allowed.min_share * found.served_before:
        told.append(f"the site serves {found.served_rows} rows, the publication before had {found.served_before}")
    return told


def refuse(told: Sequence[str], day: date) -> None:
    """Raise StaleListsError where there is something to tell."""
    if told:
        raise StaleListsError(
            f"the lists are not those of {day}: {'; '.join(told)}. Look at reco_daily of that day; repair and clear it."
        )
