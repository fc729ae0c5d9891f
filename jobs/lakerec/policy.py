"""What is taken out of a list."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lakerec.candidates import known_events


def excluded(events: DataFrame, as_of: date, types: Sequence[str]) -> DataFrame:
    """user_id, item_id not to be shown: an event of one of `types` arrived by `as_of`; no types, no rows."""
    had = known_events(events, as_of).where(F.col("event_type").isin(list(types)))
    return had.select("user_id", "item_id").distinct()
