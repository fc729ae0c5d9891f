"""Files of Great Expectations that a killed run or a full disk left half written: the next run judges all the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.conftest import DAY, Shop, event

pytestmark = pytest.mark.faults
STEPS = ("ingest_events", "conform_events")


@pytest.mark.parametrize("share", [0.0, 0.6], ids=["empty", "half"])
def test_half_written_files_are_written_anew(shop: Shop, share: float):
    shop.deliver(DAY, [event(n) for n in range(9)])
    shop.run(*STEPS)
    place = shop.folder / "lake" / "_dq" / "gx"
    files = [file for file in place.rglob("*") if file.suffix in (".json", ".yml")]
    assert {"great_expectations.yml"} < {file.name for file in files} and len(files) > 5
    for file in files:
        os.truncate(file, int(share * file.stat().st_size))
    assert shop.run("conform_events")["written"] == 9
    outcomes = shop.rows("ops.dq_results")
    assert all(row["success"] for row in outcomes) and len({row["run_id"] for row in outcomes}) == 2
    index = place / "uncommitted" / "data_docs" / "local_site" / "index.html"
    assert Path(index).stat().st_size > 0
