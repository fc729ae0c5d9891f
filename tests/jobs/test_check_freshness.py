"""The morning's question, asked of a real lake and of the table that the site reads."""

from __future__ import annotations

import psycopg
import pytest
from tests.conftest import DAY, Shop, day_after, event

from lakerec import postgres
from lakerec.errors import StaleListsError

CHAIN = ("ingest_events", "ingest_catalogue", "conform_events", "conform_catalogue", "build_sequences")
LISTS = ("score_candidates", "publish_recommendations")
DAMAGES = {
    "truncate serving.recommendations": "the site has no list at all",
    "delete from serving.recommendations where user_id = '*' and rank = 1": "the site has 4 rows, the lake 5",
    "update serving.recommendations set as_of_date = as_of_date - 7": "the site serves 2026-02-23, 7 days before",
}


def test_a_damaged_table_of_the_site_and_a_day_without_a_file_are_red(shop: Shop, server, monkeypatch):
    site = postgres.ensure_database(postgres.start(server), "freshness")
    monkeypatch.setenv("LAKEREC_SERVING_URI", site)
    shop.deliver(DAY, [event(n) for n in range(5)])
    shop.run(*CHAIN, *LISTS, "check_freshness")
    for damage, words in DAMAGES.items():
        with psycopg.connect(site, autocommit=True) as connection:
            connection.execute(damage)
        with pytest.raises(StaleListsError, match=words):
            shop.run("check_freshness")
        shop.run("publish_recommendations", "check_freshness")
    quiet = day_after(1)  # its lists are out, but nobody has delivered a file
    shop.run("ingest_events", *LISTS, start=quiet)
    with pytest.raises(StaleListsError, match=f"the newest events are of {DAY}: did the files of {quiet} come"):
        shop.run("check_freshness", start=quiet)
    shop.settings["freshness"] = {"max_quiet_days": 9}
    shop.run("check_freshness", start=quiet)
    later = day_after(3)  # Airflow stood still at the hour of the day before
    shop.run("ingest_events", *LISTS, start=later)
    with pytest.raises(StaleListsError, match=f"no run has taken in the files of {day_after(2)}: run reco_backfill"):
        shop.run("check_freshness", start=later)
    shop.run("ingest_events", start=day_after(2))
    shop.run("check_freshness", start=later)
