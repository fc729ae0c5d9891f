"""Great Expectations over the same rows in the driver and on Spark, by turns, in one context."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pyspark.sql import DataFrame
from tests.spark.rows import small_frame

from lakerec.quality import SMALL, DataDocs, batch, load_suite

SCHEMA = "item_id string, valid_from date, user_id string, event_id string, event_type string, event_time timestamp"
NOON = datetime(2024, 3, 10, 12)
WHOLE: list[tuple[Any, ...]] = [(f"i{n}", NOON.date(), f"u{n}", f"e{n}", "click", NOON) for n in range(5)]
BATCHES = {
    "whole": WHOLE,
    "twice": [*WHOLE, WHOLE[0]],
    "nulls": [*WHOLE, (None, NOON.date(), None, None, None, None)],
    "nothing": [],
}


@pytest.mark.parametrize("table", ["silver.events", "silver.items", "silver.users"])
def test_few_rows_are_judged_as_many_are(spark, tmp_path: Path, table: str):
    docs, suite = DataDocs(tmp_path), load_suite(table).batch
    failing = set()
    for told, rows in BATCHES.items():
        frame = small_frame(spark, rows, SCHEMA)
        few = batch(frame, len(rows))
        assert isinstance(few, pd.DataFrame) and isinstance(batch(frame, SMALL + 1), DataFrame)
        on_spark, in_driver = (docs.validate(table, where, suite) for where in (frame, few))
        for one in (*on_spark, *in_driver):
            one.pop("unexpected")  # places of rows, which pandas alone has
            one["observed"] = one["observed"] or 0.0  # of no rows Spark has a null
        assert in_driver == on_spark and len(in_driver) == len(suite)
        failing |= {(told, one["rule"].split("(")[0]) for one in in_driver if not one["success"]}
    assert ("nulls", "expect_column_values_to_not_be_null") in failing
    assert (("twice", "expect_compound_columns_to_be_unique") in failing) is (table != "silver.events")
    assert docs.build().is_file()
