"""PostgreSQL ends while lists are published: nothing half is served, and the next run publishes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest
from tests.conftest import DAY, Shop, event

from lakerec import migration, postgres
from lakerec.config import Maintenance
from lakerec.errors import ConnectionFailedError
from lakerec.serving import LOCK, publish

LISTS = "select * from serving.recommendations order by user_id, rank"
LOST = "the lease of .* was lost"
ALTERED = "SET TBLPROPERTIES ('by' = 'a migration')"
Rows = list[tuple]


def rows(version: str) -> Rows:
    """Lists of some users: more than fit into one packet of COPY."""
    users = ["*", *(f"u{n}" for n in range(3000))]
    return [
        (user, rank, f"i{rank}", 0.5, "blend", 1.0, "why", version, DAY, "run") for user in users for rank in (1, 2)
    ]


def served(uri: str) -> Rows:
    with psycopg.connect(uri) as connection:
        return connection.execute(LISTS).fetchall()


@pytest.fixture()
def server(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "server"
    postgres.stop(tmp_path / "server")


def started(server: Path) -> str:
    return postgres.ensure_database(postgres.start(server), "serving")


def killed(server: Path) -> None:
    """The server dies with all its processes: those of connections would else end what they are at."""
    main = psutil.Process(int((server / "cluster" / "postmaster.pid").read_text().split()[0]))
    for process in (main, *main.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def breaking_off(batch: Rows, end: Callable[[], None]) -> Iterator[tuple]:
    """The rows, in whose middle the server ends."""
    yield from batch[: len(batch) // 2]
    end()
    yield from batch[len(batch) // 2 :]


@pytest.mark.parametrize("ending", [killed, postgres.stop], ids=["killed", "stopped"])
def test_a_server_that_ends_during_copy_keeps_the_old_lists_and_the_next_run_publishes(server: Path, ending):
    old, new = rows("old"), rows("new")
    uri = started(server)
    publish(uri, iter(old), DAY, len(old))
    with pytest.raises(ConnectionFailedError, match="the lists that are served are whole") as caught:
        publish(uri, breaking_off(new, lambda: ending(server)), DAY, len(new))
    assert caught.value.retry
    with pytest.raises(ConnectionFailedError):  # still down
        publish(uri, iter(new), DAY, len(new))
    uri = started(server)
    assert served(uri) == sorted(old)
    assert publish(uri, iter(new), DAY, len(new)).written == len(new)
    assert served(uri) == sorted(new)


def test_a_server_that_ends_between_copy_and_commit_keeps_the_old_lists(server: Path):
    old, new = rows("old"), rows("new")
    uri = started(server)
    publish(uri, iter(old), DAY, len(old))
    gone = suppress(psycopg.OperationalError)
    with gone, psycopg.connect(uri) as other, psycopg.connect(uri, autocommit=True) as looking:
        other.execute("select pg_advisory_xact_lock(%s)", [LOCK])  # all rows are staged before this lock is asked for
        ending = threading.Thread(target=_end_what_waits, args=(looking, server))
        ending.start()
        with pytest.raises(ConnectionFailedError):
            publish(uri, iter(new), DAY, len(new))
        ending.join()
    assert served(started(server)) == sorted(old)


def _end_what_waits(looking: psycopg.Connection, server: Path) -> None:
    waiting = "select count(*) from pg_stat_activity where wait_event = 'advisory'"
    while looking.execute(waiting).fetchone() != (1,):
        time.sleep(0.01)
    killed(server)


@pytest.mark.faults
def test_the_job_says_so_while_the_server_is_down_and_publishes_when_it_is_back(shop: Shop, server: Path, monkeypatch):
    shop.deliver(DAY, [event(n, user=f"u{n}") for n in range(5)])
    shop.run("ingest_events", "ingest_catalogue", "conform_events", "conform_catalogue", "build_sequences")
    shop.run("score_candidates")
    monkeypatch.setenv("LAKEREC_SERVING_URI", uri := started(server))
    postgres.stop(server)
    with pytest.raises(ConnectionFailedError, match="PostgreSQL serving"):
        shop.run("publish_recommendations")
    assert "publish_recommendations" not in {row["job"] for row in shop.rows("ops.runs")}
    started(server)
    assert shop.run("publish_recommendations")["served"] == len(served(uri)) == len(shop.rows("gold.recommendations"))


def test_a_lease_whose_server_ends_lets_nothing_more_be_written(shop: Shop, server: Path, monkeypatch):
    monkeypatch.setenv("LEASE_URI", started(server))
    shop.settings["lease"] |= {"uri_env": "LEASE_URI"}
    shop.deliver(DAY, [event(1)])
    shop.run("ingest_events")
    slow, table, kept = shop.job("ingest_events"), "bronze.events", Maintenance()
    before = {name: shop.version(name) for name in (table, "ops.runs")}
    with pytest.raises(ConnectionFailedError, match=LOST), monkeypatch.context() as patch, slow.lake.lease():
        rows = slow.lake.read(table)
        patch.setattr(migration, "statements", lambda _, __, place: [f"ALTER TABLE {place} {ALTERED}"])
        (shop.folder / "lake/_schema.json").unlink()
        postgres.stop(server)
        for commit in (
            lambda: slow.lake.tidy(table, kept),
            lambda: slow.lake.tidy(table, kept.model_copy(update={"log_days": 99})),
            lambda: slow.lake.restore(table, 0),
            lambda: slow.lake.to_ddl(table),
            slow.lake.migrate,
        ):
            with pytest.raises(ConnectionFailedError, match=LOST):
                commit()
        slow.lake.replace(table, rows, slow.window)
    assert {name: shop.version(name) for name in before} == before
    with pytest.raises(ConnectionFailedError, match=r"the lease of .* cannot be had"):
        shop.run("ingest_events")
    started(server)
    assert shop.run("ingest_events")["read"] == 1
