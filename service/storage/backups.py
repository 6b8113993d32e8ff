"""Copies of a database file: made beside a server that writes, checked, and put back.

A copy is one state of the database, read in one transaction. In WAL mode that keeps nobody from writing: the copy misses
what is committed after it has begun, and the log grows by that meanwhile. A file gets its name when it is whole, checked and
on disk, and not before.
"""

import fcntl
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from urllib.parse import quote

from service.storage.lock import Locked, server_lock, writer_lock
from service.storage.migrations import check, judge, known_migrations, tables_and_migrations
from service.storage.queries import Query
from service.storage.sqlite import connect

# pages, of 4 KiB mostly, between two looks at whether somebody wants to stop it
_STEP = 1_000
# what SQLite keeps beside a file, and what the service does
_LOGS = ("-wal", "-journal")
_COMPANIONS = ("", *_LOGS, "-shm", "-server", "-writer")
# what is not whole yet: its name begins and ends so
_PART = (".agent-platform-", ".part")

Progress = Callable[[int, int], None]


class BackupError(Exception):
    """A copy that can't be made or put back; the sentence says why. Nothing was changed."""


@dataclass(frozen=True)
class Contents:
    """What a copy holds. `missing` are the migrations that it lacks; too old a copy can't be counted, and `runs` is None."""

    tenants: int
    runs: int | None
    newest_run: str | None
    missing: list[str]

    def __str__(self) -> str:
        if self.runs is None:
            return _counted(self.tenants, "tenant")
        newest = f", the newest of {self.newest_run}" if self.newest_run else ""
        return f"{_counted(self.tenants, 'tenant')} and {_counted(self.runs, 'run')}{newest}"


@dataclass(frozen=True)
class Restored:
    """What was put back, and where that is kept which was there before."""

    contents: Contents
    kept: Path | None


def back_up(
    database: Path, file: Path, folder: Path, queries: Mapping[str, Query], *, overwrite: bool, progress: Progress
) -> Contents:
    """Copies `database` to `file`, whether it is served or not; `progress` is told how many pages of how many are copied.

    Raises BackupError, and MigrationError for a database that is missing, foreign or of a newer version.
    """
    missing = check(database, folder, complete=False)
    if len(missing) == len(known_migrations(folder)):
        raise BackupError(f"The database {database} holds nothing yet.")
    _refuse(database, file, overwrite)
    with _unfinished(file) as part:
        try:
            _copy(database, part, progress)
        except sqlite3.Error as error:
            raise BackupError(f"The database {database} can't be copied to {file}: {error}.") from None
        contents = contents_of(part, folder, queries, name=f"The copy of {database}, which was not kept,")
        _flush(part)
        _refuse_used(file)
        os.replace(part, file)
        _flush(file.parent)
    return contents


def put_back(database: Path, file: Path, *, replace: bool) -> Path | None:
    """Puts a copy of `file`, which is whole, in the place of `database`, which the caller holds (migrations.hold).

    What was there is kept with all that its log holds, and its new name answered. Raises BackupError where it isn't empty,
    unless it is to be replaced, or where another command uses it.
    """
    if file.samefile(database):
        raise BackupError(f"{file} is the database itself.")
    empty = _is_empty(database)
    if not empty and not replace:
        raise BackupError(f"The database {database} isn't empty; choose another one, or say --replace: it is kept beside.")
    with _unfinished(database) as part:
        shutil.copyfile(file, part)
        try:
            with closing(connect(part)) as connection:
                # another tool's copy may be in another mode, and no migration would set it
                connection.execute("pragma journal_mode = wal")
        except sqlite3.Error as error:
            raise BackupError(f"{file} can't be restored to {database}: {error}.") from None
        _flush(part)
        with closing(writer_lock(database)) as lock:
            try:
                lock.acquire(5.0)
            except Locked:
                raise _in_use(database) from None
            kept = None if empty else _keep(database)
            for suffix in (*_LOGS, "-shm"):
                # the old log must never be beside the new file: SQLite would take it for this one's
                _beside(database, suffix).unlink(missing_ok=True)
            os.replace(part, database)
            _hand_over(database, database.parent if empty else kept)
            _flush(database.parent)
    return kept


def contents_of(file: Path, folder: Path, queries: Mapping[str, Query], *, name: str = "") -> Contents:
    """What a copy that nobody writes to holds, read whole.

    Raises BackupError for a file that is damaged, unfinished or none of ours, MigrationError for one of a newer version.
    """
    name = name or str(file)
    if not file.is_file():
        raise BackupError(f"{name} is no file.")
    for suffix in _LOGS:
        log = _beside(file, suffix)
        if log.exists() and log.stat().st_size:
            raise BackupError(f"{name} has a log beside it, {log.name}, and is no backup; make one of that database.")
    try:
        # it is neither locked nor written to: a copy may be on a medium that can only be read
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro&immutable=1", uri=True)) as connection:
            tables, applied = tables_and_migrations(connection)
            if not applied:
                raise BackupError(f"{name} is no backup: it is empty, or the database of another program.")
            missing = judge(name, tables, applied, known_migrations(folder), complete=False)
            if found := faults(connection, 1):
                raise BackupError(f"{name} is damaged: {found[0]}.")
            (tenants,) = connection.execute("select count(*) from tenants").fetchone()
            if "run_counts" not in tables:
                return Contents(tenants, None, None, missing)
            tenants, runs, newest = connection.execute(queries["get_summary"].sql).fetchone()
            return Contents(tenants, runs, newest, missing)
    except sqlite3.DatabaseError as error:
        raise BackupError(f"{name} can't be read as a database: {error}.") from None


def faults(connection: sqlite3.Connection, most: int) -> list[str]:
    """The first faults that a full check of a database finds, none for one that is whole."""
    try:
        found = [said for (said,) in connection.execute(f"pragma integrity_check({most})") if said != "ok"]
        broken = connection.execute("pragma foreign_key_check").fetchmany(most)
    except sqlite3.DatabaseError as error:
        return [str(error)]
    return [*found, *(f"a row of {table} refers to one of {other} that is not there" for table, _, other, _ in broken)]


def _copy(database: Path, part: Path, progress: Progress) -> None:
    with closing(connect(database)) as source, closing(sqlite3.connect(part, isolation_level=None)) as target:
        # what fails is thrown away, and what doesn't is flushed at the end
        target.execute("pragma synchronous = off")
        target.execute("pragma journal_mode = off")
        # or the copy would begin anew with each commit of another process
        source.execute("begin")
        source.execute("select 1 from sqlite_master limit 1").fetchone()
        source.backup(target, pages=_STEP, progress=lambda _, left, total: progress(total - left, total))
        source.execute("rollback")


def _refuse(database: Path, file: Path, overwrite: bool) -> None:
    """Raises BackupError for a target that is there, is a part of the database, or can't be one."""
    if any(file == _beside(database, suffix) for suffix in _COMPANIONS):
        raise BackupError(f"{file} belongs to the database itself.")
    if not file.parent.is_dir():
        raise BackupError(f"The folder {file.parent} does not exist.")
    try:
        found = file.stat()
    except FileNotFoundError:
        _refuse_used(file)
        return
    except OSError as error:
        raise _unwritten(file, error) from None
    if not stat.S_ISREG(found.st_mode):
        raise BackupError(f"{file} is no file.")
    if not overwrite:
        raise BackupError(f"{file} is there already; choose another name, or say --overwrite.")
    if found.st_nlink > 1:
        raise BackupError(f"{file} has a second name (a hard link), which would keep what is there; choose another name.")
    _refuse_used(file)


def _refuse_used(file: Path) -> None:
    """Raises BackupError for a target that is served, or whose log is there, which SQLite would take for the copy's."""
    for suffix in _LOGS:
        log = _beside(file, suffix)
        if log.exists() and log.stat().st_size:
            raise BackupError(
                f"{file} is or was a database in use: its log {log.name} is beside it, and would spoil the copy; "
                "choose another name."
            )
    if _beside(file, "-server").exists():
        with closing(server_lock(file)) as lock:
            try:
                lock.acquire()
            except Locked:
                raise BackupError(f"{file} is a database that is served; choose another name.") from None


def _is_empty(database: Path) -> bool:
    """Is there nothing that could be lost? Raises BackupError for a database of another program, or one in use."""
    if not database.stat().st_size:
        return True
    try:
        with closing(connect(database)) as connection:
            tables, _ = tables_and_migrations(connection)
            if "_yoyo_migration" not in tables and any("yoyo" not in table for table in tables):
                raise BackupError(f"{database} is a database of another program; choose another --database.")
            return "tenants" not in tables or not connection.execute("select exists (select 1 from tenants)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        if _is_in_use(error):
            raise _in_use(database) from None
        # damaged: that is what it is to be replaced for
        return False


def _keep(database: Path) -> Path:
    """Gives `database` and its log a second name, so that at no moment there is none; the name."""
    # a damaged one can't be opened, and is kept as it is, log and all
    with suppress(sqlite3.DatabaseError):
        _put_log_away(database)
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    kept = database.with_name(f"{database.name}.before-restore-{moment}")
    for number in count(2):
        if not any(_beside(kept, suffix).exists() for suffix in ("", *_LOGS)):
            break
        # of the same second
        kept = database.with_name(f"{database.name}.before-restore-{moment}-{number}")
    named: list[Path] = []
    try:
        for suffix in ("", *_LOGS):
            if _beside(database, suffix).exists():
                os.link(_beside(database, suffix), _beside(kept, suffix))
                named.append(_beside(kept, suffix))
    except OSError as error:
        for file in named:
            file.unlink()
        raise BackupError(f"The database {database} can't be kept as {kept}: {error.strerror}.") from None
    return kept


def _put_log_away(database: Path) -> None:
    """Writes the log into the file. Raises BackupError where anybody else has it open, DatabaseError for a damaged one."""
    with closing(connect(database)) as connection:
        connection.execute("pragma locking_mode = exclusive")
        try:
            connection.execute("begin immediate")
        except sqlite3.DatabaseError as error:
            if _is_in_use(error):
                raise _in_use(database) from None
            raise
        connection.execute("rollback")
        connection.execute("pragma wal_checkpoint(truncate)")


def _hand_over(database: Path, like: Path | None) -> None:
    """Gives what root has put there to the one who has `like`: he serves it."""
    if os.geteuid() == 0 and like is not None:
        owner = like.stat()
        for suffix in _COMPANIONS:
            if (file := _beside(database, suffix)).exists():
                os.chown(file, owner.st_uid, owner.st_gid)


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _is_in_use(error: sqlite3.DatabaseError) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _in_use(database: Path) -> BackupError:
    return BackupError(f"The database {database} is in use by another command; try again when that has ended.")


def _beside(file: Path, suffix: str) -> Path:
    return file.with_name(file.name + suffix)


@contextmanager
def _unfinished(file: Path) -> Iterator[Path]:
    """An empty file in the same folder, for its owner's eyes; it is gone behind the block, but for one with a new name.

    What the system refuses about it is raised as BackupError. Those go, too, that others have left who were killed.
    """
    begins, ends = _PART
    try:
        for old in file.parent.glob(f"{begins}*{ends}"):
            _sweep(old)
        descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=begins, suffix=ends)
        part = Path(name)
        try:
            # whoever is killed lets go of it
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield part
        finally:
            _remove(part)
            os.close(descriptor)
    except OSError as error:
        raise _unwritten(file, error) from None


def _sweep(part: Path) -> None:
    """Removes what nobody finishes any more."""
    # another one's, or one that is just being finished, stays
    with suppress(OSError):
        descriptor = os.open(part, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(part)
        finally:
            os.close(descriptor)


def _remove(part: Path) -> None:
    for suffix in ("", *_LOGS, "-shm"):
        _beside(part, suffix).unlink(missing_ok=True)


def _unwritten(file: Path, error: OSError) -> BackupError:
    return BackupError(f"{file} can't be written: {error.strerror}.")


def _flush(path: Path) -> None:
    """Sees to it that a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
