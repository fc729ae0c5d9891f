"""Behaviour-sequence text: the one template that training, scoring and people read."""

from __future__ import annotations

from pyspark.sql import Column
from pyspark.sql import functions as F

# "2011-03-04 bought A; viewed B; 2011-03-09 bought C": a day is told once, where it begins.
SEPARATOR = "; "


def history_text(events: Column, verbs: dict[str, str]) -> Column:
    """A sequence as text; `events` is array<struct<event_time, event_type, title, ...>> in event_time order.

    `verbs` tells each event type; a type without a verb is told by its name.
    """
    told = F.create_map(*[F.lit(word) for pair in verbs.items() for word in pair])

    def phrase(event: Column, place: Column) -> Column:
        day = F.to_date(event["event_time"])
        before = F.to_date(F.get(events, place - 1)["event_time"])
        begins = F.when((place == 0) | (before != day), F.concat(day.cast("string"), F.lit(" "))).otherwise("")
        verb = F.coalesce(told[event["event_type"]], event["event_type"])
        return F.concat(begins, verb, F.lit(" "), event["title"])

    return F.array_join(F.transform(events, phrase), SEPARATOR)
