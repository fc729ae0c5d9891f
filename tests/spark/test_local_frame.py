"""Rows of the driver as a DataFrame."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pyspark.sql import SparkSession
from pyspark.sql.types import DataType, StructType

from lakerec.lake import local_frame
from lakerec.tables import table, table_names


def types(schema: DataType) -> list[tuple[str, DataType]]:
    assert isinstance(schema, StructType)
    return [(column.name, column.dataType) for column in schema]


@pytest.mark.parametrize("name", table_names())
def test_an_empty_one_is_known_to_be_empty_and_has_the_tables_types(name: str, spark: SparkSession):
    frame = local_frame(spark, table(name).schema())
    assert types(frame.schema) == types(table(name).schema())
    assert not frame.collect()


ROWS = [{"id": "a", "n": 1, "at": datetime(2026, 1, 1, 9, tzinfo=UTC), "told": {"x": "y"}}, {}]


@pytest.mark.parametrize("rows", [[], ROWS])
def test_it_is_read_by_the_jvm_alone(rows: list[dict[str, object]], spark: SparkSession):
    schema = StructType.fromDDL("id string, n bigint, at timestamp, told map<string,string>")
    frame = local_frame(spark, schema, rows)
    assert (
        frame.selectExpr("id", "n", "cast(at as string)", "told['x']").collect()
        == [("a", 1, "2026-01-01 09:00:00", "y"), (None, None, None, None)][: len(rows)]
    )
    plan = frame._jdf.queryExecution().executedPlan().toString()
    assert plan.startswith("LocalTableScan") and ("<empty>" in plan) is (not rows)
