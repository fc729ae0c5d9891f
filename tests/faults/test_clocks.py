"""Times that clocks get wrong: the future, too late, both sides of midnight, hours that are twice or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date

import pytest
from tests.conftest import Shop

ZONE = "Europe/London"
SPRING, AUTUMN = date(2026, 3, 29), date(2026, 10, 25)  # 01:00-02:00 is left out, and comes twice
pytestmark = pytest.mark.faults
STEPS = ("ingest_events", "conform_events")


@pytest.fixture()
def london(shop: Shop) -> Iterator[Shop]:
    """A shop whose days are London's."""
    key = "spark.sql.session.timeZone"
    before = shop.spark.conf.get(key)
    shop.spark.conf.set(key, ZONE)
    shop.settings |= {"timezone": ZONE, "gate": {"max_bad": 0.9}, "late_days": 1}
    yield shop
    shop.spark.conf.set(key, before)


def told(shop: Shop) -> dict[str, tuple[str, str]]:
    """event_id -> its day and its instant in UTC."""
    return {
        row["event_id"]: (str(row["event_date"]), f"{row['event_time'].astimezone(UTC):%d %H:%M:%S}")
        for row in shop.rows("silver.events")
    }


def delivered(shop: Shop, day: date, **times: str) -> None:
    shop.deliver(day, [f"{name},u1,i1,view,{time},1" for name, time in times.items()])


def test_an_hour_that_is_left_out_and_one_that_comes_twice_lose_no_row_and_keep_their_day(london: Shop):
    hours = {f"h{n}": f"{SPRING} {n // 2:02d}:{30 * (n % 2):02d}:00" for n in range(48)}
    delivered(london, SPRING, **hours)
    delivered(london, AUTUMN, first=f"{AUTUMN} 01:30:00", second=f"{AUTUMN}T01:30:00Z", last=f"{AUTUMN} 23:59:59")
    for day in (AUTUMN, SPRING):
        counts = london.run(*STEPS, start=day)
        assert counts["written"] == counts["read"] == (48 if day == SPRING else 3)
    found = told(london)
    assert {day for name, (day, _) in found.items() if name in hours} == {str(SPRING)}
    # 01:30 was not: clocks went from 01:00 to 02:00, and it is half past two there.
    assert found["h3"] == (str(SPRING), "29 01:30:00") == (str(SPRING), found["h5"][1])
    assert found["first"] == (str(AUTUMN), "25 00:30:00") and found["second"] == (str(AUTUMN), "25 01:30:00")
    assert found["last"] == (str(AUTUMN), "25 23:59:59")


def test_midnight_is_londons_in_summer_too(london: Shop):
    day = date(2026, 7, 1)
    delivered(
        london,
        day,
        begin=f"{day} 00:00:00",
        zone="2026-06-30T23:00:00Z",
        end=f"{day} 23:59:59.999999",
        late="2026-06-30T22:59:59Z",
        too_late="2026-06-29 23:59:59",
        future="2026-07-02 00:00:00",
        far="2062-07-01 12:00:00",
        future_by_zone="2026-07-01T23:00:00Z",
    )
    counts = london.run(*STEPS, start=day)
    assert (counts["read"], counts["written"], counts["quarantined"]) == (8, 4, 4)
    days = {name: found for name, (found, _) in told(london).items()}
    assert days == {"begin": str(day), "zone": str(day), "end": str(day), "late": "2026-06-30"}
    broken = {row["payload"]["event_id"]: row["failed_rules"] for row in map(payload, london.rows("quarantine.events"))}
    assert broken.pop("too_late") == ["too_late"]
    assert set(broken) == {"future", "far", "future_by_zone"} and set(map(tuple, broken.values())) == {("from_future",)}


def payload(row: dict) -> dict:
    return row | {"payload": dict(row["payload"])}
