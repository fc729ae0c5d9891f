"""What stands in files is data: from hostile rows, headers and files to the lake and to PostgreSQL."""

from __future__ import annotations

import bz2
import gzip
import json
import random
from pathlib import Path

import pytest
from tests.conftest import DAY, HEADER, Shop, event

from lakerec import postgres, serving
from lakerec.errors import SourceError

VALUES = [
    "Robert'); DROP TABLE serving.recommendations;--",
    "' OR '1'='1",
    '" or ""="',
    "${jndi:ldap://127.0.0.1/a}",
    "${spark.driver.memory}",
    "{{ ti.id }}",
    "{old}",
    "%(user)s %s",
    "=cmd|' /C calc'!A0",
    "a\nb\r\nc\td\\N\\.",
    "`back` \\ slash",
    "\u202eevil\u202c",
    "\u0001\u001b[31m",
    "../../../etc/passwd",
    "*?[a-z]{x,y}",
    "__HIVE_DEFAULT_PARTITION__",
    "null",
    "\U0001f4a9" * 100,
    "ЯR中文",
    "e\u0301",
    " blank ",
]
REFUSED = ["*", "nul\0byte", "x" * 1001, "long" * 2_500_000]  # the last has 10 MB
FIELDS = HEADER.split(",")


def sampled(count: int) -> list[str]:
    """Texts of any characters but NUL and halves of pairs, up to 40 of them."""
    rng = random.Random(7)
    alphabet = [
        chr(n) for n in [*range(1, 0x250), *range(0x590, 0x700), *range(0x2000, 0x2070), *range(0x1F600, 0x1F640)]
    ]
    return ["".join(rng.choices(alphabet, k=rng.randint(1, 40))) for _ in range(count)]


def row(n: int, user: str, item: str) -> str:
    day = str(DAY)
    return json.dumps(dict(zip(FIELDS, [f"{n}", user, item, "purchase", f"{day} 12:00:00", "1.5"], strict=True)))


def test_hostile_values_are_told_as_they_came_from_the_file_to_postgresql(shop: Shop):
    """As users, items and titles; what PostgreSQL cannot hold is in quarantine, by name."""
    good = [text for text in (*VALUES, *sampled(40)) if text.strip()]
    shop.settings["sources"]["events"] |= {"format": "json", "path": "events/{date}.json.gz"}
    shop.settings["sources"]["items"] |= {"format": "json", "path": "items.json.gz", "mode": "delta"}
    shop.settings["gate"] = {"max_bad": 0.9}
    shop.settings["policy"] = {"k": len(good) + 5}
    titles = dict(zip(good, reversed(good), strict=True)) | {"nul\0item": "t", "big": "t" * 10_000_000}
    first, *others = [json.dumps({"item_id": item, "title": title}) for item, title in titles.items()]
    shop.write("items.json.gz", first, others)
    rows = [row(n, text, text) for n, text in enumerate(good)]
    rows += [row(1000 + n, text, "i") for n, text in enumerate(REFUSED)]
    rows += [row(2000 + n, "u", text) for n, text in enumerate(REFUSED[1:])]
    shop.write(f"events/{DAY}.json.gz", rows[0], rows[1:])

    counts = shop.run("ingest_events", "ingest_catalogue", "conform_events")
    assert (counts["written"], counts["bad"]) == (len(good), len(REFUSED) * 2 - 1)
    assert {tuple(one["failed_rules"]) for one in shop.rows("quarantine.events")} == {("unusable_id",)}
    shop.run("conform_catalogue", "build_sequences", "score_candidates")

    events = shop.rows("silver.events")
    assert sorted((one["user_id"], one["item_id"]) for one in events) == sorted((text, text) for text in good)
    known = {one["item_id"]: one["title"] for one in shop.rows("silver.items")}
    assert known == {**{item: title[:1000] for item, title in titles.items() if item != "nul\0item"}}
    told = {one["user_id"]: one["text"] for one in shop.rows("ml.sequences")}
    assert all(titles[user].strip() in text for user, text in told.items())

    uri = postgres.ensure_database(postgres.start(shop.folder / "postgres"), "serving")
    try:
        lists = shop.rows("gold.recommendations")
        fields = serving.Recommendation._fields
        for user in good:  # each hostile user gets a list of hostile items
            lists += [{**one, "user_id": user} for one in lists if one["user_id"] == "*"][:2]
        batch = [tuple(one[name] for name in fields) for one in lists]
        serving.publish(uri, iter(batch), DAY, len(batch))
        for user in good:
            assert [one.user_id for one in serving.list_for(uri, user)] == [user, user]
        served = {one.item_id for one in serving.list_for(uri, "a stranger")}
        assert served == {one["item_id"] for one in lists} and served >= set(good)
    finally:
        postgres.stop(shop.folder / "postgres")


def test_the_name_of_a_column_is_no_code_either(shop: Shop):
    wild = "a` int, `b', (select 1) ${x} {{y}}"
    shop.deliver(DAY, [event(1) + ",kept"], header=f'{HEADER},"{wild}"')
    shop.run("ingest_events")
    (landed,) = shop.rows("bronze.events")
    assert dict(landed["payload"])[wild] == "kept"


@pytest.mark.parametrize(
    "more, told",
    [
        ("x" * 200_000, r"the first line cannot be split into columns: field larger than field limit"),
        ("Price", r"the header names Price, price twice \(capitals do not count\)"),
        ("price", r"the header names price twice;"),
        ("_Corrupt_Record", "the header names _Corrupt_Record, which no column may be called"),
        ("_metadata", "the header names _metadata, which no column may be called"),
    ],
    ids=lambda value: value[:20],
)
def test_a_header_that_spark_cannot_take_is_told(shop: Shop, more: str, told: str):
    file = shop.deliver(DAY, [event(1) + ",1"], header=f"{HEADER},{more}")
    with pytest.raises(SourceError, match=f"{file.name}: {told}"):
        shop.run("ingest_events")


@pytest.mark.parametrize(
    "quote, cells, landed",
    [('"', ('"in||inches"', '"6||7"'), ("in||inches", "6||7")), ("", ('5"', '"6'), ('5"', '"6'))],
    ids=["quotes", "none"],
)
def test_a_separator_may_have_several_characters_and_a_file_no_quotes(shop: Shop, quote: str, cells, landed):
    shop.settings["sources"]["events"]["options"] = {"sep": "||", "quote": quote}
    header, row = (text.replace(",", "||") + f"||{cell}" for text, cell in zip((HEADER, event(1)), cells, strict=True))
    shop.deliver(DAY, [row], header)
    shop.run("ingest_events")
    (found,) = shop.rows("bronze.events")
    assert dict(found["payload"]).items() >= {landed, ("item_id", "i1")}


def test_a_link_out_of_the_folder_is_refused_and_one_within_is_not(shop: Shop):
    secret = shop.write("elsewhere/secret.csv.gz", HEADER, [event(1)])
    file = shop.folder / "events" / f"{DAY}.csv.gz"
    file.parent.mkdir()
    file.symlink_to(secret)
    with pytest.raises(SourceError, match=rf"{file.name} is a link to .*secret.csv.gz, outside of .*events"):
        shop.run("ingest_events")
    assert shop.version("bronze.events") == -1
    file.unlink()
    shop.write("events/archive/kept.csv.gz", HEADER, [event(1)])
    file.symlink_to("archive/kept.csv.gz")
    assert shop.run("ingest_events")["read"] == 1


def test_a_day_of_folders_may_not_hold_a_link_out_of_them(shop: Shop):
    shop.settings["sources"]["events"] |= {"format": "parquet", "path": "events/{date}"}
    place = shop.folder / "events" / str(DAY)
    place.mkdir(parents=True)
    (place / "part-0.parquet").symlink_to(Path("/etc/hostname"))
    with pytest.raises(SourceError, match=r"part-0.parquet is a link to .*outside"):
        shop.run("ingest_events")


@pytest.mark.parametrize("ending", ["gz", "bz2"])
def test_a_bomb_is_refused_before_anything_is_written(shop: Shop, ending: str):
    """40 MB of zeros in some 40 KB of gzip, 50 bytes of bzip2: one line, which no reader ends."""
    file = shop.folder / f"events/{DAY}.csv.{ending}"
    file.parent.mkdir()
    content = f"{HEADER}\n".encode() + b"0" * 40_000_000
    file.write_bytes(gzip.compress(content) if ending == "gz" else bz2.compress(content))
    shop.settings["sources"]["events"] |= {"path": "events/{date}.csv." + ending, "max_bytes": 10_000_000}
    with pytest.raises(SourceError, match=rf"{file.name} holds more than 10,000,000 bytes once it is decompressed"):
        shop.run("ingest_events")
    assert shop.version("bronze.events") == -1 and not (shop.folder / "lake/bronze").exists()


def test_a_file_within_the_bound_is_read_also_where_it_had_to_be_measured(shop: Shop):
    file = shop.deliver(DAY, [event(n) for n in range(500)])
    size = len(gzip.decompress(file.read_bytes()))
    shop.settings["sources"]["events"]["max_bytes"] = size
    assert shop.run("ingest_events")["read"] == 500
    shop.settings["sources"]["events"]["max_bytes"] = size - 1
    with pytest.raises(SourceError, match=f"more than {size - 1:,} bytes"):
        shop.run("ingest_events")
