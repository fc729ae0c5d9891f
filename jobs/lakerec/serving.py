"""The serving tables in PostgreSQL: each user's latest list, for the site and for analysts.

A publication loads a private staging table, then changes in one transaction only the rows that differ.
Readers work on snapshots (chapter 13.2 of PostgreSQL's manual): a statement sees the lists of before or of
after, never a mixture. TRUNCATE would show an empty table to older snapshots, and a rename would leave users'
views on the old table.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import class_row

from lakerec import postgres
from lakerec.config import Config
from lakerec.errors import AlreadyServedError, ConfigError, ConnectionFailedError, DiskFullError, ServingError

FALLBACK_USER = "*"
LOCK = 0x1A4E_5EC1  # any fixed number: the advisory lock of publishers
LOCK_TIMEOUT = "30s"  # a publication waits for another one, a reader never waits

SCHEMA = """
create schema if not exists serving;
create table if not exists serving.recommendations (
    user_id text, rank integer, item_id text not null, score double precision, source text,
    propensity double precision, reason text, model_version text, as_of_date date not null, run_id text,
    primary key (user_id, rank));
create table if not exists serving.publications (
    id bigint generated always as identity primary key, as_of_date date not null, rows bigint not null,
    published_at timestamptz not null default now());
create or replace view serving.current_recommendations as select * from serving.recommendations;
"""
STAGE = "create temporary table staged (like serving.recommendations including indexes) on commit drop"
DELETE_GONE = """
delete from serving.recommendations as served where not exists (
    select from staged where staged.user_id = served.user_id and staged.rank = served.rank)
"""
UPSERT_CHANGED = """
insert into serving.recommendations select * from staged except select * from serving.recommendations
on conflict (user_id, rank) do update set
    item_id = excluded.item_id, score = excluded.score, source = excluded.source,
    propensity = excluded.propensity, reason = excluded.reason, model_version = excluded.model_version,
    as_of_date = excluded.as_of_date, run_id = excluded.run_id
"""
SERVED = """
select max(as_of_date) as as_of, count(*) as rows, count(*) filter (where user_id = %s) as fallback
from serving.current_recommendations
"""
# One statement, so one snapshot: the choice between list and fallback cannot fall between two publications.
LIST_FOR = """
select * from serving.current_recommendations where user_id = coalesce(
    (select user_id from serving.current_recommendations where user_id = %(user)s limit 1), %(fallback)s)
order by rank
"""


class Recommendation(NamedTuple):
    """One row of a list, in the order of the table's columns."""

    user_id: str
    rank: int
    item_id: str
    score: float | None
    source: str | None
    propensity: float | None
    reason: str | None
    model_version: str | None
    as_of_date: date
    run_id: str | None


class Published(NamedTuple):
    """A line of serving.publications: the day and how many rows it served."""

    as_of: date
    rows: int


class Served(NamedTuple):
    """What the site's table holds: its newest day, its rows, and how many of them are the fallback's."""

    as_of: date | None
    rows: int
    fallback: int


@dataclass(frozen=True)
class Publication:
    """What one publication did: `rows` are served now, `written` and `deleted` are those that differed."""

    id: int
    as_of: date
    rows: int
    written: int
    deleted: int


def publish(
    uri: str, rows: Iterator[tuple[Any, ...]], as_of: date, expected: int, min_share: float = 0.0
) -> Publication:
    """Serve exactly these rows (columns of Recommendation; user '*' is the fallback) as of a day.

    Raises AlreadyServedError for an older day than the one served, ServingError for another number of rows than
    expected, no row of the day, no fallback, rows that break the table, or lists of less than `min_share` of the users
    that have one; then nothing changes, nor where DiskFullError says that the server has no room. ConnectionFailedError
    is worth a retry.
    """
    with _connected(uri) as connection:
        _ensure_schema(connection)
        with connection.transaction():
            connection.execute(STAGE)
            with connection.cursor() as cursor, cursor.copy("copy staged from stdin") as copy:
                for row in rows:
                    copy.write_row(row)
            connection.execute("analyze staged")
            _lock(connection)
            _refuse_older(connection, as_of)
            _check_staged(connection, as_of, expected)
            _check_share(connection, as_of, min_share)
            deleted = connection.execute(DELETE_GONE).rowcount
            written = connection.execute(UPSERT_CHANGED).rowcount
            return Publication(_log(connection, as_of, expected), as_of, expected, written, deleted)


@contextmanager
def target(config: Config) -> Iterator[str]:
    """The URI to publish to: the one configured, else an embedded PostgreSQL, running for as long as needed."""
    given = postgres.uri_of(config.serving.uri_env)
    if given:
        yield given
        return
    folder = config.local_folder("_serving")
    was_running = postgres.running(folder)
    try:
        yield postgres.ensure_database(postgres.start(folder), "serving")
    finally:
        if not was_running:
            postgres.stop(folder)


def list_for(uri: str, user_id: str) -> list[Recommendation]:
    """A user's list by rank, or the fallback where the user has none; ServingError if nothing is served."""
    with _connected(uri) as connection, connection.cursor(row_factory=class_row(Recommendation)) as cursor:
        found = cursor.execute(LIST_FOR, {"user": user_id, "fallback": FALLBACK_USER}).fetchall()
    if not found:
        raise ServingError(f"no list for user {user_id!r} and no fallback: run publish_recommendations")
    return found


def served(uri: str) -> Served:
    """What the table that the site reads holds now, whoever wrote it."""
    with _connected(uri) as connection, connection.cursor(row_factory=class_row(Served)) as cursor:
        if _scalar(connection, "select to_regclass('serving.current_recommendations')") is None:
            return Served(None, 0, 0)
        found = cursor.execute(SERVED, [FALLBACK_USER]).fetchone()
        return found or Served(None, 0, 0)


def last_publications(uri: str, count: int = 30) -> list[Published]:
    """The newest publications, newest first; none where nothing was ever published."""
    with _connected(uri) as connection, connection.cursor(row_factory=class_row(Published)) as cursor:
        if _scalar(connection, "select to_regclass('serving.publications')") is None:
            return []
        query = "select as_of_date as as_of, rows from serving.publications order by id desc limit %s"
        return cursor.execute(query, [count]).fetchall()


@contextmanager
def _connected(uri: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection whose errors become those of lakerec; the password never shows."""
    try:
        with psycopg.connect(uri, autocommit=True, **postgres.BOUNDS) as connection:
            yield connection
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigError(
            f"PostgreSQL serving: {error.diag.message_primary}; nothing changed. Let the role of the URI create and "
            "write the schema serving: GRANT CREATE ON DATABASE ... TO it, or the ownership of that schema"
        ) from error
    except psycopg.errors.UndefinedTable as error:
        raise ServingError(
            f"nothing has been published yet ({error.diag.message_primary}): run publish_recommendations"
        ) from error
    except psycopg.errors.DiskFull as error:
        raise DiskFullError(
            f"PostgreSQL serving: {error.diag.message_primary}; the lists that are served are whole. Make room on the "
            "disk of its data, run again"
        ) from error
    # A server that ends makes each of the three, by what the connection was at.
    except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError) as error:
        postgres.refuse_login(error)
        raise ConnectionFailedError(
            f"PostgreSQL serving: {error}; the lists that are served are whole, run the job again"
        ) from error
    except (psycopg.IntegrityError, psycopg.DataError, psycopg.ProgrammingError) as error:
        raise ServingError(
            f"PostgreSQL refused the rows: {error}; nothing changed. Score the day again, then publish it"
        ) from error


def _ensure_schema(connection: psycopg.Connection[Any]) -> None:
    """Create what is missing; on a schema that exists no lock is taken that a reader could wait for."""
    if _scalar(connection, "select to_regclass('serving.current_recommendations')") is None:
        with connection.transaction():
            _lock(connection)
            connection.execute(SCHEMA)


def _lock(connection: psycopg.Connection[Any]) -> None:
    """One publication at a time, until the end of the transaction."""
    connection.execute("select set_config('lock_timeout', %s, true)", [LOCK_TIMEOUT])
    connection.execute("select pg_advisory_xact_lock(%s)", [LOCK])


def _refuse_older(connection: psycopg.Connection[Any], as_of: date) -> None:
    served = _scalar(connection, "select max(as_of_date) from serving.publications")
    if served is not None and as_of < served:
        raise AlreadyServedError(
            f"{as_of} is not published: {served} is already served and stays; nothing is to be done"
        )


def _check_staged(connection: psycopg.Connection[Any], as_of: date, expected: int) -> None:
    staged = _scalar(connection, "select count(*) from staged")
    if staged != expected:
        raise ServingError(
            f"publication of {as_of}: {staged} rows arrived, gold has {expected}; clear the task: it counts anew"
        )
    if not _scalar(connection, "select exists (select from staged where user_id = %s)", FALLBACK_USER):
        raise ServingError(f"publication of {as_of}: no rows of the fallback user '*'; run score_candidates")
    latest = _scalar(connection, "select max(as_of_date) from staged")
    if latest != as_of:
        raise ServingError(f"publication of {as_of}: its newest rows are of {latest}; score {as_of} and try again")


def _check_share(connection: psycopg.Connection[Any], as_of: date, min_share: float) -> None:
    """Lists of an empty or another lake end here: they would take everybody's away, and the day would be green."""
    query = "select count(distinct user_id) from {}"
    served, staged = (_scalar(connection, query.format(table)) for table in ("serving.recommendations", "staged"))
    if staged < min_share * served:
        raise ServingError(
            f"publication of {as_of}: lists of {staged} users, the site has those of {served}; with less than "
            f"freshness.min_share = {min_share:g} of them nothing changes. Look whether `lake` of the YAML is the one "
            "that was served (mounted? restored whole?); if so many are gone indeed, publish once with a smaller one"
        )


def _log(connection: psycopg.Connection[Any], as_of: date, rows: int) -> int:
    insert = "insert into serving.publications (as_of_date, rows) values (%s, %s) returning id"
    return int(_scalar(connection, insert, as_of, rows))


def _scalar(connection: psycopg.Connection[Any], query: str, *values: object) -> Any:
    row = connection.execute(query, values).fetchone()
    return row[0] if row else None
