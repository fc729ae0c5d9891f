"""A lake through its life: brought to a newer release's tables, restored by the table, backed up and brought back."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from deltalake import DeltaTable
from pyspark.sql import functions as F
from tests.conftest import DAY, LAKE_STEPS, Shop, day_after, event

import train_scorer
from lakerec import tables
from lakerec.backup import back_up, restore_lake
from lakerec.cli import STEPS
from lakerec.errors import ContractError, UsageError
from lakerec.export import export
from lakerec.lake import Window
from lakerec.restore import downstream, newest_inputs, restore
from lakerec.tables import table

LANDED = ("ingest_events", "ingest_catalogue")
MIGRATION = "-- takes: entry BIGINT\nSELECT * EXCEPT (entry), concat('n', entry) AS entry FROM {old}\n"


def ddl(name: str) -> str:
    return tables.sql_text("tables", name)


class Release:
    """The DDL of another release, in the place of this one's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ddl(self, name: str, old: str, new: str) -> None:
        """Change a table's DDL."""
        file = self.folder / "tables" / f"{name}.sql"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))
        forget()

    def migration(self, name: str, text: str) -> None:
        """Add a migration."""
        (self.folder / "migrations" / f"{name}.sql").write_text(text)
        forget()


def forget() -> None:
    """Read sql/ anew."""
    for cached in (tables.table, tables.migrations, tables.fingerprint):
        cached.cache_clear()


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Release]:
    folder = tmp_path / "sql"
    shutil.copytree(tables.SQL, folder)
    monkeypatch.setattr(tables, "SQL", folder)
    forget()
    yield Release(folder)
    monkeypatch.undo()
    forget()


def delta(shop: Shop, name: str) -> DeltaTable:
    return DeltaTable(str(shop.folder / "lake" / table(name).path))


def fields(shop: Shop, name: str) -> list[tuple[str, str, str]]:
    """Name, type and comment of each column, in order."""
    return [(one.name, str(one.type), one.metadata["comment"]) for one in delta(shop, name).schema().fields]


def as_new(shop: Shop, name: str) -> list[tuple[str, str, str]]:
    """The same of a table that this release makes."""
    fresh = Shop(shop.folder / "fresh", shop.spark, shop.settings)
    fresh.folder.mkdir(exist_ok=True)
    fresh.job("fresh").lake.append_rows(name, [])
    return fields(fresh, name)


def ledger(shop: Shop, job: str) -> list[dict]:
    return [row for row in shop.rows("ops.runs") if row["job"] == job]


def ran(shop: Shop, *steps: str, days: int = 1) -> None:
    for n in range(days):
        shop.deliver(day_after(n), [event(10 * n + m, user=f"u{m}", day=day_after(n)) for m in range(3)])
    shop.run(*(steps or LANDED), days=days)


def test_what_a_ddl_adds_moves_and_tells_reaches_old_tables_in_metadata_alone(shop: Shop, release: Release):
    ran(shop)
    names = ("bronze.events", "ops.runs", "bronze.items")
    before = {name: (sorted(delta(shop, name).file_uris()), shop.version(name), shop.rows(name)) for name in names}
    sender = "  sender STRUCT<name: STRING> COMMENT 'Who\\'s \"it\" `x`',\n"
    release.ddl("bronze.events", "  source_file", f"{sender}  source_file")
    release.ddl(
        "ops.runs",
        "  run_id STRING COMMENT 'One run",
        "  host STRING COMMENT 'Machine',\n  run_id STRING COMMENT 'A run",
    )
    (moved,) = [line for line in ddl("bronze.items").splitlines(True) if line.startswith("  row_number")]
    release.ddl("bronze.items", moved, "")
    release.ddl("bronze.items", "CREATE TABLE bronze.items (\n", f"CREATE TABLE bronze.items (\n{moved}")

    reader = shop.job("reads without the lease").lake.read("bronze.events")
    assert reader.where("sender is null").count() == 3
    shop.run("ingest_catalogue", start=day_after(1))  # the first to hold the lease

    for name, (files, version, rows) in before.items():
        assert fields(shop, name) == as_new(shop, name)
        assert set(files) <= set(delta(shop, name).file_uris()) or name == "bronze.items"
        old = shop.job("audit").lake.read(name, version)
        assert set(old.columns) == set(table(name).column_names) and old.count() == len(rows)
    assert sorted(delta(shop, "bronze.events").file_uris()) == before["bronze.events"][0]
    (line,) = ledger(shop, "migrate")
    assert {name for name, _ in line["details"]} == set(names)

    lake = shop.job("ingest_events", start=day_after(1)).lake
    sent = lake.read("bronze.events").withColumn("sender", F.struct(F.lit("shop").alias("name")))
    lake.replace("bronze.events", sent, Window(DAY, day_after(1)))
    assert [row["sender"] for row in shop.rows("bronze.events")] == [{"name": "shop"}] * 3
    shop.run("ingest_catalogue", start=day_after(1))
    assert ledger(shop, "migrate") == [line]  # once


def test_what_a_ddl_takes_away_needs_a_migration_and_without_one_nothing_changes(shop: Shop, release: Release):
    shop.job("old").lake.append_rows("ops.tombstones", [{"user_key": "u1", "reason": "asked"}])
    release.ddl("ops.tombstones", "in silver.events',\n  reason STRING COMMENT 'Why'", "in silver.events'")
    with pytest.raises(ContractError, match=r"ops.tombstones in .*column reason is not in the DDL.*NNNN_ops"):
        shop.run("ingest_events")
    assert shop.version("ops.tombstones") == 0 and not (shop.folder / "lake/_schema.json").exists()
    release.migration("0002_ops.tombstones", "-- takes: reason\nSELECT * EXCEPT (reason) FROM {old}\n")
    shop.run("ingest_events")
    assert fields(shop, "ops.tombstones") == as_new(shop, "ops.tombstones")
    assert shop.rows("ops.tombstones") == [{"user_key": "u1"}]
    old = shop.job("audit").lake.read("ops.tombstones", 0)
    assert old.columns == ["user_key", "reason"]  # an old version has what it had


def test_a_snapshot_from_before_a_column_is_read_for_training(shop: Shop, release: Release):
    last, added = [line for line in ddl("ml.examples").splitlines(True) if line.startswith(("  targets", "  passed"))]
    former = last.replace(",\n", "\n")
    release.ddl("ml.examples", last + added, former)
    row = {"example_id": "u@2026-03-02", "user_id": "u", "cut_date": DAY, "split": "train", "targets": ["a"]}
    shop.job("old").lake.append_rows("ml.examples", [row | {"snapshot_id": "old"}])
    release.ddl("ml.examples", former, last + added)

    def passed_over(snapshot: str) -> list[list[str]]:
        return [list(told) for told in train_scorer.examples(shop.job("train_scorer"), snapshot)["passed_over"]]

    assert "passed_over" not in [name for name, *_ in fields(shop, "ml.examples")] and passed_over("old") == [[]]
    shop.run("ingest_events")
    assert fields(shop, "ml.examples") == as_new(shop, "ml.examples")
    shop.job("new").lake.append_rows("ml.examples", [row | {"snapshot_id": "new", "passed_over": ["b", "c"]}])
    assert (passed_over("old"), passed_over("new")) == ([[]], [["b", "c"]])


def test_a_column_of_another_type_is_refused_until_a_migration_makes_it(shop: Shop, release: Release):
    shop.job("old").lake.append_rows("ml.promotions", [{"effective_from": DAY, "version": "v", "entry": 7}])
    release.ddl("ml.promotions", "entry BIGINT", "entry STRING")
    with pytest.raises(ContractError, match="column entry is bigint, the DDL says string"):
        shop.run("ingest_events")
    release.migration("0002_ml.promotions", MIGRATION)
    shop.run("ingest_events")
    assert [row["entry"] for row in shop.rows("ml.promotions")] == ["n7"]
    shop.run("ingest_events")
    assert len(ledger(shop, "migrate")) == 1


def test_a_stamp_that_a_dying_run_left_half_is_written_anew(shop: Shop):
    ran(shop, "ingest_events")
    stamp = shop.folder / "lake/_schema.json"
    whole = stamp.read_text()
    for half in ("", whole[: len(whole) // 2]):
        stamp.write_text(half)  # its checksum is that of the whole file
        shop.run("ingest_events")
        assert stamp.read_text() == whole


def test_a_restored_table_has_its_old_rows_and_names_what_was_made_from_it(shop: Shop):
    ran(shop, "ingest_events", "conform_events")
    was, version = shop.rows("bronze.events"), shop.version("bronze.events")
    shop.deliver(DAY, [event(1), event(2), event(99)])
    shop.run("ingest_events")
    assert shop.rows("bronze.events") != was
    told = restore(shop.job("restore"), "bronze.events", version, None, STEPS)
    assert shop.rows("bronze.events") == was
    assert f"days {DAY} .. {DAY} may have changed" in told
    made = next(line for line in told.splitlines() if line.startswith("made from what it was: "))
    assert "silver.events" in made, told
    assert [line.split("jobs/")[1].split(".py")[0] for line in told.splitlines() if ".py " in line] == [
        "conform_events"
    ]
    assert f"--start {DAY} --end {day_after(1)}" in told
    (line,) = ledger(shop, "restore")
    assert dict(line["details"]) == {"table": "bronze.events", "restored_to": str(version), "was": str(version + 1)}


def commands(told: str) -> dict[str, str]:
    """What `lakerec restore` says to run: the job, and what it says of days."""
    lines = [line.split("jobs/")[1] for line in told.splitlines() if "jobs/" in line]
    return {line.split(".py")[0]: line[line.index("--start") :] for line in lines}


@pytest.mark.long
def test_the_commands_behind_a_restored_table_reach_the_lists_that_are_served(shop: Shop):
    chain = ("ingest_events", "ingest_catalogue", "conform_events", "conform_catalogue", "build_sequences")
    served = day_after(1)
    for day in (DAY, served):
        shop.deliver(day, [event(1, day=day), event(2, day=day)])
        shop.run(*chain, "score_candidates", start=day)
    version = shop.version("bronze.events") - 1
    told = restore(shop.job("restore"), "bronze.events", version, None, STEPS)
    behind = day_after(2)
    assert commands(told)["conform_events"] == f"--start {served} --end {behind}"
    told = restore(shop.job("restore"), "silver.events", shop.version("silver.events") - 1, None, STEPS)
    # Lists follow from every day before them: all behind the first changed one are made anew, the newest are published.
    # Late events of a day may belong to two days before it.
    assert commands(told)["score_candidates"] == f"--start {day_after(-1)} --end {behind} --every-day"
    assert commands(told)["publish_recommendations"] == f"--start {served} --end {behind}"
    # The site has lists of a day that gold has no more, and publishes none of an older one.
    told = restore(shop.job("restore"), "gold.recommendations", 0, None, STEPS)
    assert list(commands(told)) == ["score_candidates", "publish_recommendations"]
    assert set(commands(told).values()) == {
        f"--start {served} --end {behind}",
        f"--start {served} --end {behind} --every-day",
    }


def test_what_follows_from_a_table_goes_by_what_each_run_read():
    made_from = {
        "silver.events": ("conform_events", {"bronze.events", "ops.tombstones"}),
        "ml.sequences": ("build_sequences", {"silver.events", "silver.items", "ml.sequences"}),
        "gold.model_metrics": ("evaluate_scorer", {"ml.sequences", "ml.promotions"}),
        "ml.promotions": ("promote_scorer", {"gold.model_metrics", "ml.promotions"}),
        "silver.items": ("conform_catalogue", {"bronze.items"}),
    }
    assert downstream("silver.events", made_from) == {
        "ml.sequences": "build_sequences",
        "gold.model_metrics": "evaluate_scorer",
        "ml.promotions": "promote_scorer",
    }
    assert downstream("bronze.kg", made_from) == {}


def test_a_table_that_upkeep_has_shortened_still_follows_from_what_it_was_made_of(shop: Shop):
    ran(shop, "ingest_events", "conform_events", "build_sequences")
    upkeep = shop.job("maintain_lake")
    upkeep.lake.replace("ml.sequences", upkeep.lake.read("ml.sequences").limit(0), Window(DAY, day_after(1)))
    made_from = newest_inputs(shop.job("look").lake)
    assert made_from["ml.sequences"][0] == "build_sequences" and "ops.runs" not in made_from


def test_a_table_is_restored_to_its_last_version_of_a_day_and_to_this_releases_columns(shop: Shop, release: Release):
    shop.run("ingest_catalogue")
    written = shop.job("look").lake.written_at("bronze.items", 0).astimezone(shop.config.zone).date()
    release.ddl("bronze.items", "  source_file", "  brand STRING COMMENT 'Brand',\n  source_file")
    told = restore(shop.job("restore"), "bronze.items", None, written, STEPS)
    assert "bronze.items has the rows of version 1 again" in told  # that of the migration just before
    restore(shop.job("restore"), "bronze.items", 0, None, STEPS)
    assert fields(shop, "bronze.items") == as_new(shop, "bronze.items") and len(shop.rows("bronze.items")) == 10
    with pytest.raises(UsageError, match=r"bronze.items: its oldest version is of .*, not 2001-01-01"):
        restore(shop.job("restore"), "bronze.items", None, DAY.replace(year=2001, month=1, day=1), STEPS)


def test_a_commit_of_another_program_is_of_the_day_on_which_it_was_made(shop: Shop):
    """One that tells its time behind what it does, and one that tells none."""
    shop.run("ingest_catalogue")
    lake, log = shop.job("look").lake, shop.folder / "lake/bronze/items/_delta_log"
    today = lake.written_at("bronze.items", 0)
    later = [datetime.fromtimestamp(int(today.timestamp()), UTC) + timedelta(days=n) for n in (2, 3)]
    at = int(later[0].timestamp()) * 1000
    commits = [{"txn": {"appId": "another", "version": 1}}, {"commitInfo": {"timestamp": at, "operation": "WRITE"}}]
    for version, count in ((1, 2), (2, 1)):
        file = log / f"{version:020d}.json"
        file.write_text("".join(json.dumps(one) + "\n" for one in commits[:count]))
        os.utime(file, (later[1].timestamp(),) * 2)
    assert [lake.written_at("bronze.items", version) for version in (1, 2)] == later
    told = restore(shop.job("restore"), "bronze.items", None, today.astimezone(shop.config.zone).date(), STEPS)
    assert "bronze.items has the rows of version 0 again" in told


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("ml.promotions", "lakerec rollback"),
        ("ops.runs", "only appended to"),
        ("ops.tombstones", "would bring people back who were to be forgotten"),
        ("silver.evnts", "is no table"),
        ("../../etc", "is no table"),
        ("silver.kg", "was never written"),
        ("bronze.events", "has no version 77: it has 0 to 0"),
    ],
)
def test_what_cannot_be_restored_is_named(shop: Shop, name: str, told: str):
    shop.deliver(DAY, [event(1)])
    shop.run("ingest_events")
    with pytest.raises(UsageError, match=told):
        restore(shop.job("restore"), name, 77, None, STEPS)


def test_a_version_whose_files_were_removed_is_named_and_the_table_stays(shop: Shop):
    shop.deliver(DAY, [event(1)])
    shop.run("ingest_events")
    (victim,) = delta(shop, "bronze.events").file_uris()
    shop.deliver(DAY, [event(2)])
    shop.run("ingest_events")
    Path(victim).unlink()
    with pytest.raises(UsageError, match=r"bronze\.events cannot be restored to version 0"):
        restore(shop.job("restore"), "bronze.events", 0, None, STEPS)
    assert shop.version("bronze.events") == 1


@pytest.mark.long
def test_a_lake_that_was_destroyed_comes_back_and_the_next_day_runs_on_it(shop: Shop, tmp_path: Path):
    ran(shop, *LAKE_STEPS, days=2)
    names = [name for name in tables.table_names() if shop.version(name) >= 0]
    before = {name: shop.rows(name) for name in names}
    back_up(shop.config, tmp_path / "backups", "run")
    shutil.rmtree(shop.folder / "lake")
    restore_lake(shop.config, tmp_path / "backups", None)
    assert len(names) > 6 and {name: shop.rows(name) for name in names} == before
    shop.deliver(day_after(2), [event(7, day=day_after(2), user="u1")])
    shop.run(*LAKE_STEPS, "score_candidates", start=day_after(2))
    assert len(shop.rows("silver.events")) == 7
    assert {row["user_id"] for row in shop.rows("gold.recommendations")} == {"*"}


def test_an_export_has_the_rows_of_the_days_and_no_formula(shop: Shop, tmp_path: Path):
    for n in range(2):
        shop.deliver(day_after(n), [event(n, day=day_after(n), item="=1+1", user="-u")])
    shop.run("ingest_events", "conform_events", days=2)
    out = tmp_path / "out.csv"
    assert export(shop.config, shop.spark, "silver.events", Window(DAY, day_after(1)), out, "csv") == 1
    header, line = out.read_text().splitlines()
    assert header.startswith('"event_date","event_id","user_id","item_id"')
    assert line.startswith(f'"{DAY}","{DAY}-0","\'-u","\'=1+1","purchase"')
    assert export(shop.config, shop.spark, "bronze.events", None, tmp_path / "out.parquet", "parquet") == 2
    with pytest.raises(UsageError, match="has no days"):
        export(shop.config, shop.spark, "silver.items", Window(DAY, day_after(1)), out, "csv")
    with pytest.raises(UsageError, match="no such table"):
        export(shop.config, shop.spark, "silver.evnts", None, out, "csv")
