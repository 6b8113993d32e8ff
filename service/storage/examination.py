"""What `agent-platform doctor` finds out about a database, and here about a file. Nothing is changed by it."""

import os
import shlex
import shutil
import sqlite3
import stat
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from service.storage.backups import faults
from service.storage.migrations import MigrationError, judge, known_migrations, look
from service.storage.queries import Query
from service.storage.sqlite import connect
from service.times import utc_now

# where so little is left, in bytes, writes are about to fail
_LITTLE = 2**26
_MEBIBYTE = 2**20
# the releases with the fix of the WAL-reset bug: each is the first of its line that has it (sqlite.org/wal.html)
_FIXED = ((3, 44, 6), (3, 50, 7))
_FIXED_FOR_GOOD = (3, 51, 3)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, in a sentence; and what to do, where it isn't as it should be."""

    level: Literal["ok", "warning", "problem"]
    what: str
    help: str = ""


def ok(what: str) -> Finding:
    return Finding("ok", what)


def warning(what: str, help: str) -> Finding:
    return Finding("warning", what, help)


def problem(what: str, help: str) -> Finding:
    return Finding("problem", what, help)


def examine(database: Path, folder: Path, queries: Mapping[str, Query]) -> Iterator[Finding]:
    """Looks at a file, beside its server or without one.

    Raises MigrationError for one that is missing, no database, or another program's.
    """
    try:
        tables, applied = look(database)
    except MigrationError:
        # that may be why
        yield from _rights(database)
        raise
    yield migrations(str(database), tables, applied, known_migrations(folder))
    yield _sqlite(sqlite3.sqlite_version_info)
    with closing(connect(database)) as connection:
        connection.execute("pragma query_only = on")
        yield _integrity(database, connection)
        yield _journal(database, connection)
        if "run_counts" in tables:
            yield _times(connection, queries)
    yield from _access(database)
    yield from _rights(database)
    yield _space(database, shutil.disk_usage(database.parent).free)


def migrations(name: str, tables: set[str], applied: set[str], known: frozenset[str]) -> Finding:
    """How the version of a database fits this one's, whatever the engine. Raises MigrationError for a foreign one."""
    judge(name, tables, applied, known | applied, complete=False)
    if newer := sorted(applied - known):
        return problem(
            f"The database was migrated by a newer version: it has {newer[-1]}.",
            "Install that version, or restore a backup made before it.",
        )
    if missing := sorted(known - applied):
        lacks = missing[0] if len(missing) == 1 else f"{missing[0]} and {len(missing) - 1} more"
        return problem(f"The database lacks the migration {lacks}.", "Run `agent-platform migrate`, or start the server.")
    return ok(f"The database has all {len(known)} migrations of this version.")


def _sqlite(version: tuple[int, ...]) -> Finding:
    named = ".".join(map(str, version))
    if version >= _FIXED_FOR_GOOD or any(version[:2] == fixed[:2] and version >= fixed for fixed in _FIXED):
        return ok(f"SQLite is {named}.")
    return warning(
        f"SQLite is {named}, which can damage a file that one connection writes while another one writes its log back (the "
        "WAL-reset bug, fixed in 3.51.3, 3.50.7 and 3.44.6).",
        "The service and its commands keep out of its way; let no other program write to the file, or upgrade SQLite.",
    )


def _integrity(database: Path, connection: sqlite3.Connection) -> Finding:
    found = faults(connection, 3)
    if not found:
        return ok(f"{database} is whole, and so are its foreign keys.")
    return problem(
        f"{database} is damaged: {'; '.join(' '.join(each.split()) for each in found)}.",
        "Stop the service, and restore the newest backup: `agent-platform restore FILE --replace`.",
    )


def _journal(database: Path, connection: sqlite3.Connection) -> Finding:
    (mode,) = connection.execute("pragma journal_mode").fetchone()
    if mode == "wal":
        return ok("The journal mode is WAL.")
    return warning(
        f"The journal mode is {mode}, in which reading and writing wait for each other.",
        f"Stop the service, and run: sqlite3 {shlex.quote(str(database))} 'pragma journal_mode = wal'",
    )


def _times(connection: sqlite3.Connection, queries: Mapping[str, Query]) -> Finding:
    try:
        _, _, newest = connection.execute(queries["get_summary"].sql).fetchone()
    except sqlite3.DatabaseError as error:
        return problem(f"The runs can't be read: {error}.", "See what is damaged.")
    now = utc_now()
    if newest is not None and newest > now:
        return warning(
            f"The newest run is of {newest}, and it is {now} now.",
            "Set the clock: until then, the new runs of that tenant all get this time.",
        )
    return ok(f"The newest run is of {newest}." if newest else "There is no run yet.")


def _files(database: Path) -> list[Path]:
    files = [database.with_name(database.name + suffix) for suffix in ("", "-wal", "-shm", "-server", "-writer")]
    return [file for file in files if file.exists()]


def _access(database: Path) -> Iterator[Finding]:
    if opened := [str(file) for file in _files(database) if stat.S_IMODE(file.stat().st_mode) & 0o077]:
        yield problem(
            "Others than its owner may open the database, which holds prompts and the hashes of keys.",
            f"Run: chmod 600 {shlex.join(opened)}",
        )
    else:
        yield ok("Nobody but its owner may open the database.")
    if database.stat().st_nlink > 1:
        yield problem("The database has a second name (a hard link), and is not served.", "Remove one of them.")


def _rights(database: Path) -> Iterator[Finding]:
    if locked := [path for path in (database.parent, *_files(database)) if not os.access(path, os.R_OK | os.W_OK)]:
        yield problem(
            f"This user may not write {', '.join(map(str, locked))}.", "Run this, and the service, as the database's owner."
        )


def _space(database: Path, free: int) -> Finding:
    log = database.with_name(database.name + "-wal")
    size = database.stat().st_size + (log.stat().st_size if log.exists() else 0)
    said = f"{free // _MEBIBYTE:,} MiB are free on the disk, and the database has {-(-size // _MEBIBYTE):,} MiB."
    if free < _LITTLE:
        return problem(said, "Make room: writes are about to be refused.")
    if free < size:
        return warning(said, "Make room: a backup beside it, or a migration that makes a table anew, would not fit.")
    return ok(said)
