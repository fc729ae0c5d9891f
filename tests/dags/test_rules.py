"""The pure rules of the DAGs: which days, which chunks, which retries."""

from __future__ import annotations

import sys
from datetime import date, datetime, timedelta
from functools import reduce
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerec import quality
from lakerec.errors import AlreadyServedError, DataQualityError, leaves

sys.path.insert(0, str(Path(__file__).parents[2] / "dags"))
from common.rules import (
    CAUSE,
    ENDED,
    ERRORS,
    NOTHING_TO_DO,
    TOO_LONG,
    begun,
    can_retry,
    cause,
    chunks,
    days,
    must_wait,
    page,
    page_of_late,
    trains,
    window,
)

START, END = "2024-06-30T19:00+00:00", "2024-07-01T19:00+00:00"  # from 04:00 to 04:00 in Tokyo
NOW = "2024-07-01T17:00+00:00"  # 02:00 of July 2 in Tokyo


@pytest.mark.parametrize(
    ("start", "end", "after", "day", "expected"),
    [
        (START, END, END, None, ("2024-07-01", "2024-07-02")),
        (START, END, END, "2024-02-28", ("2024-02-28", "2024-02-29")),
        (None, None, "2024-07-01T16:00+00:00", None, ("2024-07-01", "2024-07-02")),
        ("2024-06-30T03:00+00:00", "2024-07-07T03:00+00:00", END, None, ("2024-06-30", "2024-07-07")),
    ],
    ids=["interval", "asked day", "by hand", "week"],
)
def test_the_days_of_a_run(start, end, after, day, expected) -> None:
    moments = [datetime.fromisoformat(one) if one else None for one in (start, end, after)]
    names = ("data_interval_start", "data_interval_end", "run_after")
    run = SimpleNamespace(**dict(zip(names, moments, strict=True)), run_type="scheduled", logical_date=moments[0])
    assert window(run, {"day": day}, "Asia/Tokyo") == expected


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2024-03-30T04:00+00:00", "2024-03-31T03:00+00:00"),
        ("2024-10-26T03:00+00:00", "2024-10-27T04:00+00:00"),
    ],
    ids=["23 hours", "25 hours"],
)
def test_an_interval_over_a_change_of_clocks_is_one_day(start, end) -> None:
    moments = [datetime.fromisoformat(one) for one in (start, end)]
    run = SimpleNamespace(run_type="scheduled", data_interval_start=moments[0], data_interval_end=moments[1])
    assert window(run, {}, "Europe/London") == (start[:10], end[:10])


@pytest.mark.parametrize(
    ("interval", "logical", "expected"),
    [
        ((NOW, NOW), NOW, "2024-07-01"),  # the UI's form, a DAG without a schedule
        ((START, END), NOW, "2024-07-01"),  # the UI's form before 04:00: Airflow gives the interval before the last
        ((None, None), None, "2024-07-01"),  # the REST API, `make trigger`
        ((END, END), "2024-06-28T15:00+00:00", "2024-06-28"),  # a date of the past: the day that had ended by it
    ],
)
def test_a_run_by_hand_is_about_the_day_that_had_ended(interval, logical, expected) -> None:
    start, end, date_, after = (datetime.fromisoformat(one) if one else None for one in (*interval, logical, NOW))
    times = {"data_interval_start": start, "data_interval_end": end, "logical_date": date_, "run_after": after}
    found = window(SimpleNamespace(run_type="manual", **times), {}, "Asia/Tokyo")
    assert found == (expected, str(date.fromisoformat(expected) + timedelta(days=1)))


def test_a_run_of_a_partition_is_about_that_day() -> None:
    run = SimpleNamespace(partition_key="2024-02-29", data_interval_end=None)
    assert window(run, {"day": None}, "UTC") == ("2024-02-29", "2024-03-01")
    assert window(run, {"day": "2024-01-31"}, "UTC") == ("2024-01-31", "2024-02-01")


EARLIER = st.tuples(st.sampled_from([None, "queued", "running", "up_for_retry", *sorted(ENDED)]), st.booleans())


@given(st.lists(EARLIER, max_size=6))
def test_a_day_waits_for_the_unfinished_days_behind_the_last_success(earlier) -> None:
    states = [state for state, _ in earlier]
    since = earlier[: states.index("success")] if "success" in states else earlier
    assert must_wait(iter(earlier)) is any(running and state not in ENDED for state, running in since)


@pytest.mark.parametrize(
    ("kind", "now", "trained"),
    [
        ("scheduled", "2024-07-01T19:00+00:00", True),  # 04:00 of July 2 in Tokyo, July 1 has ended
        ("scheduled", "2024-07-02T14:59+00:00", True),
        ("scheduled", "2024-07-02T15:00+00:00", False),  # cleared, or done, when July 2 has ended as well
        ("backfill", "2024-07-01T19:00+00:00", False),
        ("manual", "2024-07-01T19:00+00:00", False),
    ],
)
def test_the_newest_day_on_schedule_alone_starts_a_training(kind, now, trained) -> None:
    run = SimpleNamespace(run_type=kind)
    assert trains(run, "2024-07-02", datetime.fromisoformat(now), "Asia/Tokyo") is trained


def test_the_exit_code_that_skips_is_that_of_lists_already_served() -> None:
    assert AlreadyServedError.exit_code == NOTHING_TO_DO


def test_the_days_of_a_window() -> None:
    assert days("2024-02-28", "2024-03-02") == ["2024-02-28", "2024-02-29", "2024-03-01"]
    assert days("2024-03-01", "2024-03-01") == []


@given(st.dates(date(2000, 1, 1), date(2030, 1, 1)), st.integers(1, 800), st.integers(1, 400))
def test_chunks_cover_the_days_once_and_in_order(first, days, size) -> None:
    windows = chunks(str(first), str(first + timedelta(days=days)), size)
    bounds = [(date.fromisoformat(a), date.fromisoformat(b)) for a, b in windows]
    covered = [a + timedelta(days=n) for a, b in bounds for n in range((b - a).days)]
    assert covered == [first + timedelta(days=n) for n in range(days)]
    assert all(b - a == timedelta(days=size) for a, b in bounds[:-1])
    assert timedelta(0) < bounds[-1][1] - bounds[-1][0] <= timedelta(days=size)


@pytest.mark.parametrize(
    ("start", "end", "days", "words"),
    [
        ("2024-03-01", "2024-03-01", 30, "excluded"),
        ("2024-03-02", "2024-03-01", 30, "must be before end"),
        ("2024-02-30", "2024-03-01", 30, "day"),
        ("2024-03-01", "2024-03-02", 0, "chunk_days is 0"),
        ("2020-01-01", "2022-10-22", 1, r"chunk_days is 1: .* into 1025 chunks, .* takes 1024 .*; 2 or more days"),
    ],
)
def test_wrong_dates_of_a_backfill_are_named(start, end, days, words) -> None:
    with pytest.raises(ValueError, match=words):
        chunks(start, end, days)


def test_as_many_chunks_as_airflow_takes_are_cut() -> None:
    assert len(chunks("2020-01-01", "2022-10-21", 1)) == 1024
    with pytest.raises(ValueError, match=r"into 2 chunks, and Airflow takes 1 \(core.max_map_length\); 20 or more"):
        chunks("2024-07-01", "2024-07-21", 10, 1)


def test_a_backfill_ends_with_a_day_that_has_begun_where_the_shop_is() -> None:
    begun("2024-07-03", datetime.fromisoformat(NOW), "Asia/Tokyo")
    with pytest.raises(ValueError, match=r"end \(2024-07-03\) lies behind 2024-07-02: a day that has not begun"):
        begun("2024-07-03", datetime.fromisoformat(NOW), "UTC")


TOLD = [
    "Cannot execute: spark-submit x.py. Error code is: {}.",
    "YARN application application_1_2 ended with final status: FAILED\n"
    "Diagnostics: User application exited with status {}",
    "Spark application spark-1 failed (phase=Failed exit_code={} reason=Error)",
]


@pytest.mark.parametrize("told", TOLD, ids=["process", "YARN", "Kubernetes"])
@pytest.mark.parametrize("leaf", leaves(), ids=lambda leaf: leaf.__name__)
def test_retries_follow_the_table_of_errors(leaf, told) -> None:
    assert can_retry(told.format(leaf.exit_code)) is leaf.retry


def test_a_failure_names_the_section_of_its_error() -> None:
    assert {leaf.exit_code: leaf.__name__ for leaf in leaves()} == ERRORS
    assert page(TOLD[0].format(13)) == "docs/operations.md#modelerror"
    for unnamed in ("Error code is: 1.", "Error code is: 137.", "Error code is: -15.", "no answer"):
        assert page(unnamed) == "docs/operations.md#a-task-that-ends-without-a-named-error"
    assert page_of_late("reco_daily") == "docs/operations.md#reco_daily-is-late"
    assert page(f"train_scorer {TOO_LONG} 2 days, 0:00:00") == "docs/operations.md#a-task-that-hangs"


def test_the_line_that_an_alert_has_of_a_refused_day_names_the_day_and_what_it_broke() -> None:
    failures = ["ingest day 2026-03-07: 412 of 1500 rows are bad", "ingest day 2026-03-08: no rows"]
    with pytest.raises(DataQualityError) as caught:
        quality.refuse("silver.events", failures, 7, quality.OF_EVENTS)
    heard = [found[0] for line in caught.value.told.splitlines() if (found := CAUSE.search(line))]
    assert heard == [f"DataQualityError: silver.events stays at version 7: {failures[0]}"]


PYTHON = ["Traceback (most recent call last):\n", '  File "a.py", line 1, in <module>\n', "    1 / 0\n"]
JAVA = [
    *PYTHON,
    "py4j.protocol.Py4JJavaError: An error occurred while calling o61.save.\n",
    ": org.apache.spark.SparkException: Job aborted due to stage failure\n",
    "\tat org.apache.spark.scheduler.DAGScheduler.x(DAGScheduler.scala:1)\n",
    "Caused by: java.lang.IllegalStateException: no such block\n",
    "\tat a.b.C(C.java:1)\n",
    "\t... 12 more\n",
]


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (
            [*PYTHON, "ZeroDivisionError: division by zero\n", "26/03/02 INFO bye\n"],
            "ZeroDivisionError: division by zero",
        ),
        ([*PYTHON, "KeyboardInterrupt\n"], "KeyboardInterrupt"),
        (JAVA, "java.lang.IllegalStateException: no such block"),
        (['Exception in thread "main" java.lang.NoClassDefFoundError: a/B\n'], "java.lang.NoClassDefFoundError: a/B"),
        ([*JAVA, "ModelError: damaged\n", "(what to do: docs/operations.md#modelerror)\n"], "ModelError: damaged"),
        (["ModelError: damaged\n", *JAVA], "ModelError: damaged"),
        ([*JAVA, "08:00:24 conform_events: read 5\n"], ""),
        (
            ["ValueError: postgresql://shop:pw@db/x?password=pw\n"],
            "ValueError: postgresql://(not shown)db/x?password=(not shown)",
        ),
        ([f"ValueError: {'x' * 999}\n"], f"ValueError: {'x' * 288}"),
        (["Error code is: 1.\n", "0 errors, no Exception\n"], ""),
    ],
)
def test_the_line_that_an_alert_has_of_an_error_without_a_name_is_its_exceptions(lines, why) -> None:
    assert reduce(cause, lines, "") == why


@pytest.mark.parametrize("message", [f"Error code is: {code}." for code in (1, 9, 137, -9)] + ["no answer"])
def test_what_is_no_fault_of_input_is_tried_again(message) -> None:
    assert can_retry(message)
