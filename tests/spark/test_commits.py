"""What Delta's commits leave on a local file system, where the session renames without Hadoop's FileContext."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from deltalake import DeltaTable
from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

WRITERS = 6


def append(spark: SparkSession, table: Path, rows: int) -> None:
    spark.range(rows).coalesce(1).write.format("delta").mode("append").save(str(table))


def opened_anew(spark: SparkSession, table: Path) -> int:
    """The rows of a table whose log no longer is in memory, as of another process."""
    spark._jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()  # type: ignore[union-attr]
    return spark.read.format("delta").load(str(table)).count()


@pytest.mark.parametrize("torn", [b"", b'{"version":', b"\0" * 40], ids=["empty", "half", "zeroes"])
def test_a_pointer_to_the_checkpoint_that_was_cut_short_costs_nothing(spark, tmp_path, torn):
    table = tmp_path / "table"
    spark.sql(f"CREATE TABLE delta.`{table}` (id BIGINT) USING delta TBLPROPERTIES ('delta.checkpointInterval' = '2')")
    for _ in range(3):
        append(spark, table, 5)
    pointer = table / "_delta_log" / "_last_checkpoint"
    assert pointer.stat().st_size > len(torn)
    pointer.write_bytes(torn)
    assert opened_anew(spark, table) == 15 and DeltaTable(str(table)).version() == 3
    append(spark, table, 5)  # the fourth version has a checkpoint, and the pointer is whole again
    assert opened_anew(spark, table) == 20 and pointer.read_bytes().startswith(b'{"version":4')


def test_of_writers_at_once_each_has_a_version_of_its_own(spark, tmp_path):
    table = tmp_path / "table"
    append(spark, table, 1)
    with ThreadPoolExecutor(WRITERS) as writers:
        list(writers.map(lambda rows: append(spark, table, rows), range(1, WRITERS + 1)))
    assert opened_anew(spark, table) == 1 + sum(range(1, WRITERS + 1))
    assert DeltaTable(str(table)).version() == WRITERS
    assert not [file for file in (table / "_delta_log").iterdir() if ".tmp" in file.name]


def test_a_version_that_is_there_is_not_written_over(spark, tmp_path):
    table = tmp_path / "table"
    append(spark, table, 1)
    jvm = spark._jvm  # type: ignore[union-attr]
    store = jvm.org.apache.spark.sql.delta.DeltaLog.forTable(spark._jsparkSession, str(table)).store()
    place = jvm.org.apache.hadoop.fs.Path(str(table / "_delta_log" / f"{0:020d}.json"))
    lines = jvm.scala.collection.JavaConverters.asScalaIterator(jvm.java.util.ArrayList(["{}"]).iterator())
    before = (table / "_delta_log" / f"{0:020d}.json").read_bytes()
    with pytest.raises(Py4JJavaError, match="FileAlreadyExists"):
        store.write(place, lines, False, spark._jsc.hadoopConfiguration())
    assert (table / "_delta_log" / f"{0:020d}.json").read_bytes() == before
