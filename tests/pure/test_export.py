"""Exports: no cell is a formula, and what was written is read again."""

from __future__ import annotations

import csv
import json
import time
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from lakerec.export import FORMULA, KINDS, cell, in_utc, write

SCHEMA = pa.schema(
    [
        ("as_of_date", pa.date32()),
        ("item_id", pa.string()),
        ("score", pa.float32()),
        ("told", pa.list_(pa.string())),
        ("at", pa.timestamp("us", "UTC")),
    ]
)
ROW = {
    "as_of_date": date(2026, 3, 2),
    "item_id": "=HYPERLINK(1)",
    "score": -0.5,
    "told": ["a", "=b"],
    "at": datetime(2026, 3, 2, 4, tzinfo=UTC),
}


@given(st.text())
def test_no_text_begins_a_formula_and_all_others_stay(text: str):
    told = cell(text)
    assert not told.startswith(FORMULA)
    assert told.removeprefix("'") == text if text.startswith(FORMULA) else told == text


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1"])
def test_what_a_spreadsheet_would_calculate_is_a_text(text: str):
    assert cell(text) == f"'{text}"


def test_a_negative_number_is_a_number_and_a_list_is_json():
    assert cell(-5.5) == -5.5 and cell(None) is None
    assert cell(["=a"]) == '["=a"]' and cell({"d": date(2026, 3, 2)}) == '{"d": "2026-03-02"}'


@given(st.lists(st.text(st.characters(codec="utf-8"))))
def test_a_csv_is_read_as_it_was_written(tmp_path_factory, texts: list[str]):
    file = tmp_path_factory.mktemp("export") / "out.csv"
    schema = pa.schema([("text", pa.string())])
    assert write(({"text": text} for text in texts), schema, file, "csv") == len(texts)
    with file.open(encoding="utf-8", newline="") as stream:
        read = [row[0] for row in csv.reader(stream)]
    assert read == ["text", *map(cell, texts)]


def test_a_semicolon_splits_no_cell(tmp_path: Path):
    write([ROW | {"item_id": "a;=1+1"}], SCHEMA, tmp_path / "out.csv", "csv")
    assert '"a;=1+1"' in (tmp_path / "out.csv").read_text()


def test_json_and_parquet_keep_texts_as_they_are(tmp_path: Path):
    write([ROW, ROW | {"score": float("nan")}], SCHEMA, tmp_path / "out.json", "json")
    first, second = map(json.loads, (tmp_path / "out.json").read_text().splitlines())
    assert (first["item_id"], first["told"], first["as_of_date"]) == (ROW["item_id"], ROW["told"], "2026-03-02")
    assert second["score"] is None
    write([ROW], SCHEMA, tmp_path / "out.parquet", "parquet")
    assert parquet.read_table(tmp_path / "out.parquet").to_pylist() == [ROW]


def test_a_time_is_told_in_utc_whatever_the_machines_zone_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Spark's rows have times of the machine's zone that do not say so, also in lists."""
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        row = in_utc({**ROW, "at": datetime(2026, 3, 2, 4), "seen": [datetime(2026, 3, 2, 4)]})
    finally:
        monkeypatch.undo()
        time.tzset()
    assert row["at"] == row["seen"][0] == datetime(2026, 3, 2, 9, tzinfo=UTC) and row["as_of_date"] == ROW["as_of_date"]
    write([{name: row[name] for name in SCHEMA.names}], SCHEMA, tmp_path / "out.csv", "csv")
    assert (tmp_path / "out.csv").read_text().strip().endswith('"2026-03-02T09:00:00+00:00"')


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_that_breaks_off_leaves_what_was_there(tmp_path: Path, kind: str):
    out = tmp_path / "out"
    write([ROW], SCHEMA, out, kind)
    before = out.read_bytes()

    def broken():
        yield ROW
        raise RuntimeError("the lake went away")

    with pytest.raises(RuntimeError):
        write(broken(), SCHEMA, out, kind)
    assert out.read_bytes() == before and list(tmp_path.iterdir()) == [out]
