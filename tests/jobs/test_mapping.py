"""A value that an expression of the configuration cannot take is a fault of input: expression, file, and what to do."""

from __future__ import annotations

import pytest
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException, SparkRuntimeException
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from tests.conftest import DAY, HEADER, Shop, day_after, event

from lakerec import job as jobs
from lakerec import mapping
from lakerec.errors import SourceError

BROKEN = {
    "raised": ("raise_error(concat('no price: ', price))", r"\[USER_RAISED_EXCEPTION\] no price: 7.5"),
    "spark's": ("element_at(array(1.0), cast(nullif(price, '7.5') is not null as int))", r"\[INVALID_INDEX_OF_ZERO\]"),
    "java's": ("format_string('%d', price)", "d != "),
    "no text": ("cast(unhex('C3') as string)", r"\[INVALID_UTF8_STRING\]"),
}


def only(expression: str, value: str = "7.5") -> str:
    """An expression that takes every price but one."""
    return f"if(price = '{value}', {expression}, price)"


@pytest.mark.parametrize("late_days", [0, 2], ids=["alone", "with its neighbours"])
@pytest.mark.parametrize("case", ["raised", "spark's", "java's"])
def test_an_event_that_ends_an_expression_is_told_with_key_and_file(shop: Shop, case: str, late_days: int):
    expression, why = BROKEN[case]
    for n in range(3):
        shop.deliver(day_after(n), [event(7 if n == 1 else 1, day=day_after(n))])
    shop.settings["late_days"] = late_days
    shop.run("ingest_events", days=3)
    shop.settings["sources"]["events"]["columns"]["value"] = only(expression)
    place = rf"config.yaml, line \d+: sources.events.columns.value: .*at a value of .*/events/{day_after(1)}.csv.gz"
    with pytest.raises(SourceError, match=rf"(?s){place}: {why}.*try_cast"):
        jobs.done(shop.job("conform_events", days=3), jobs.body("conform_events"))
    assert shop.version("silver.events") == -1
    (stopped,) = [row for row in shop.rows("ops.runs") if row["status"] == "failed"]
    assert dict(stopped["details"])["error"] == "SourceError"


@pytest.mark.parametrize("case", [*BROKEN])
def test_so_is_an_article(shop: Shop, case: str):
    expression, why = BROKEN[case]
    shop.write("items.csv.gz", "item_id,title,price", [f"i{n},thing {n},{n}.5" for n in range(10)])
    shop.run("ingest_catalogue")
    shop.settings["sources"]["items"]["columns"]["title"] = only(f"cast({expression} as string)")
    with pytest.raises(SourceError, match=rf"(?s)sources.items.columns.title: .* of {shop.folder}/items.csv.gz: {why}"):
        shop.run("conform_catalogue")
    assert shop.version("silver.items") == -1


def test_so_is_the_time_by_which_an_event_gets_its_day(shop: Shop):
    shop.settings["sources"]["events"]["path"] = "events/*.csv.gz"
    shop.settings["sources"]["events"]["columns"]["event_time"] = (
        "if(price = '7.5', raise_error('no time'), event_time)"
    )
    shop.write("events/a.csv.gz", HEADER, [event(1)])
    shop.write("events/b.csv.gz", HEADER, [event(7)])
    with pytest.raises(SourceError, match=rf"columns.event_time: .* of {shop.folder}/events/b.csv.gz: .*no time"):
        shop.run("ingest_events")
    assert shop.version("bronze.events") == -1


@pytest.mark.parametrize("sound", [True, False], ids=["sound expressions", "machine at fault"])
def test_what_no_expression_has_done_stays_as_it_is(shop: Shop, spark: SparkSession, sound: bool):
    """Some other query's error; and a machine's, whatever the expressions."""
    shop.deliver(DAY, [event(1)])
    shop.run("ingest_events")
    landed = spark.read.format("delta").load(f"{shop.folder}/lake/bronze/events")
    if not sound:
        shop.settings["sources"]["events"]["columns"]["value"] = "raise_error('no price')"
    thrown = "mine" if sound else "java.lang.OutOfMemoryError: Java heap space"
    with pytest.raises(SparkRuntimeException, match=thrown), mapping.told(shop.config, {"events": landed}):
        spark.range(3).select(F.raise_error(F.lit(thrown))).collect()


def test_rows_that_cannot_be_read_are_no_fault_of_an_expression(shop: Shop, spark: SparkSession):
    shop.deliver(DAY, [event(1)])
    shop.run("ingest_events")
    for file in (shop.folder / "lake/bronze/events").rglob("*.parquet"):
        file.unlink()
    with pytest.raises((PySparkException, Py4JJavaError), match=r"(?i)not.?(found|exist)"):
        shop.run("conform_events")


def test_of_several_catalogues_the_one_is_named_whose_expression_it_is(shop: Shop):
    sources = shop.settings["sources"]
    sources["users"] = {"path": "users.csv.gz", "columns": {"user_id": "u", "text": "t"}}
    sources["kg"] = {"path": "kg.csv.gz", "columns": {"head": "h", "relation": "r", "tail": "t"}}
    sources["kg_links"] = {"path": "links.csv.gz", "columns": {"item_id": "i", "entity": "e"}}
    for name, header, row in (("users", "u,t", "u1,tall"), ("kg", "h,r,t", "a,b,c"), ("links", "i,e", "i1,a")):
        shop.write(f"{name}.csv.gz", header, [row])
    written = shop.run("ingest_catalogue", "conform_catalogue")
    assert (written["silver.items"], written["silver.users"], written["silver.kg"]) == (10, 1, 2)
    sources["kg_links"]["columns"]["entity"] = "raise_error(e)"
    with pytest.raises(SourceError, match=rf"sources.kg_links.columns.entity: .* of {shop.folder}/links.csv.gz: "):
        shop.run("conform_catalogue")


def test_a_catalogue_that_is_read_off_the_events_has_their_files(shop: Shop):
    columns = {"item_id": "item_id", "title": "raise_error(item_id)", "text": "item_id"}
    shop.settings["sources"]["items"] = {"from": "events", "columns": columns}
    shop.deliver(DAY, [event(1)])
    shop.run("ingest_events")
    with pytest.raises(SourceError, match=rf"sources.items.columns.title: .* of {shop.folder}/events/{DAY}.csv.gz: "):
        shop.run("conform_catalogue")
