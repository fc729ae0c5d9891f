"""Publishing to a real PostgreSQL: the embedded one, in a temporary folder."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from urllib.parse import urlsplit

import psycopg
import pytest
from tests.conftest import ROOT

from lakerec import postgres
from lakerec.errors import AlreadyServedError, ConfigError, ConnectionFailedError, ServingError
from lakerec.serving import Publication, list_for, publish

DAY = date(2024, 3, 1)
USERS = ["*", "ann", "bob"]


@pytest.fixture
def uri(server, request) -> str:
    return postgres.ensure_database(postgres.start(server), request.node.name)


def rows(day: date, users: list[str], k: int = 3, version: str | None = None) -> list[tuple]:
    """k rows for each user, all of one day and one model version."""
    model = version or f"v{day}"
    return [
        (user, rank, f"{user}-{rank}-{model}", 1 / rank, "retriever", 0.9, "you liked it", model, day, "run")
        for user in users
        for rank in range(1, k + 1)
    ]


def load(uri: str, batch: list[tuple], day: date) -> Publication:
    return publish(uri, iter(batch), day, len(batch))


def served(uri: str) -> list[tuple]:
    with psycopg.connect(uri) as connection:
        return connection.execute("select * from serving.recommendations order by user_id, rank").fetchall()


def test_it_serves_exactly_what_it_was_given(uri) -> None:
    batch = rows(DAY, USERS)
    assert load(uri, batch, DAY) == Publication(1, DAY, len(batch), written=len(batch), deleted=0)
    assert served(uri) == sorted(batch)


def test_publishing_twice_changes_no_row(uri) -> None:
    load(uri, rows(DAY, USERS), DAY)
    again = load(uri, rows(DAY, USERS), DAY)
    assert (again.written, again.deleted) == (0, 0)


def test_only_the_rows_that_differ_change(uri) -> None:
    load(uri, rows(DAY, USERS), DAY)
    tomorrow = DAY + timedelta(days=1)
    batch = rows(DAY, ["ann"]) + rows(tomorrow, ["*", "cid"], k=2)
    done = load(uri, batch, tomorrow)
    # ann stays; '*' changes 2 and loses 1; bob loses 3; cid is new with 2.
    assert (done.written, done.deleted) == (4, 4)
    assert served(uri) == sorted(batch)


def test_lists_of_few_of_the_users_that_are_served_are_refused_unless_that_is_allowed(uri) -> None:
    """An empty lake has a list for everyone, and nothing else."""
    load(uri, rows(DAY, [*USERS, "cid"]), DAY)
    tomorrow = DAY + timedelta(days=1)
    with pytest.raises(ServingError, match=r"lists of 1 users, the site has those of 4; .* freshness.min_share = 0.5"):
        publish(uri, iter(rows(tomorrow, ["*"])), tomorrow, 3, min_share=0.5)
    assert served(uri) == sorted(rows(DAY, [*USERS, "cid"]))
    publish(uri, iter(rows(tomorrow, ["*", "ann"], k=1)), tomorrow, 2, min_share=0.5)
    publish(uri, iter(rows(tomorrow, ["*"])), tomorrow, 3, min_share=0.0)
    assert served(uri) == sorted(rows(tomorrow, ["*"]))


def test_a_user_without_a_list_gets_the_fallback(uri) -> None:
    load(uri, rows(DAY, USERS), DAY)
    assert [row.item_id for row in list_for(uri, "ann")] == [f"ann-{r}-v{DAY}" for r in (1, 2, 3)]
    assert {row.user_id for row in list_for(uri, "nobody knows")} == {"*"}


def test_before_any_publication_the_error_says_what_to_run(uri) -> None:
    with pytest.raises(ServingError, match="published"):
        list_for(uri, "ann")


def test_an_older_day_is_refused(uri) -> None:
    load(uri, rows(DAY, USERS), DAY)
    with pytest.raises(AlreadyServedError, match="2024-03-01 is already served"):
        load(uri, rows(DAY - timedelta(days=1), USERS), DAY - timedelta(days=1))
    assert served(uri) == sorted(rows(DAY, USERS))


@pytest.mark.parametrize(
    ("batch", "expected", "message"),
    [
        (rows(DAY, USERS), 10, "9 rows arrived, gold has 10"),
        ([], 0, "fallback"),
        (rows(DAY, ["ann"]), 3, "fallback"),
        (rows(DAY, USERS) + rows(DAY, ["ann"], version="other"), 12, "duplicate key"),
        (rows(DAY + timedelta(days=1), USERS), 9, "newest rows are of 2024-03-02"),
        (rows(DAY - timedelta(days=1), USERS), 9, "newest rows are of 2024-02-29; score 2024-03-01"),
    ],
    ids=["count", "empty", "no_fallback", "same_key_twice", "from_the_future", "stale"],
)
def test_what_is_wrong_is_refused_and_nothing_is_visible(server, request, batch, expected, message) -> None:
    uri = postgres.ensure_database(postgres.start(server), f"refused_{request.node.callspec.id}")
    yesterday = DAY - timedelta(days=1)
    load(uri, rows(yesterday, USERS), yesterday)
    with pytest.raises(ServingError, match=message):
        publish(uri, iter(batch), DAY, expected)
    assert served(uri) == sorted(rows(yesterday, USERS))


def test_a_source_that_breaks_off_leaves_the_old_lists(uri) -> None:
    load(uri, rows(DAY, USERS), DAY)

    def broken() -> Iterator[tuple]:
        yield from rows(DAY, ["*"], version="new")
        raise RuntimeError("the lake went away")

    with pytest.raises(RuntimeError, match="went away"):
        publish(uri, broken(), DAY, 9)
    assert served(uri) == sorted(rows(DAY, USERS))


def test_a_view_of_an_analyst_survives_publishing(uri) -> None:
    load(uri, rows(DAY, USERS), DAY)
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute("create view top_one as select * from serving.current_recommendations where rank = 1")
        load(uri, rows(DAY, USERS, version="new"), DAY)
        found = connection.execute("select distinct model_version from top_one").fetchall()
    assert found == [("new",)]


def test_readers_never_see_an_empty_or_a_mixed_list(uri) -> None:
    users = ["*"] + [f"u{n}" for n in range(50)]
    load(uri, rows(DAY, users, version="v0"), DAY)
    over = threading.Event()

    def read(user: str) -> list[set[str | None]]:
        seen = []
        while not over.is_set():
            found = list_for(uri, user)
            assert [row.rank for row in found] == list(range(1, len(found) + 1)), found
            # u0 leaves in every second publication: then the fallback is served, whole.
            assert len({(row.user_id, row.model_version) for row in found}) == 1, found
            seen.append({row.model_version for row in found})
        return seen

    def scan() -> int:
        with psycopg.connect(uri, autocommit=True) as connection:
            scans = 0
            while not over.is_set():
                query = "select model_version, count(*) from serving.current_recommendations group by 1"
                found = connection.execute(query).fetchall()
                assert len(found) == 1, found
                assert found[0][1] in {len(users) * 3, (len(users) - 1) * 4}, found
                scans += 1
        return scans

    with ThreadPoolExecutor() as pool:
        readers = [pool.submit(read, user) for user in ("u0", "u1", "stranger")]
        scanner = pool.submit(scan)
        try:
            for n in range(1, 21):
                changed = rows(DAY, users, version=f"v{n}")
                if n % 2:
                    changed = rows(DAY, [u for u in users if u != "u0"], k=4, version=f"v{n}")
                load(uri, changed, DAY)
        finally:
            over.set()
        seen = [reader.result() for reader in readers]
        assert scanner.result() > 10
    assert all(len({frozenset(versions) for versions in one}) > 2 for one in seen)


def test_publications_at_the_same_time_serve_one_of_them_whole(uri) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: load(uri, rows(DAY, USERS, version=f"v{n}"), DAY), range(4)))
    assert len({row[7] for row in served(uri)}) == 1
    with psycopg.connect(uri) as connection:
        assert connection.execute("select count(*) from serving.publications").fetchone() == (4,)


def test_a_publication_waits_only_so_long(uri, monkeypatch) -> None:
    load(uri, rows(DAY, USERS), DAY)
    monkeypatch.setattr("lakerec.serving.LOCK_TIMEOUT", "100ms")
    with psycopg.connect(uri) as other:
        other.execute("lock table serving.recommendations in share mode")
        with pytest.raises(ConnectionFailedError, match="lock timeout"):
            load(uri, rows(DAY, USERS, version="new"), DAY)


def test_a_server_that_is_down_is_worth_a_retry() -> None:
    with pytest.raises(ConnectionFailedError) as caught:
        list_for("postgresql://lakerec:secret-word@127.0.0.1:1/serving", "ann")
    assert caught.value.retry
    assert "secret-word" not in str(caught.value)


def test_a_login_or_a_right_that_is_refused_is_no_fault_of_the_rows_and_not_tried_again(uri) -> None:
    parts = urlsplit(uri)
    wrong = parts._replace(netloc=f"{postgres.USER}:secret-word@127.0.0.1:{parts.port}").geturl()
    with pytest.raises(ConfigError, match=r"PostgreSQL refused the login: .*authentication failed") as caught:
        load(wrong, rows(DAY, USERS), DAY)
    assert "secret-word" not in str(caught.value)
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute("create role guest login password 'guest'")
    guest = parts._replace(netloc=f"guest:guest@127.0.0.1:{parts.port}").geturl()
    with pytest.raises(ConfigError, match=r"permission denied for database .*; nothing changed. .*GRANT CREATE"):
        load(guest, rows(DAY, USERS), DAY)
    load(uri, rows(DAY, USERS), DAY)
    with pytest.raises(ConfigError, match="permission denied"):
        load(guest, rows(DAY, USERS), DAY)


def test_the_server_comes_back_after_kill_minus_9_and_several_may_start_it(tmp_path) -> None:
    uri = postgres.ensure_database(postgres.start(tmp_path), "serving")
    load(uri, rows(DAY, USERS), DAY)
    pid_file = tmp_path / "cluster" / "postmaster.pid"
    os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)
    with ThreadPoolExecutor(3) as pool:
        uris = set(pool.map(postgres.start, [tmp_path] * 3))
    assert {urlsplit(one).port for one in uris} == {urlsplit(uri).port}
    assert served(uri) == sorted(rows(DAY, USERS))
    postgres.stop(tmp_path)
    postgres.stop(tmp_path)
    assert not pid_file.exists()


def test_a_stale_process_id_and_a_taken_port_do_not_stop_it(tmp_path) -> None:
    before = urlsplit(postgres.start(tmp_path))
    postgres.stop(tmp_path)
    (tmp_path / "cluster" / "postmaster.pid").write_text(f"{os.getpid()}\n")
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", before.port))
        squatter.listen()
        after = urlsplit(postgres.start(tmp_path))
    postgres.stop(tmp_path)
    assert (after.password, after.port != before.port) == (before.password, True)


def test_the_password_is_for_the_owner_only_and_is_asked_for(server) -> None:
    assert (server / "uri").stat().st_mode & 0o777 == 0o600
    parts = urlsplit(postgres.start(server))
    stranger = parts._replace(netloc=f"{postgres.USER}:wrong@127.0.0.1:{parts.port}").geturl()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(stranger)


def test_the_reader_of_the_documents_reads_the_lists_and_nothing_else(uri, server) -> None:
    load(uri, rows(DAY, USERS), DAY)
    (script,) = re.findall(r"^```sql\n(.*?)^```$", (ROOT / "docs/security.md").read_text(), re.MULTILINE | re.DOTALL)
    airflow = postgres.ensure_database(postgres.start(server), "airflow")
    with psycopg.connect(uri) as publisher, psycopg.connect(airflow) as another:
        publisher.execute(script)
        publisher.execute("create table serving.later as select 1 as n")
        another.execute("create table secrets as select 1 as n")
    site, beside = (re.sub("//.*@", "//site:choose%20one@", one) for one in (uri, airflow))
    with psycopg.connect(site, autocommit=True) as reader, psycopg.connect(beside, autocommit=True) as other:
        for name in ("recommendations", "current_recommendations", "publications", "later"):
            assert reader.execute(f"select count(*) from serving.{name}").fetchone() != (0,)
        for line in ("delete from serving.recommendations", "create table serving.mine (n int)"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute(line)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            other.execute("select * from secrets")
