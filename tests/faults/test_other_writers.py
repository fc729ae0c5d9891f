"""Programs that write a table without the lake's lease: nothing is lost, and a conflict says what to do."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
from deltalake import DeltaTable, write_deltalake
from pyspark import cloudpickle
from pyspark.sql import DataFrame
from tests.conftest import DAY, Shop, day_after, event

from lakerec.errors import ConflictError
from lakerec.lake import Window
from lakerec.tables import table

pytestmark = pytest.mark.faults
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Spark's workers do not find the tests
INGEST = ("ingest_events", "conform_events")
SILVER = "lake/silver/events"
TODAY = Window(DAY, day_after(1))
Act = Callable[[str], None]


def appends(path: str) -> None:
    """A row of its own on the same day."""
    row = DeltaTable(path).to_pyarrow_table().slice(0, 1).to_pandas()
    write_deltalake(path, row.assign(event_id=f"{DAY}-f"), mode="append")


def optimises(path: str) -> None:
    """The day's files become one."""
    DeltaTable(path).optimize.compact()


def deletes(path: str) -> None:
    """A row of the day goes."""
    DeltaTable(path).delete(f"event_id = '{DAY}-2'")


def meanwhile(rows: DataFrame, path: Path, act: Act) -> DataFrame:
    """The rows; whoever reads them has another program act on the table first."""

    def acting(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        act(str(path))
        yield from frames

    return rows.coalesce(1).mapInPandas(acting, rows.schema)


def ids(shop: Shop) -> list[str]:
    return sorted(row["event_id"] for row in shop.rows("silver.events"))


@pytest.fixture(scope="module")
def kept(spark, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A day of three events in two files."""
    shop = Shop(tmp_path_factory.mktemp("loaded"), spark)
    shop.deliver(DAY, [event(n) for n in range(1, 4)])
    shop.run(*INGEST)
    lake = shop.job("conform_events").lake
    lake.replace("silver.events", lake.read("silver.events").repartition(2), TODAY)
    assert len(DeltaTable(str(shop.folder / SILVER)).file_uris()) == 2
    return shop.folder


@pytest.fixture()
def loaded(kept: Path, spark, tmp_path: Path) -> Shop:
    """A copy of it."""
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    return Shop(tmp_path, spark)


@pytest.mark.parametrize(("act", "left"), [(optimises, "123"), (deletes, "13"), (appends, "123f")])
def test_a_run_beside_another_writer_says_so_and_its_retry_is_right(loaded: Shop, act: Act, left: str):
    slow = loaded.job("conform_events")
    rows = slow.lake.read("silver.events")
    with pytest.raises(ConflictError, match=r"(?s)silver/events: another program .*Run the job again"):
        slow.lake.replace("silver.events", meanwhile(rows, loaded.folder / SILVER, act), TODAY)
    assert ids(loaded) == [f"{DAY}-{n}" for n in left]  # what the other one made of it, whole
    loaded.run("conform_events")  # the table holds what has landed, and nothing else
    assert ids(loaded) == [f"{DAY}-{n}" for n in (1, 2, 3)]


def when_written(folder: Path, jvm: psutil.Process, act: Act) -> None:
    """Act on a table once a run has begun to write a file of it, and before it commits."""
    before = set(folder.rglob("*.parquet"))
    while set(folder.rglob("*.parquet")) == before:
        time.sleep(0.001)
    jvm.suspend()
    try:
        act(str(folder))
    finally:
        jvm.resume()


def test_a_compaction_beside_another_writer_says_so(loaded: Shop):
    jvm = psutil.Process(loaded.spark._sc._gateway.proc.pid)
    other = threading.Thread(target=when_written, args=(loaded.folder / SILVER, jvm, deletes))
    other.start()
    with pytest.raises(ConflictError, match=r"(?s)silver/events: another program .*Run the job again"):
        loaded.job("maintain_lake").lake.tidy("silver.events", loaded.config.maintenance)
    other.join()
    assert ids(loaded) == [f"{DAY}-1", f"{DAY}-3"]


class Followed:
    """A writer of Spark's behind which another program commits at once."""

    def __init__(self, writer: object, act: Act) -> None:
        self.writer, self.act = writer, act

    def __getattr__(self, name: str) -> Callable[..., Followed]:
        return lambda *given: Followed(getattr(self.writer, name)(*given), self.act)

    def save(self, path: str) -> None:
        self.writer.save(path)
        self.act(path)


def test_a_run_knows_its_own_commit_where_another_one_follows_at_once(loaded: Shop):
    job, before = loaded.job("conform_events"), loaded.version("silver.events")
    writer = job.lake.read("silver.events").write.format("delta").mode("overwrite")
    writer = Followed(writer.option("replaceWhere", TODAY.where("event_date")), appends)
    assert job.lake._save(writer, table("silver.events")) == before + 1
    assert job.run.outputs == {"silver.events": before + 1} and loaded.version("silver.events") == before + 2


@pytest.mark.parametrize("upkeep", [True, False], ids=["upkeep", "foreign"])
def test_what_a_dead_run_owes_is_written_though_others_have_committed_since(loaded: Shop, upkeep: bool):
    job = loaded.job("conform_events")
    job.run.owed = {DAY: {"read": 3, "written": 3, "duplicate": 0, "quarantined": 0, "bad": 0}}
    job.lake.replace("silver.events", job.lake.read("silver.events").repartition(2), TODAY)
    path = str(loaded.folder / SILVER)
    loaded.spark.sql(f"OPTIMIZE delta.`{path}`") if upkeep else appends(path)
    loaded.run("conform_events")
    (line,) = [row for row in loaded.rows("ops.runs") if row["run_id"] == job.run.run_id]
    assert {name: line[f"rows_{name}"] for name in job.run.owed[DAY]} == job.run.owed[DAY]
