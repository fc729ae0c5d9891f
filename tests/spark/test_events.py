"""From landed rows to events: each rule, identity, visits, pseudonyms, each against its definition in Python."""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyspark.sql import functions as F
from tests.spark.rows import small_frame

from lakerec import quality
from lakerec.config import Config
from lakerec.errors import ContractError, DataQualityError
from lakerec.events import (
    broken_rules,
    daily_counts,
    dated_by_event,
    mapped,
    pseudonym,
    resolved,
    with_judgement,
    with_sessions,
)
from lakerec.lake import Window
from lakerec.quality import Rule, failed_rules, load_suite, severity
from lakerec.session import properties
from lakerec.sources import BEGINNING, CORRUPT

DAY = date(2024, 3, 10)
LATE = 2
RULES = load_suite("silver.events").rows
BRONZE = "ingest_date date, source_file string, row_number bigint, payload map<string,string>"
COLUMNS = {
    "event_id": "id",
    "user_id": "user",
    "item_id": "item",
    "event_type": "kind",
    "event_time": "to_timestamp(time)",
    "value": "price",
}
CONFIG = Config.model_validate(
    {
        "lake": "lake",
        "sources": {
            "events": {
                "path": "{date}.csv",
                "columns": COLUMNS,
                "rules": {"bot": {"when": "agent like '%bot%'", "severity": "expected"}},
            }
        },
        "event_types": {"view": 1, "search": 0},
        "late_days": LATE,
    }
)
GOOD = {"id": "e", "user": "u", "item": "i", "kind": "view", "time": f"{DAY} 12:00:00", "price": "1.5", "agent": "x"}
PLACE = ("_day", "_file", "_row")
TORN = dict.fromkeys(GOOD) | {CORRUPT: "torn"}
# A few large examples: each is one Spark call over many small cases, so shrinking would cost minutes.
FEW = settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def after(days: int) -> date:
    """The day so many days behind DAY."""
    return DAY + timedelta(days=days)


def at(day: date, time: str = "12:00:00") -> str:
    """A time of a day as a file tells it."""
    return f"{day} {time}"


@pytest.fixture(scope="session")
def judge(spark):
    """Lands payloads (where `_day`, `_file` and `_row` say, else in file f of DAY) and judges them: a DataFrame."""

    def run(payloads: list[dict[str, Any]], forgotten: tuple[str, ...] = ("gone",)):
        rows = [
            (p.get("_day", DAY), p.get("_file", "f"), p.get("_row", n), {k: v for k, v in p.items() if k not in PLACE})
            for n, p in enumerate(payloads)
        ]
        landed = small_frame(spark, rows, BRONZE)
        tombstones = small_frame(spark, [(user,) for user in forgotten], "user_key string")
        return with_judgement(mapped(landed, CONFIG), RULES, CONFIG, tombstones)

    return run


def verdicts(judged) -> list[tuple[list[str], str | None]]:
    """Broken rules and severity of each row, in the order it was landed."""
    rows = judged.orderBy("row_number").select("failed_rules", "severity").collect()
    return [(row["failed_rules"], row["severity"]) for row in rows]


BREAKS = {
    "unparsable": [TORN],
    "no_event_id": [GOOD | {"id": ""}, GOOD | {"id": None}],
    "no_user": [GOOD | {"user": ""}, GOOD | {"user": None}],
    "unusable_id": [
        GOOD | {"user": "*"},
        GOOD | {"id": "nul\0"},
        *({**GOOD, one: "x" * 1001} for one in ("user", "item")),
    ],
    "forgotten_user": [GOOD | {"user": "gone"}],
    "unknown_event_type": [GOOD | {"kind": "hover"}, GOOD | {"kind": None}, GOOD | {"kind": "View"}],
    "bad_time": [GOOD | {"time": "yesterday"}, GOOD | {"time": None}, GOOD | {"time": "2024-02-30 00:00:00"}],
    "from_future": [GOOD | {"time": at(after(1), "00:00:00")}],
    "too_late": [GOOD | {"time": at(after(-LATE - 1), "23:59:59")}],
    "bot": [GOOD | {"agent": "a bot"}],
}


def test_each_rule_catches_its_own_rows_and_no_others(judge):
    kinds = {rule.name: rule.severity for rule in RULES} | {"bot": "expected"}
    assert list(BREAKS) == list(kinds)
    rows = [(name, row) for name, broken in BREAKS.items() for row in broken]
    assert verdicts(judge([row for _, row in rows])) == [([name], kinds[name]) for name, _ in rows]


def test_rows_at_the_edge_of_the_rules_are_good(judge):
    times = [at(DAY, "00:00:00"), at(DAY, "23:59:59"), at(after(-LATE), "00:00:00")]
    others = [{"kind": "search", "item": None}, {"price": "cheap"}, {"agent": None}, {"item": "*", "id": "é" * 500}]
    assert verdicts(judge([GOOD | {"time": t} for t in times] + [GOOD | o for o in others])) == [([], None)] * 7


def test_broken_rules_are_told_in_order_and_one_bad_rule_makes_the_row_bad(judge):
    rows = [GOOD | {"user": "", "agent": "bot"}, GOOD | {"user": "", "time": at(after(1)), "kind": "hover"}]
    assert verdicts(judge(rows)) == [
        (["no_user", "bot"], "expected"),
        (["no_user", "unknown_event_type", "from_future"], "bad"),
    ]


def test_a_mapping_casts_to_the_types_of_the_table(judge):
    (row,) = judge([GOOD | {"price": "2.5"}]).collect()
    assert (row["value"], row["event_date"], row["position"]) == (2.5, DAY, None)


def test_a_row_that_broke_a_rule_is_kept_as_it_landed(judge):
    broken = GOOD | {"price": "2.5", "user": ""}
    good, bad = judge([GOOD, broken]).orderBy("row_number").collect()
    assert (good["payload"], bad["payload"]) == (None, broken)


def test_without_rules_every_row_is_good(spark):
    judged = spark.range(1).select(failed_rules(()).alias("failed_rules")).withColumn("severity", severity(()))
    assert judged.collect() == [([], None)]


# Identity and fates.

landings = st.lists(
    st.fixed_dictionaries(
        {
            "_day": st.integers(-LATE, 4).map(after),
            "_file": st.sampled_from(["a", "b"]),
            "_row": st.integers(1, 9),
            "id": st.sampled_from([f"e{n}" for n in range(12)]),
            "time": st.integers(-LATE - 1, 4).map(lambda n: at(after(n))),
            "user": st.sampled_from(["u", "v", "w", ""]),
        }
    ),
    min_size=40,
    max_size=100,
    unique_by=lambda row: (row["_day"], row["_file"], row["_row"]),
)


def origin(row: dict[str, Any]) -> tuple[date, str, int]:
    """Where a row landed."""
    return tuple(row[name] for name in PLACE)


def fates(rows: list[dict[str, Any]], window: Window) -> dict[tuple[date, str, int], str]:
    """Each row's fate by the definition of identity."""
    found: dict[tuple[date, str, int], str] = {}
    first: dict[tuple[str, str], tuple[date, str, int]] = {}
    for row in sorted(rows, key=origin):
        day = date.fromisoformat(row["time"][:10])
        if not row["user"] or not timedelta(0) <= row["_day"] - day <= timedelta(days=LATE):
            if window.start <= row["_day"] < window.end:
                found[origin(row)] = "quarantined"
        elif window.start - timedelta(days=LATE) <= day < window.end:
            winner = first.setdefault((row["time"], row["id"]), origin(row))
            found[origin(row)] = "written" if winner == origin(row) else "duplicate"
    return found


@FEW
@given(landings, st.randoms(use_true_random=False))
def test_the_row_that_landed_first_wins_whatever_the_order_of_rows(judge, rows, random):
    window = Window(DAY, after(3))
    shuffled = random.sample(rows, len(rows))
    judged = judge([GOOD | row for row in shuffled]).repartition(random.randint(1, 4))
    told = resolved(judged, window, window.wider(LATE), 30)
    collected = told.collect()
    expected = fates(rows, window)
    assert {(r["ingest_date"], r["source_file"], r["row_number"]): r["fate"] for r in collected} == expected
    assert len(collected) == len(expected)

    counted = {row["ingest_date"]: row.asDict() for row in daily_counts(told, window).collect()}
    landed = Counter(row["_day"] for row in rows if window.start <= row["_day"] < window.end)
    assert {day: row["read"] for day, row in counted.items()} == landed
    for day, row in counted.items():
        mine = Counter(fate for (landed_on, *_), fate in expected.items() if landed_on == day)
        assert {fate: row[fate] for fate in ("written", "duplicate", "quarantined")} == {
            fate: mine[fate] for fate in ("written", "duplicate", "quarantined")
        }
        assert row["read"] == row["written"] + row["duplicate"] + row["quarantined"]


def test_days_count_what_is_bad_and_which_rules_were_broken(judge):
    bad = [GOOD | {"id": "b", "kind": "hover"}, GOOD | {"user": "", "id": "c"}, GOOD | {"user": "", "time": None}]
    rows = [*bad, GOOD, GOOD | {"_day": after(1), "id": "n", "time": at(after(1)), "user": "v"}]
    window = Window(DAY, after(1))
    told = resolved(judge(rows), window, window.wider(LATE), 30)
    (day,) = daily_counts(told, window).collect()
    assert (day["read"], day["bad"], day["bad_share"], day["users"], day["items"]) == (4, 2, 0.5, 1, 1)
    assert {tuple(row) for row in broken_rules(told, window).collect()} == {
        (DAY, "unknown_event_type", 1),
        (DAY, "no_user", 2),
        (DAY, "bad_time", 1),
    }


def test_only_quarantined_rows_carry_their_payload(judge):
    rows = [GOOD, GOOD, GOOD | {"kind": "hover"}]
    window = Window(DAY, after(1))
    told = resolved(judge(rows), window, window.wider(LATE), 30).collect()
    assert {row["fate"]: row["payload"] for row in told} == {
        "written": None,
        "duplicate": None,
        "quarantined": GOOD | {"kind": "hover"},
    }


def test_an_id_that_reads_like_the_place_of_a_quarantined_row_is_still_written(judge):
    rows = [GOOD | {"kind": "hover"}, GOOD | {"id": f"{DAY}|f|0"}]
    window = Window(DAY, after(1))
    told = resolved(judge(rows), window, window.wider(LATE), 30).collect()
    assert {row["row_number"]: row["fate"] for row in told} == {0: "quarantined", 1: "written"}


# A day is a day of the configuration's time zone.


@pytest.fixture()
def new_york(spark):
    """The session of a deployment in New York."""
    config = CONFIG.model_copy(update={"timezone": "America/New_York"})
    key = "spark.sql.session.timeZone"
    before = spark.conf.get(key)
    spark.conf.set(key, properties(config)[key])
    yield
    spark.conf.set(key, before)


def test_an_evening_in_new_york_is_of_its_own_day(judge, new_york):
    times = ["2024-03-10 21:30:00", "2024-03-11T01:30:00Z", "2024-03-10T21:30:00-04:00"]
    rows = judge([GOOD | {"time": time} for time in times]).select("*", F.unix_timestamp("event_time").alias("unix"))
    known = datetime(2024, 3, 11, 1, 30, tzinfo=UTC).timestamp()
    assert [(r["event_date"], r["unix"], r["failed_rules"]) for r in rows.collect()] == [(DAY, known, [])] * 3


@pytest.mark.parametrize(
    ("day", "utc"),
    [
        # An hour that is not there is read as the next one, of an hour that comes twice the first is taken.
        (date(2024, 3, 10), {" 00:30:00": "05:30", " 02:30:00": "07:30", " 23:30:00": "03:30"}),
        (
            date(2024, 11, 3),
            {" 00:30:00": "04:30", " 01:30:00": "05:30", "T01:30:00-05:00": "06:30", " 23:30:00": "04:30"},
        ),
    ],
    ids=["23 hours", "25 hours"],
)
def test_the_day_on_which_the_clocks_change_is_one_day(judge, new_york, day: date, utc: dict[str, str]):
    rows = judge([GOOD | {"time": f"{day}{time}", "_day": day} for time in utc]).orderBy("row_number")
    found = rows.select("event_date", "failed_rules", F.unix_timestamp("event_time").alias("unix")).collect()
    assert {(row["event_date"], *row["failed_rules"]) for row in found} == {(day,)}
    assert [f"{datetime.fromtimestamp(row['unix'], UTC):%H:%M}" for row in found] == list(utc.values())


# Visits.


def visits(events: list[tuple[str, date, int]], minutes: int) -> dict[tuple[str, date, int], str]:
    """The session_id of each event (user, day, second of the day) by the definition of a visit."""
    found: dict[tuple[str, date, int], str] = {}
    last: dict[tuple[str, date], tuple[int, int]] = {}
    for user, day, second in sorted(events):
        before, visit = last.get((user, day), (second, 0))
        visit += second - before > minutes * 60
        last[user, day] = (second, visit)
        found[user, day, second] = hashlib.sha256(f"{user}|{day}|{visit}".encode()).hexdigest()[:16]
    return found


@FEW
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["u", "v", "w", "x"]),
            st.sampled_from([DAY, after(1)]),
            # Multiples of a gap's length and a second more or less: the edge is the interesting place.
            st.tuples(st.integers(0, 47), st.sampled_from([0, 1, 1799])).map(lambda p: p[0] * 1800 + p[1]),
        ),
        min_size=30,
        max_size=120,
        unique=True,
    )
)
def test_a_visit_ends_after_the_gap_and_at_the_end_of_the_day(spark, events):
    rows = [(user, day, f"{second:05d}", second) for user, day, second in events]
    rows = [(*row, fate) for row in rows for fate in ("written", "duplicate")]
    frame = small_frame(spark, rows, "user_id string, event_date date, event_id string, second int, fate string")
    midnight = F.unix_timestamp(F.col("event_date").cast("timestamp"))
    timed = frame.withColumn("event_time", F.timestamp_seconds(midnight + F.col("second")))
    found = with_sessions(timed.repartition(3), 30).collect()
    written = [row for row in found if row["fate"] == "written"]
    assert {(r["user_id"], r["event_date"], r["second"]): r["session_id"] for r in written} == visits(events, 30)
    assert {row["session_id"] for row in found if row["fate"] == "duplicate"} == {None}


def test_visits_on_either_side_of_midnight_differ():
    night = visits([("u", DAY, 86_399), ("u", after(1), 0), ("u", after(1), 1800), ("u", after(1), 3601)], 30)
    assert len(set(night.values())) == 3


# Pseudonyms and days.


@pytest.mark.parametrize("key", ["k", "ключ", "x" * 64, "x" * 65])
def test_a_pseudonym_is_the_hmac_sha256_of_the_id(spark, key):
    ids = ["1", "user 17", "ümlaut", "人", "y" * 200, "", None]
    frame = small_frame(spark, [(one,) for one in ids], "id string")
    told = [hmac.new(key.encode(), one.encode(), "sha256").hexdigest() if one else one for one in ids]
    assert [row[0] for row in frame.select(pseudonym(F.col("id"), key)).collect()] == told


def test_rows_of_a_file_without_a_day_land_on_their_events_day(spark):
    times = {"a": [at(after(1), "23:59:59"), "never", at(DAY, "00:00:00")], "b": ["never"], "c": [at(after(3))]}
    rows = [
        (None, file, number, GOOD | {"time": time})
        for file, all_times in times.items()
        for number, time in enumerate(all_times, 1)
    ]
    landed = small_frame(spark, rows, BRONZE)
    found = dated_by_event(landed, CONFIG.sources.events).orderBy("source_file", "row_number").collect()
    assert [row["ingest_date"] for row in found] == [after(1), DAY, DAY, BEGINNING, after(3)]
    assert [tuple(row)[1:] for row in found] == [row[1:] for row in rows]


# The suite of expectations.


def test_a_suite_with_an_unknown_section_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "EXPECTATIONS", tmp_path)
    (tmp_path / "silver.none.yaml").write_text("rows: []\ncolumns: []\n")
    with pytest.raises(ContractError, match=r"silver\.none\.yaml: unknown \['columns'\]; known: rows, days, batch"):
        load_suite("silver.none")


def test_a_suite_reads_rules_in_their_order_and_lacks_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "EXPECTATIONS", tmp_path)
    text = "rows:\n - {rule: b, severity: bad, when: x}\n - {rule: a, severity: expected, when: y}\n"
    (tmp_path / "silver.two.yaml").write_text(text)
    suite = load_suite("silver.two")
    assert suite.rows == (Rule("b", "x", "bad"), Rule("a", "y", "expected"))
    assert (suite.days, suite.batch) == ((), ())


@pytest.mark.parametrize("version, told", [(7, "stays at version 7"), (None, "was not created")])
def test_a_refusal_says_which_table_which_day_and_what_to_do(version, told):
    with pytest.raises(DataQualityError) as caught:
        quality.refuse("silver.events", [f"day {n}" for n in range(23)], version, quality.OF_EVENTS)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"silver.events {told}: day 0"
    assert lines[1:20] == [f"  day {n}" for n in range(1, 20)]
    assert lines[20] == "  and 3 more"
    assert "quarantine.events" in lines[21] and "gate.max_bad" in lines[21]


def test_nothing_is_refused_without_a_failure():
    quality.refuse("silver.events", [], 1, "")
