"""A month of the real invoices: day by day, backwards, the same tables as one window."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import pytest
from deltalake import DeltaTable
from tests.conftest import ROOT, real_data

from lakerec import job as jobs
from lakerec.config import load_config
from lakerec.lake import Window

MONTH = Window(date(2010, 12, 1), date(2011, 1, 1))
STEPS = ("ingest_events", "ingest_catalogue", "conform_events", "conform_catalogue", "build_sequences")


def run(spark, lake: Path, window: Window) -> None:
    """The steps up to the sequences over a window."""
    config = load_config(ROOT / "conf/online_retail.yaml", str(lake))
    for step in STEPS:
        jobs.body(step)(jobs.start(config, spark, step, window))


def rows(lake: Path, name: str) -> list[str]:
    """A table's rows as sorted text."""
    return sorted(map(repr, DeltaTable(str(lake / name)).to_pyarrow_table().to_pylist()))


@pytest.mark.long
def test_a_month_backwards_is_the_month_in_one_window(spark, tmp_path: Path):
    real_data()
    run(spark, tmp_path / "window", MONTH)
    for offset in reversed(range(MONTH.days)):
        day = MONTH.start + timedelta(days=offset)
        run(spark, tmp_path / "days", Window(day, day + timedelta(days=1)))
    for name in ("silver/events", "ml/sequences", "silver/items"):
        assert rows(tmp_path / "days", name) == rows(tmp_path / "window", name), name
