"""Brings a database file to the version that this code knows, with yoyo; and what that takes whatever the engine."""

import os
import sqlite3
from collections.abc import Iterator, Set
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from service.storage.lock import FileLock, Locked, server_lock, writer_lock
from service.storage.sqlite import connect

# what SQLite says of a user's rights and of the disk, and not of what stands in the file
_NOT_THE_FILES = (
    *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL),
)


class MigrationError(Exception):
    """A database that can't be used as it is; the sentence says why and what helps."""


class DatabaseInUse(MigrationError):
    """Another server, or a migration, holds the file."""


def hold(database: Path) -> FileLock:
    """Takes `database` for this process alone, until the lock is closed. Raises DatabaseInUse or MigrationError."""
    if database.is_dir():
        raise MigrationError(f"The database {database} is a folder, not a file.")
    lock = server_lock(database)
    try:
        # the file holds prompts and key hashes: for its owner's eyes; SQLite gives -wal and -shm the same mode
        os.close(os.open(database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        if database.stat().st_nlink > 1:
            # the other name would have a lock and a write-ahead log of its own
            raise MigrationError(f"The database {database} has a second name (a hard link); remove one of them.")
        lock.acquire()
    except MigrationError:
        lock.close()
        raise
    except Locked:
        lock.close()
        raise DatabaseInUse(
            f"The database {database} is in use by another server, or by a command that changes it. "
            "One process serves one file: stop the other one, or choose another --database."
        ) from None
    except OSError as error:
        lock.close()
        raise MigrationError(f"The database {database} can't be opened: {error.strerror}.") from None
    return lock


def migrate(database: Path, folder: Path) -> list[str]:
    """Applies what is missing, and answers with the ids of what was applied.

    The caller holds the file (`hold`). Raises MigrationError for a file that is no database, is another program's, or was
    migrated by a newer version.
    """
    if not check(database, folder, complete=False) and not _is_locked(database):
        return []
    with _backend(database) as backend:
        # a migrator that was killed leaves its row behind; no other one can be alive, for we hold the file
        backend.break_lock()
        migrations = read_migrations(folder)
        with backend.lock():
            missing = backend.to_apply(migrations)
            applied = [migration.id for migration in missing]
            backend.apply_migrations(missing)
    return applied


def _is_locked(database: Path) -> bool:
    """Was a migrator killed when its work was done, and its lock not given back?"""
    with closing(connect(database)) as connection:
        return bool(connection.execute("select exists (select 1 from yoyo_lock)").fetchone()[0])


def check(database: Path, folder: Path, *, complete: bool = True) -> list[str]:
    """The ids of the migrations that `database` lacks, oldest first.

    Raises MigrationError where it is missing, foreign or newer than `folder`, or, if `complete`, lacks any.
    """
    tables, applied = look(database)
    known = known_migrations(folder)
    return judge(str(database), tables, applied, known, complete=complete)


def look(database: Path) -> tuple[set[str], set[str]]:
    """The tables of `database`, and the ids of its migrations. Raises MigrationError where it is missing or none."""
    if not database.exists():
        raise MigrationError(f"There is no database {database}; `agent-platform migrate` or `serve` makes it.")
    try:
        with closing(connect(database)) as connection:
            return tables_and_migrations(connection)
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_THE_FILES:
            raise MigrationError(
                f"The database {database} can't be opened ({error}): this user may not write it and its folder, or the disk "
                "is full or can only be read."
            ) from None
        raise MigrationError(f"{database} can't be read as a database: {error}.") from None


def tables_and_migrations(connection: sqlite3.Connection) -> tuple[set[str], set[str]]:
    """What an open file has of both."""
    tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
    applied: set[str] = set()
    if "_yoyo_migration" in tables:
        applied = {name for (name,) in connection.execute("select migration_id from _yoyo_migration")}
    return tables, applied


def judge(name: str, tables: Set[str], applied: Set[str], known: Set[str], *, complete: bool) -> list[str]:
    """What the database called `name`, which has these tables and migrations, lacks; as `check` says it."""
    # a migrator killed at its first step leaves yoyo's lock table alone in it
    if "_yoyo_migration" not in tables and any("yoyo" not in table for table in tables):
        raise MigrationError(f"{name} is a database of another program; choose another --database.")
    if newer := sorted(applied - known):
        raise MigrationError(
            f"The database {name} was migrated by a newer version (it has {newer[-1]}). "
            "Install that version, or restore a backup made before it."
        )
    missing = sorted(known - applied)
    if complete and missing:
        raise MigrationError(
            f"The database {name} is not migrated yet (it lacks {missing[0]}); run `agent-platform migrate`."
        )
    return missing


def compact(database: Path) -> None:
    """Writes the file anew without what was deleted from it, for which the disk needs room once more.

    The caller holds the file (`hold`). Raises MigrationError.
    """
    try:
        with closing(writer_lock(database)) as writing, closing(connect(database)) as connection:
            writing.acquire(patience=5.0)
            connection.execute("vacuum")
            connection.execute("pragma wal_checkpoint(truncate)")
    except (Locked, sqlite3.Error) as error:
        raise MigrationError(f"The space of {database} can't be given back: {error}.") from None


def known_migrations(folder: Path) -> frozenset[str]:
    """The ids of the migrations that this version has."""
    return frozenset(file.stem for file in folder.glob("[0-9]*") if not file.stem.endswith(".rollback"))


def roll_back(database: Path, folder: Path) -> list[str]:
    """Undoes every migration, newest first, and answers with their ids. All data goes; for tests of the migrations."""
    with _backend(database) as backend:
        undone = backend.to_rollback(read_migrations(folder))
        names = [migration.id for migration in undone]
        backend.rollback_migrations(undone)
    return names


def read_migrations(folder: Path) -> Any:
    """yoyo's list of the migrations in a folder."""
    from yoyo import read_migrations as read  # costs a tenth of a second: only where it is needed

    return read(str(folder))


def log_data(migration: Any, operation: str) -> dict[str, Any]:
    """What yoyo notes of a migration. It would ask for the user's name, which fails where there is none, and the host's."""
    return {
        "id": str(uuid4()),
        "migration_id": migration.id if migration else None,
        "migration_hash": migration.hash if migration else None,
        "username": str(os.getuid()),
        "hostname": os.uname().nodename,
        "created_at_utc": datetime.now(UTC).replace(tzinfo=None),
        "operation": operation,
    }


@contextmanager
def _backend(database: Path) -> Iterator[Any]:
    """yoyo's SQLite backend on our own connection, closed at the end."""
    from yoyo.backends.core.sqlite3 import SQLiteBackend
    from yoyo.connections import parse_uri

    class Backend(SQLiteBackend):  # type: ignore[misc]  # yoyo ships no types
        def connect(self, dburi: Any) -> sqlite3.Connection:
            # yoyo would put the path into a URI unquoted, and share one cache between connections
            connection = connect(database)
            # readers go on while a writer commits; kept in the file, and refused inside a transaction
            connection.execute("pragma journal_mode = wal")
            return connection

        def get_log_data(self, migration: Any = None, operation: str = "apply") -> dict[str, Any]:
            return log_data(migration, operation)

    writing = writer_lock(database)
    writing.acquire(patience=5.0)
    try:
        backend = Backend(parse_uri("sqlite:///-"), "_yoyo_migration")
        try:
            backend.init_database()
            with backend:
                yield backend
        finally:
            backend.connection.close()
    finally:
        writing.close()
