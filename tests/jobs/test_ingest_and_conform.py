"""What lands, what is judged, what is committed: on real Delta tables, with real files."""

from __future__ import annotations

import gzip
import shutil
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from pyspark.sql import SparkSession
from tests.conftest import DAY, HEADER, LAKE_STEPS, Shop, day_after, event

from lakerec import job as jobs
from lakerec.errors import ConfigError, ConnectionFailedError, DataQualityError, SourceError
from lakerec.privacy import known_as

INGEST = ("ingest_events", "conform_events")


def ids(shop: Shop) -> set[tuple[str, str]]:
    return {(str(row["event_date"]), row["event_id"]) for row in shop.rows("silver.events")}


def ledger(shop: Shop, job: str = "conform_events") -> list[dict]:
    return [row for row in shop.rows("ops.runs") if row["job"] == job and row["ingest_date"]]


def test_every_landed_row_is_written_a_duplicate_or_in_quarantine(shop: Shop):
    rows = [event(n) for n in range(20)] + [event(3), event(4, user=""), "torn,row", event(5, day=day_after(1))]
    shop.deliver(DAY, rows)
    counts = shop.run(*INGEST)
    assert counts == {"read": 24, "written": 20, "duplicate": 1, "quarantined": 3, "bad": 2}
    assert len(shop.rows("bronze.events")) == 24
    assert len(shop.rows("silver.events")) == 20
    broken = Counter(rule for row in shop.rows("quarantine.events") for rule in row["failed_rules"])
    assert broken == {"no_user": 1, "unparsable": 1, "from_future": 1}
    (line,) = ledger(shop)
    assert (line["rows_read"], line["rows_written"], line["rows_duplicate"], line["rows_quarantined"]) == (24, 20, 1, 3)
    assert line["status"] == "ok"


def test_the_same_window_twice_changes_nothing(shop: Shop):
    shop.deliver(DAY, [event(n) for n in range(5)] + [event(1)])
    shop.run(*INGEST, "ingest_catalogue", "conform_catalogue", "build_sequences")
    tables = ("bronze.events", "silver.events", "silver.items", "ml.sequences", "quarantine.events")
    first = {name: shop.rows(name) for name in tables}
    shop.run(*INGEST, "ingest_catalogue", "conform_catalogue", "build_sequences")
    assert {name: shop.rows(name) for name in tables} == first
    assert first["silver.events"] and first["ml.sequences"]


def test_a_late_event_goes_to_its_own_day_and_a_too_late_one_to_quarantine(shop: Shop):
    shop.settings["gate"] = {"max_bad": 0.5}
    for n in range(4):
        shop.deliver(day_after(n), [event(n, day=day_after(n))])
    shop.run(*INGEST, days=3)
    shop.deliver(day_after(3), [event(30, day=day_after(3)), event(31, day=day_after(1)), event(32, day=DAY)])
    shop.run(*INGEST, start=day_after(3))
    assert (str(day_after(1)), f"{day_after(1)}-31") in ids(shop)
    (late,) = [row for row in shop.rows("silver.events") if row["event_id"].endswith("-31")]
    assert late["ingest_date"] == day_after(3)
    (bad,) = shop.rows("quarantine.events")
    assert bad["failed_rules"] == ["too_late"] and bad["severity"] == "bad"


def test_the_first_of_two_deliveries_of_an_event_wins_in_whatever_order_days_are_run(shop: Shop):
    shop.deliver(DAY, [event(1)])
    shop.deliver(day_after(1), [event(1).replace("1.5", "99"), event(2, day=day_after(1))])
    shop.run(*INGEST, start=day_after(1))
    shop.run(*INGEST, start=DAY)
    backwards = shop.rows("silver.events")
    shop.run(*INGEST, start=DAY, days=2)
    assert shop.rows("silver.events") == backwards
    assert {row["value"] for row in backwards} == {1.5, 2.5}


def test_a_column_added_by_another_team_is_kept_and_reported(shop: Shop):
    shop.deliver(DAY, [event(1)])
    shop.deliver(day_after(1), [event(2, day=day_after(1)) + ",spring"], header=HEADER + ",campaign")
    counts = shop.run("ingest_events", days=2)
    assert counts["columns_not_mapped"] == "campaign"
    landed = [dict(row["payload"]) for row in shop.rows("bronze.events")]
    assert [row.get("campaign") for row in landed] == [None, "spring"]
    assert shop.run("conform_events", days=2)["written"] == 2


def test_columns_in_another_order_are_read_by_name(shop: Shop):
    shop.deliver(DAY, [event(1)])
    turned = ",".join(reversed(event(2, day=day_after(1)).split(",")))
    shop.deliver(day_after(1), [turned], header=",".join(reversed(HEADER.split(","))))
    shop.run(*INGEST, days=2)
    assert {row["item_id"] for row in shop.rows("silver.events")} == {"i1", "i2"}


def test_a_missing_required_column_is_named_and_nothing_is_written(shop: Shop):
    file = shop.deliver(DAY, ["x,u,i,view,2026-03-02"], header="event_id,customer,item_id,event_type,event_time")
    place = r"config.yaml, line \d+: sources.events.columns.user_id"
    told = rf"{file.name}: required column user_id, price is missing.*{place}"
    with pytest.raises(SourceError, match=told):
        shop.run("ingest_events")
    assert shop.version("bronze.events") == -1


@pytest.mark.parametrize(
    "wrong",
    [
        "to_timstamp(event_time)",
        "cast(event_time as timstamp)",
        "max(event_time)",
        "to_timestamp(event_time, 'YYYY-MM-dd')",
        "to_timestamp(event_time, 'nonsense')",
    ],
)
def test_an_expression_that_spark_cannot_resolve_is_named_with_its_line(shop: Shop, spark: SparkSession, wrong: str):
    shop.settings["sources"]["events"]["columns"]["event_time"] = wrong
    with pytest.raises(ConfigError, match=r"config.yaml, line \d+: sources.events.columns.event_time: .*"):
        jobs.check_expressions(shop.config, spark)


def test_an_expression_that_some_texts_break_is_for_the_real_ones_to_say(shop: Shop, spark: SparkSession):
    columns = shop.settings["sources"]["events"]["columns"]
    columns["value"] = "cast(unbase64(price) as string)"
    columns["event_type"] = "if(event_type = '1', raise_error('no such type'), event_type)"
    jobs.check_expressions(shop.config, spark)
    columns["event_time"] = "to_timestamp(event_time, 'YYYY-MM-dd')"
    with pytest.raises(ConfigError, match=r"sources.events.columns.event_time: "):
        jobs.check_expressions(shop.config, spark)


@pytest.mark.parametrize("damage", ["truncated", "no gzip", "other bits"])
def test_a_damaged_file_is_named_and_the_table_stays(shop: Shop, damage: str):
    shop.deliver(DAY, [event(1)])
    shop.run("ingest_events")
    version = shop.version("bronze.events")
    file = shop.deliver(day_after(1), [event(n, day=day_after(1), user=f"u{n * 7919}") for n in range(5000)])
    whole = file.read_bytes()
    half = len(whole) // 2
    damaged = {
        "truncated": whole[:half],
        "no gzip": b"PK\x03\x04 not what the name says",
        "other bits": whole[:half] + bytes(255 - byte for byte in whole[half : half + 99]) + whole[half + 99 :],
    }
    file.write_bytes(damaged[damage])
    with pytest.raises(SourceError, match=f"{day_after(1)}.*cannot be read: .*Deliver it again"):
        shop.run("ingest_events", start=day_after(1))
    assert shop.version("bronze.events") == version


def test_a_damaged_catalogue_says_nothing_of_those_that_landed_before_it(shop: Shop):
    shop.settings["sources"]["users"] = {"path": "users.csv.gz", "columns": {"user_id": "u", "text": "t"}}
    file = shop.write("users.csv.gz", "u,t", [f"u{n * 7919},of {n} words" for n in range(5000)])
    file.write_bytes(file.read_bytes()[:9999])
    with pytest.raises(SourceError, match=r"users.csv.gz: cannot be read: [^;]*Deliver it again$"):
        shop.run("ingest_catalogue")
    assert (shop.version("bronze.items"), shop.version("bronze.users")) == (0, -1)


@pytest.mark.parametrize("path", ["hdfs://127.0.0.1:1/events/{date}.csv.gz", "/proc/self/mem"], ids=["server", "disk"])
def test_a_storage_that_gives_no_file_is_no_fault_of_the_file(shop: Shop, path: str):
    """No server answers at port 1; the first page of a process is not mapped, so that reading it is an I/O error."""
    shop.settings["sources"]["events"]["path"] = path
    hadoop, key = shop.spark._jsc.hadoopConfiguration(), "ipc.client.connect.max.retries"
    hadoop.set(key, "0")
    try:
        with pytest.raises(ConnectionFailedError, match=r"did not give it: .*(Connection refused|Input/output error)"):
            shop.run("ingest_events")
    finally:
        hadoop.unset(key)


def test_bytes_of_another_encoding_are_refused_with_file_and_row(shop: Shop):
    file = shop.folder / f"events/{DAY}.csv.gz"
    file.parent.mkdir(parents=True)
    rows = f"{HEADER}\n{event(1)}\n{event(2, item='café')}\n"
    file.write_bytes(gzip.compress(rows.encode("latin-1")))
    with pytest.raises(SourceError, match=rf"{file.name}, row 2: bytes that are not of the file's encoding"):
        shop.run("ingest_events")
    assert shop.version("bronze.events") == -1
    shop.settings["sources"]["events"]["options"] = {"encoding": "ISO-8859-1"}
    shop.run(*INGEST)
    assert {row["item_id"] for row in shop.rows("silver.events")} == {"i1", "café"}


def test_the_sign_of_damage_that_was_delivered_as_such_is_text_like_any_other(shop: Shop):
    shop.deliver(DAY, [event(1), event(2, item="Mis\ufffdrables")])
    assert shop.run(*INGEST)["written"] == 2
    assert {row["item_id"] for row in shop.rows("silver.events")} == {"i1", "Mis\ufffdrables"}


def test_a_day_without_rows_is_empty_or_an_error_as_configured(shop: Shop):
    shop.deliver(DAY, [event(1)])
    (shop.folder / f"events/{day_after(1)}.csv.gz").write_bytes(gzip.compress(b""))
    shop.deliver(day_after(2), [])
    counts = shop.run(*INGEST, days=4)
    assert counts["read"] == 1
    empty = {
        row["ingest_date"] for row in shop.rows("ops.runs") if row["job"] == "ingest_events" and not row["rows_read"]
    }
    assert empty >= {day_after(1), day_after(3)}
    shop.settings["sources"]["events"]["missing"] = "error"
    with pytest.raises(SourceError, match=f"no rows for 2 days, the first {day_after(1)}"):
        shop.run("ingest_events", days=4)


def test_days_whose_files_are_gone_keep_their_rows_unless_they_were_withdrawn(shop: Shop):
    shop.settings["sources"]["users"] = {"path": "users/{date}.csv.gz", "columns": {"user_id": "user_id", "text": "t"}}
    for n in range(3):
        shop.deliver(day_after(n), [event(n, day=day_after(n))])
        shop.write(f"users/{day_after(n)}.csv.gz", "user_id,t", [f"u{n},words"])
    steps = ("ingest_events", "ingest_catalogue")
    for step in steps:
        shop.run(step, days=4)
    tables = {"events": "bronze.events", "users": "bronze.users"}
    versions = {name: shop.version(name) for name in tables.values()}
    for step, source in zip(steps, tables, strict=True):
        for n in (0, 2):
            (shop.folder / f"{source}/{day_after(n)}.csv.gz").rename(shop.folder / f"archived-{source}-{n}")
        told = rf"sources.{source}: .* 2 days, the first {DAY}, that have landed 2 before"
        with pytest.raises(SourceError, match=told):
            shop.run(step, days=4)
    assert {name: shop.version(name) for name in tables.values()} == versions
    for step, source in zip(steps, tables, strict=True):
        shop.settings["sources"][source]["missing"] = "remove"
        shop.run(step, days=4)
        assert [row["ingest_date"] for row in shop.rows(tables[source])] == [day_after(1)]


def test_an_empty_day_behind_others_counts_no_row_of_theirs(shop: Shop):
    shop.deliver(DAY, [event(1)])
    assert shop.run("ingest_events")["read"] == 1
    assert shop.run("ingest_events", start=day_after(1))["read"] == 0
    assert sorted((str(row["ingest_date"]), row["rows_read"]) for row in shop.rows("ops.runs")) == [
        (str(DAY), 1),
        (str(day_after(1)), 0),
    ]


def test_two_percent_bad_rows_pass_the_gate_with_a_quarantine(shop: Shop):
    shop.deliver(DAY, [event(n) for n in range(98)] + ["torn", "torn too"])
    counts = shop.run(*INGEST)
    assert (counts["written"], counts["bad"]) == (98, 2)


def test_sixty_percent_bad_rows_fail_the_gate_and_the_table_stays(shop: Shop):
    shop.deliver(DAY, [event(n) for n in range(10)])
    shop.run(*INGEST)
    before, version = shop.rows("silver.events"), shop.version("silver.events")
    shop.deliver(day_after(1), [event(n, day=day_after(1)) for n in range(4)] + ["torn"] * 6)
    shop.deliver(day_after(2), [event(n, day=day_after(2)) for n in range(4)])
    with pytest.raises(DataQualityError, match=rf"ingest day {day_after(1)}: .*6 of 10 rows are bad \(60.0%\)"):
        shop.run(*INGEST, start=day_after(1), days=2)
    assert shop.rows("silver.events") == before and shop.version("silver.events") == version
    assert len(shop.rows("quarantine.events")) == 6
    assert {row["status"] for row in ledger(shop) if row["ingest_date"] > DAY} == {"rejected"}
    failed = [row for row in shop.rows("ops.dq_results") if not row["success"] and row["kind"] == "batch"]
    assert [row["ingest_date"] for row in failed] == [day_after(1)]


def test_a_refused_day_stays_out_of_its_neighbours_until_it_is_delivered_anew(shop: Shop):
    shop.deliver(DAY, [event(n) for n in range(10)])
    good = [event(n, day=day_after(1)) for n in range(4)] + [event(50)]  # the last one is late, of DAY
    shop.deliver(day_after(1), [*good, *["torn"] * 10])
    shop.deliver(day_after(2), [event(n, day=day_after(2)) for n in range(4)])
    shop.run(*INGEST)
    with pytest.raises(DataQualityError):
        shop.run(*INGEST, start=day_after(1))
    shop.run(*INGEST, start=day_after(2))
    shop.run(*INGEST)
    assert Counter(row["ingest_date"] for row in shop.rows("silver.events")) == {DAY: 10, day_after(2): 4}
    shop.deliver(day_after(1), good)
    shop.run(*INGEST, start=day_after(1))
    landed = Counter(row["ingest_date"] for row in shop.rows("silver.events"))
    assert landed == {DAY: 10, day_after(1): 5, day_after(2): 4}
    told = [dict(row["details"]).get("days_left_out") for row in ledger(shop) if row["ingest_date"] == day_after(2)]
    assert told == [str(day_after(1))]


def copied(shop: Shop, folder: Path) -> Shop:
    """The shop with all its files and a lake of its own."""
    shutil.copytree(shop.folder, folder, dirs_exist_ok=True)
    return Shop(folder, shop.spark, shop.settings)


def test_a_day_delivered_again_in_a_bad_state_leaves_whole_whichever_neighbour_runs(shop: Shop, tmp_path_factory):
    """Day 2 has late events of the days 0 and 1, one of which day 3 delivers once more."""
    bad = day_after(2)
    late = [event(50, hour=13), event(51, day=day_after(1), hour=13)]
    good = [*[event(n, day=bad) for n in range(4)], *late]
    for n in range(5):
        again = [late[1].replace("51.5", "99")] * (n == 3)
        shop.deliver(day_after(n), good if n == 2 else [event(n, day=day_after(n)), *again])
    tables = ("silver.events", "ml.sequences")
    shop.run(*INGEST, "build_sequences", days=5)
    whole = {name: shop.rows(name) for name in tables}
    assert Counter(row["ingest_date"] for row in whole["silver.events"])[bad] == 6
    shop.deliver(bad, [*good, *["torn"] * 10])
    with pytest.raises(DataQualityError):
        shop.run(*INGEST, start=bad)
    assert shop.rows("silver.events") == whole["silver.events"]

    never_good = copied(shop, tmp_path_factory.mktemp("never_good"))
    for name in tables:
        shutil.rmtree(never_good.folder / "lake" / name.replace(".", "/"))
    for start in (DAY, day_after(3)):  # the days before it, and behind
        never_good.run("conform_events", "build_sequences", start=start, days=2)
    expected = {name: never_good.rows(name) for name in tables}
    assert {row["value"] for row in expected["silver.events"] if row["event_id"] == f"{day_after(1)}-51"} == {99.0}

    for n in (1, 4):  # neither has all of the event days of day 2 in its window
        neighbour = copied(shop, tmp_path_factory.mktemp("neighbour"))
        neighbour.run("conform_events", "build_sequences", start=day_after(n))
        assert {name: neighbour.rows(name) for name in tables} == expected
        neighbour.deliver(bad, good)
        neighbour.run(*INGEST, "build_sequences", start=bad)
        assert {name: neighbour.rows(name) for name in tables} == whole


def test_an_empty_lake_is_filled_from_its_first_day_with_rows(shop: Shop):
    columns = dict.fromkeys(("item_id", "title", "text"), "item_id")
    shop.settings["sources"]["items"] = {"from": "events", "columns": columns}
    shop.run(*LAKE_STEPS)
    assert shop.rows("silver.events") == [] and shop.version("silver.items") == -1
    shop.deliver(day_after(1), [event(1, day=day_after(1))])
    shop.run(*LAKE_STEPS, start=day_after(1))
    assert len(shop.rows("silver.items")) == len(shop.rows("ml.sequences")) == 1


def test_blank_lines_before_the_header_do_not_hide_a_days_rows(shop: Shop):
    shop.write(f"events/{DAY}.csv.gz", "", ["", HEADER, event(1), event(2)])
    assert shop.run(*INGEST)["written"] == 2


@pytest.mark.parametrize("kind", ["parquet", "delta"])
def test_a_folder_a_day_is_a_source_too(shop: Shop, kind: str):
    shop.settings["sources"]["events"] |= {"format": kind, "path": "events/{date}"}
    for day in (DAY, day_after(1)):
        rows = [dict(zip(HEADER.split(","), event(n, day=day).split(","), strict=True)) for n in range(3)]
        place = shop.folder / f"events/{day}"
        if kind == "delta":
            write_deltalake(place, pa.Table.from_pylist(rows))
        else:
            place.mkdir(parents=True)
            pq.write_table(pa.Table.from_pylist(rows), place / "part-0.parquet")
    assert shop.run(*INGEST, days=2)["written"] == 6
    assert Counter(row["ingest_date"] for row in shop.rows("bronze.events")) == {DAY: 3, day_after(1): 3}
    if kind == "parquet":
        (place / "part-0.parquet").write_bytes(b"PAR1 and no more")
        with pytest.raises(SourceError, match=f"{day_after(1)}.*Deliver it again"):
            shop.run("ingest_events", days=2)


@pytest.mark.parametrize("kind", ["parquet", "delta"])
def test_an_instant_of_parquet_or_delta_keeps_its_offset(shop: Shop, kind: str):
    """The hour that London has twice: as a text without an offset both were the same."""
    shop.settings["timezone"] = "Europe/London"
    shop.settings["sources"]["events"] |= {"format": kind, "path": "events/{date}"}
    shop.settings["sources"]["events"]["columns"]["event_time"] = "cast(event_time as timestamp)"
    day = date(2024, 10, 27)
    moments = [datetime(2024, 10, 27, 0, 30, tzinfo=UTC), datetime(2024, 10, 27, 1, 30, tzinfo=UTC)]
    rows = [dict(zip(HEADER.split(","), event(n, day=day).split(","), strict=True)) for n in range(2)]
    table = pa.Table.from_pylist([row | {"event_time": at} for row, at in zip(rows, moments, strict=True)])
    place = shop.folder / f"events/{day}"
    if kind == "delta":
        write_deltalake(place, table)
    else:
        place.mkdir(parents=True)
        pq.write_table(table, place / "part-0.parquet")
    before = shop.spark.conf.get("spark.sql.session.timeZone")
    shop.spark.conf.set("spark.sql.session.timeZone", "Europe/London")
    try:
        shop.run(*INGEST, start=day)
        seconds = shop.job("look").lake.read("silver.events").selectExpr("unix_timestamp(event_time) as at").collect()
    finally:
        shop.spark.conf.set("spark.sql.session.timeZone", before)
    assert sorted(row["at"] for row in seconds) == [int(at.timestamp()) for at in moments]


def test_a_catalogue_that_is_refused_says_where_it_landed_and_is_in_the_ledger(shop: Shop):
    shop.deliver(DAY, [event(1)])
    shop.run("ingest_catalogue", "conform_catalogue")
    kept = shop.rows("silver.items")
    shop.write("items.csv.gz", "item_id,title", [])
    shop.run("ingest_catalogue")
    with pytest.raises(DataQualityError, match=r"silver.items stays at version 0(.|\n)*newest rows of bronze.items"):
        shop.run("conform_catalogue")
    assert shop.rows("silver.items") == kept
    last = max(shop.rows("ops.runs"), key=lambda row: row["started_at"])
    assert (last["job"], last["status"]) == ("conform_catalogue", "rejected")


def test_a_value_that_does_not_parse_is_quarantined_and_the_job_lives(shop: Shop):
    shop.settings["gate"] = {"max_bad": 0.5}
    shop.deliver(DAY, [event(1), event(2).replace(str(DAY) + " ", "yesterday "), event(3).replace("3.5", "free")])
    counts = shop.run(*INGEST)
    assert (counts["written"], counts["quarantined"]) == (2, 1)
    (bad,) = shop.rows("quarantine.events")
    assert bad["failed_rules"] == ["bad_time"]
    assert dict(bad["payload"])["event_time"].startswith("yesterday")


def test_a_file_delivered_again_replaces_its_rows(shop: Shop):
    shop.deliver(DAY, [event(1), event(2), event(3)])
    shop.run(*INGEST)
    shop.deliver(DAY, [event(1), event(2).replace("2.5", "7")])
    shop.run(*INGEST)
    assert {row["event_id"]: row["value"] for row in shop.rows("silver.events")} == {f"{DAY}-1": 1.5, f"{DAY}-2": 7.0}
    assert len(shop.rows("bronze.events")) == 2


def test_a_visit_ends_after_inactivity_and_with_the_day(shop: Shop):
    rows = [event(n, hour=hour) for n, hour in ((1, 9), (2, 9), (3, 14))] + [event(5, user="u2", hour=9)]
    shop.deliver(DAY, rows)
    shop.run(*INGEST)
    visits = {row["event_id"][-1]: row["session_id"] for row in shop.rows("silver.events")}
    assert visits["1"] == visits["2"] != visits["3"]
    assert len(set(visits.values())) == 3


def test_people_to_be_forgotten_do_not_come_back(shop: Shop):
    shop.deliver(DAY, [event(1), event(2, user="gone")])
    job = shop.job("ingest_events")
    job.lake.append_rows("ops.tombstones", [{"user_key": "gone", "reason": "asked"}])
    counts = shop.run(*INGEST)
    assert (counts["written"], counts["quarantined"], counts["bad"]) == (1, 1, 0)


def test_pseudonyms_are_keyed_hashes(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    import hashlib
    import hmac

    shop.settings["privacy"] = {"pseudonymise": True}
    monkeypatch.setenv("LAKEREC_USER_KEY", "k" * 80)
    shop.deliver(DAY, [event(1, user="anna"), event(2, user="")])
    counts = shop.run(*INGEST)
    expected = hmac.new(b"k" * 80, b"anna", hashlib.sha256).hexdigest()
    assert [row["user_id"] for row in shop.rows("silver.events")] == [expected] == [known_as(shop.config, "anna")]
    assert counts["quarantined"] == 1


@pytest.mark.parametrize("pattern", ["[0-9][!a-z&]", "{[^0-9][0-9],1?}", "[&&1][02]"])
def test_a_class_of_characters_may_stand_in_the_path(shop: Shop, pattern: str):
    shop.settings["sources"]["events"]["path"] = f"events/{pattern}/{{date}}.part-[1-3].csv.gz"
    for n, folder in enumerate(("12", "1b", "a2")):
        shop.write(f"events/{folder}/{DAY}.part-{n + 1}.csv.gz", HEADER, [event(n)])
    shop.write(f"events/12/{DAY}.part-4.csv.gz", HEADER, [event(4)])
    shop.run("ingest_events")
    found = {row["source_file"].split("/")[0] for row in shop.rows("bronze.events")}
    assert found == {"{[^0-9][0-9],1?}": {"a2", "12", "1b"}}.get(pattern, {"12"})
    assert {row["ingest_date"] for row in shop.rows("bronze.events")} == {DAY}


def test_json_lines_are_a_source_too(shop: Shop):
    shop.settings["gate"] = {"max_bad": 0.5}
    shop.settings["sources"]["events"] |= {"format": "json", "path": "events/{date}.json.gz"}
    names = HEADER.split(",")
    rows = [
        "{" + ", ".join(f'"{k}": "{v}"' for k, v in zip(names, event(n).split(","), strict=True)) + "}" for n in (1, 2)
    ]
    shop.write(f"events/{DAY}.json.gz", rows[0], [rows[1], "{torn"])
    counts = shop.run(*INGEST)
    assert (counts["written"], counts["bad"]) == (2, 1)


def test_a_file_without_a_day_lands_on_its_events_days(shop: Shop):
    shop.settings["sources"]["events"]["path"] = "all.csv.gz"
    shop.settings["gate"] = {"max_bad": 0.5}
    shop.write("all.csv.gz", HEADER, [event(n, day=DAY + timedelta(days=n % 3)) for n in range(9)] + ["torn"])
    counts = shop.run(*INGEST, days=3)
    assert (counts["read"], counts["written"], counts["quarantined"]) == (10, 9, 1)
    assert {row["ingest_date"] for row in shop.rows("bronze.events")} == {DAY, day_after(1), day_after(2)}


def test_days_that_left_a_file_without_a_day_keep_their_rows_unless_they_were_withdrawn(shop: Shop):
    source = shop.settings["sources"]["events"]
    source["path"] = "all.csv.gz"
    rows = [event(n, day=day_after(n % 3)) for n in range(9)]
    shop.write("all.csv.gz", HEADER, rows)
    assert (shop.run("ingest_events", days=4)["empty_days"], shop.version("bronze.events")) == (1, 0)
    shop.write("all.csv.gz", HEADER, [row for row in rows if not row.startswith(str(DAY))])
    told = rf"sources.events: all.csv.gz has no rows for 1 days, the first {DAY}, that have landed 3 before.*the rows"
    with pytest.raises(SourceError, match=told):
        shop.run("ingest_events", days=4)
    assert shop.version("bronze.events") == 0
    later = {"start": day_after(1), "days": 3}  # the last of them has never landed
    assert (shop.run("ingest_events", **later)["read"], len(shop.rows("bronze.events"))) == (6, 9)
    source["missing"] = "remove"
    shop.run(*INGEST, days=4)
    assert {row["ingest_date"] for row in shop.rows("bronze.events")} == {day_after(1), day_after(2)}
    assert {row["event_date"] for row in shop.rows("silver.events")} == {day_after(1), day_after(2)}
    last = [row["rows_read"] for row in ledger(shop, "ingest_events") if row["ingest_date"] == DAY]
    assert sorted(last) == [0, 3]


def test_the_simulators_dirt_is_found_row_by_row(shop: Shop):
    from lakerec.simulator import simulate

    summary = simulate(shop.folder / "sim", DAY, days=8, users=40, items=40, seed=5)
    shop.settings["sources"]["events"] = {
        "path": "sim/events/{date}.csv.gz",
        "columns": {**shop.settings["sources"]["events"]["columns"], "query": "query", "position": "position"},
        "rules": {"bot": {"when": "lower(user_agent) like '%bot%'", "severity": "expected"}},
    }
    shop.settings["event_types"] = {"impression": 0, "search": 0, "view": 1, "cart": 3, "purchase": 5}
    shop.settings["late_days"] = 3
    counts = shop.run(*INGEST, days=8)
    total = summary.total
    assert counts["read"] == total.rows
    assert counts["duplicate"] == total.duplicates + total.redelivered
    broken = Counter(row["failed_rules"][0] for row in shop.rows("quarantine.events"))
    planted = {
        "unparsable": total.unparsable, "bad_time": total.bad_time, "from_future": total.future,
        "too_late": total.too_late, "no_user": total.no_user, "bot": total.bot,
    }  # fmt: skip
    assert broken == planted
    by_day = {row["ingest_date"]: row["rows_written"] for row in ledger(shop)}
    assert by_day == {day: found.written + found.unknown_item for day, found in summary.days.items() if found.rows}
