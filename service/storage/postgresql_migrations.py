"""Brings a PostgreSQL database to the version that this code knows, with yoyo on psycopg 3."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from service.storage.migrations import MigrationError, judge, known_migrations, log_data, read_migrations

# any number, but always this one: who holds it migrates, in whatever process (pg_advisory_lock)
_LOCK = 7203
# as libpq counts versions; before it, a view could not look with the eyes of whoever asks
OLDEST = 150_000
# seconds for a connection, and for another process to finish its migration
_PATIENCE = 5
_TURN = "120s"


def migrate(url: str, folder: Path) -> list[str]:
    """Applies what is missing, one process after the other, and answers with the ids of what was applied.

    Raises MigrationError for a database that can't be reached or changed, is another program's, or of a newer version.
    """
    if not check(url, folder, complete=False):
        return []
    with clear(url), connect(url) as connection, connection.cursor() as cursor:
        if connection.info.server_version < OLDEST:
            raise MigrationError(
                f"The database {shown(url)} can't be migrated: PostgreSQL {OLDEST // 10_000} or newer is needed."
            )
        cursor.execute("select current_setting('transaction_read_only')")
        if cursor.fetchone() == ("on",):
            raise MigrationError(f"The database {shown(url)} can't be migrated: it is read-only, as a standby is.")
        cursor.execute(f"set lock_timeout = '{_TURN}'")
        cursor.execute("select pg_advisory_lock(%s)", (_LOCK,))
        # ends with the connection, however that ends
        with _backend(url) as backend:
            # a migrator that was killed leaves its row behind; no other one can be at work
            backend.break_lock()
            with backend.lock():
                missing = backend.to_apply(read_migrations(folder))
                applied = [migration.id for migration in missing]
                backend.apply_migrations(missing)
    return applied


def check(url: str, folder: Path, *, complete: bool = True) -> list[str]:
    """The ids of the migrations that the database lacks, oldest first.

    Raises MigrationError where it can't be reached, is foreign or newer than `folder`, or, if `complete`, lacks any.
    """
    with clear(url), connect(url) as connection:
        tables, applied = tables_and_migrations(connection)
    return judge(shown(url), tables, applied, known_migrations(folder), complete=complete)


def is_same(url: str, other: str) -> bool:
    """Are both the same database? Raises MigrationError where one can't be reached."""
    # what one holds, the other finds taken: locks are those of one database of one server
    number = secrets.randbits(62)
    with clear(url), connect(url) as connection:
        connection.execute("select pg_advisory_lock(%s)", (number,))
        with clear(other), connect(other) as beside:
            return beside.execute("select pg_try_advisory_lock(%s)", (number,)).fetchone() == (False,)


def tables_and_migrations(connection: "psycopg.Connection[Any]") -> tuple[set[str], set[str]]:
    """The tables of an open database, and the ids of its migrations."""
    applied: set[str] = set()
    with connection.cursor() as cursor:
        cursor.execute("select tablename from pg_tables where schemaname = current_schema()")
        tables = {name for (name,) in cursor.fetchall()}
        if "_yoyo_migration" in tables:
            cursor.execute("select migration_id from _yoyo_migration")
            applied = {name for (name,) in cursor.fetchall()}
    return tables, applied


def roll_back(url: str, folder: Path) -> list[str]:
    """Undoes every migration, newest first, and answers with their ids. All data goes; for tests of the migrations."""
    with clear(url), _backend(url) as backend:
        undone = backend.to_rollback(read_migrations(folder))
        names = [migration.id for migration in undone]
        backend.rollback_migrations(undone)
    return names


def shown(url: str) -> str:
    """The URL as it may be shown: without its password."""
    facts = psycopg.conninfo.conninfo_to_dict(url)
    return f"postgresql://{facts.get('host', '')}:{facts.get('port', 5432)}/{facts.get('dbname', '')}"


def connect(url: str) -> "psycopg.Connection[Any]":
    connection: psycopg.Connection[Any] = psycopg.connect(url, autocommit=True, connect_timeout=_PATIENCE)
    return connection


@contextmanager
def clear(url: str, done: str = "migrated") -> Iterator[None]:
    """What the database refuses, as one sentence; the driver's own may hold more than one, and the URL.

    `done` is what can't be done then.
    """
    try:
        yield
    except psycopg.OperationalError as error:
        # an indented line asks whether the server runs
        reason = [line for line in str(error).strip().splitlines() if line.strip() and not line[0].isspace()][-1]
        raise MigrationError(f"The database {shown(url)} can't be reached: {reason.strip().removeprefix('- ')}.") from None
    except psycopg.errors.InsufficientPrivilege as error:
        who = "Migrate it as its owner, with the right to make roles (createrole)."
        raise MigrationError(
            f"The database {shown(url)} can't be {done}: {error.diag.message_primary}. "
            f"{who if done == 'migrated' else 'Connect as its owner.'}"
        ) from None
    except psycopg.Error as error:
        raise MigrationError(f"The database {shown(url)} can't be {done}: {error.diag.message_primary}.") from error


@contextmanager
def _backend(url: str) -> Iterator[Any]:
    """yoyo's backend on connections of ours, closed at the end."""
    from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
    from yoyo.connections import parse_uri

    class Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]  # yoyo ships no types
        def connect(self, dburi: Any) -> "psycopg.Connection[Any]":
            return connect(url)

        def get_log_data(self, migration: Any = None, operation: str = "apply") -> dict[str, Any]:
            return log_data(migration, operation)

    backend = Backend(parse_uri("postgresql+psycopg://-"), "_yoyo_migration")
    try:
        backend.init_database()
        with backend:
            yield backend
    finally:
        backend.connection.close()
