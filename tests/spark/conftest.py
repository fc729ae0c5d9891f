"""Frames with the schemas of sql/tables for the tests of pure transforms."""

from collections.abc import Callable

import pytest
from pyspark.sql import DataFrame, SparkSession
from tests.spark.rows import schema, small_frame

from lakerec.job import CODEGEN


@pytest.fixture(autouse=True)
def compiled(spark: SparkSession) -> None:
    """Transformations are tested as large days run them; the jobs of the suite are of `small_days`."""
    spark.conf.set(CODEGEN, "FALLBACK")
    # A few rows of the driver would be worked on while Spark plans, by nothing that a table meets.
    spark.conf.set(
        "spark.sql.optimizer.excludedRules", "org.apache.spark.sql.catalyst.optimizer.ConvertToLocalRelation"
    )


@pytest.fixture(scope="session")
def frame(spark: SparkSession) -> Callable[[str, list[dict]], DataFrame]:
    """Builds a DataFrame with a table's schema; columns that a row does not name are null."""

    def build(table: str, rows: list[dict]) -> DataFrame:
        return small_frame(spark, rows, schema(table))

    return build
