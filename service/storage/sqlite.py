"""The embedded engine: one writer, a few readers, all commits on disk before they are answered."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import aiosqlite
import orjson

from service.errors import Unavailable
from service.storage.lock import FileLock, Locked, writer_lock
from service.storage.queries import Query, Shape
from service.storage.scope import Bind, Statement
from service.storage.units import ForeignKeyViolation, T, Together, UniqueViolation, Unit

# sqlite3 does as it reads what a column's name says in brackets (PARSE_COLNAMES): JSON that goes on to the client goes as it
# is, JSON that the service looks into is parsed.
sqlite3.register_converter("json", orjson.Fragment)
sqlite3.register_converter("parsed", orjson.loads)

_READERS = 2
# a read that takes longer than this, in seconds, lets the others pass
_SLOW = 0.005
_LARGEST_BATCH = 256
# characters that the reads of one hop hold at once, about; a page of the largest runs has more than that alone
_LARGEST_HOP = 2**22
_PATIENCE = 5.0

_PRAGMAS = (
    # an answered write has reached the disk: each commit waits for the flush of the WAL
    "pragma synchronous = full",
    # SQLite ignores foreign keys unless each connection asks
    "pragma foreign_keys = on",
    # another process may hold the file for a moment
    f"pragma busy_timeout = {int(_PATIENCE * 1000)}",
)
# a reader that was asked to write by mistake answers with an error
_READER_PRAGMAS = (*_PRAGMAS, "pragma query_only = on")

# the storage's state, not a defect of a statement: the same request may work later
_PASSING = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_NOMEM,
}


def connect(path: Path) -> sqlite3.Connection:
    """A plain connection that keeps the same rules, for what runs before the service: migrations and checks."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=_PATIENCE)
    for pragma in _PRAGMAS:
        connection.execute(pragma)
    return connection


@dataclass(slots=True)
class _Job:
    """A unit that waits for its connection, and where its result goes."""

    unit: Unit[Any]
    bind: Bind
    answer: asyncio.Future[Any]


Work = Callable[[list[_Job], sqlite3.Connection], list[Any]]


class _Lane:
    """One connection and its queue. What has queued up while the last hop was under way makes the next one together.

    `work` runs on the connection's thread and answers each job with its result or its exception, or raises for all. Jobs
    that it leaves over come first the next time. `tell` hears how many jobs each hop is given.
    """

    def __init__(self, connection: aiosqlite.Connection, work: Work) -> None:
        self.connection = connection
        self._work = work
        self._waiting: list[_Job] = []
        self._awake = asyncio.Event()
        self._closing = False
        self._hop_began: float | None = None
        self.tell: Callable[[int], object] | None = None
        self._task = asyncio.create_task(self._take_what_comes())

    @property
    def waiting(self) -> int:
        """How many jobs wait for the next hop."""
        return len(self._waiting)

    @property
    def is_held_up(self) -> bool:
        """Has the hop that is under way taken longer than most do?"""
        return self._hop_began is not None and time.monotonic() - self._hop_began > _SLOW

    def run(self, unit: Unit[T], bind: Bind) -> asyncio.Future[T]:
        """Queues a unit and promises its result. A caller that is cancelled leaves it done whole or not at all."""
        if self._closing:
            raise Unavailable
        job = _Job(unit, bind, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._awake.set()
        return job.answer

    async def close(self) -> None:
        """Finishes what is queued, refuses what comes, and closes the connection."""
        self._closing = True
        self._awake.set()
        await self._task
        await self.connection.close()

    async def _take_what_comes(self) -> None:
        while not (self._closing and not self._waiting):
            await self._awake.wait()
            self._awake.clear()
            while self._waiting:
                taken, self._waiting = self._waiting[:_LARGEST_BATCH], self._waiting[_LARGEST_BATCH:]
                # whoever gave up while queueing has nothing done
                if jobs := [job for job in taken if not job.answer.done()]:
                    await self._do(jobs)

    async def _do(self, jobs: list[_Job]) -> None:
        self._hop_began = time.monotonic()
        if self.tell is not None:
            self.tell(len(jobs))
        try:
            answers = await _on_thread(self.connection, partial(self._work, jobs))
        except Exception as error:
            answers = [error] * len(jobs)
        self._hop_began = None
        self._waiting[:0] = jobs[len(answers) :]
        for job, answer in zip(jobs, answers, strict=False):
            if job.answer.done():
                continue
            if isinstance(answer, Exception):
                job.answer.set_exception(answer)
            else:
                job.answer.set_result(answer)


class SqliteDatabase:
    """A migrated database file, open. Made by `open`, closed by `close`."""

    def __init__(
        self,
        path: Path,
        queries: Mapping[str, Query],
        writer: aiosqlite.Connection,
        readers: list[aiosqlite.Connection],
        lock: FileLock,
    ) -> None:
        self.queries = queries
        self._writer = _Lane(writer, self._commit)
        self._readers = [_Lane(reader, _read_each) for reader in readers]
        self._lock = lock
        self._path = path
        self._file = _identity(path)

    @classmethod
    async def open(cls, path: Path, queries: Mapping[str, Query]) -> "SqliteDatabase":
        """Opens the file at `path`, which migrations.py has prepared. Raises Unavailable where it can't be opened."""
        opened: list[aiosqlite.Connection] = []
        try:
            for pragmas in (_PRAGMAS, *[_READER_PRAGMAS] * _READERS):
                opened.append(await _connect(path, pragmas))
        except sqlite3.Error as error:
            for connection in opened:
                await connection.close()
            raise _meant(error) from error
        return cls(path, queries, opened[0], opened[1:], writer_lock(path))

    def watch_writes(self, tell: Callable[[int], object]) -> None:
        """From now on `tell` hears how many units of work each writing transaction takes together."""
        self._writer.tell = tell

    def waiting_writes(self) -> int:
        """How many units of work wait for the commit that is under way."""
        return self._writer.waiting

    async def check(self) -> None:
        """Raises Unavailable where the file is gone, or another one stands in its place."""
        self._check()

    def _check(self) -> None:
        if self._file is None or _identity(self._path) != self._file:
            raise Unavailable("The database file is not there any more.")

    def _commit(self, jobs: list[_Job], connection: sqlite3.Connection) -> list[Any]:
        # a file that was removed still takes writes, and nobody would find them again
        self._check()
        return _commit(self._lock, jobs, connection)

    async def close(self) -> None:
        """Finishes what is queued, refuses what comes, and closes the connections."""
        for lane in (*self._readers, self._writer):
            await lane.close()
        self._lock.close()

    def read(self, unit: Unit[T], bind: Bind, tenant_id: str | None) -> asyncio.Future[T]:
        """Runs a unit that only reads, on one state of the database.

        The first reader takes all it can, for what shares a hop costs least; behind a slow read the next one steps in.
        """
        lane = next((lane for lane in self._readers if not lane.is_held_up), self._readers[-1])
        return lane.run(unit, bind)

    def write(self, unit: Unit[T], bind: Bind, tenant_id: str | None) -> asyncio.Future[T]:
        """Runs a unit as one transaction and answers when it is on disk: commits are shared with what came meanwhile."""
        return self._writer.run(unit, bind)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found.st_size else None


def _commit(lock: FileLock, jobs: list[_Job], connection: sqlite3.Connection) -> list[Any]:
    """One transaction for all jobs, a savepoint each. What a unit raises is its answer; what the disk raises, everyone's."""
    try:
        lock.acquire(_PATIENCE)
    except (Locked, OSError) as error:
        raise Unavailable from error
    try:
        connection.execute("begin immediate")
        if len(jobs) == 1:
            # alone, a unit that fails takes nobody's work with it
            answers: list[Any] = [_drive(connection, jobs[0].unit, jobs[0].bind)]
        else:
            answers = [_within_savepoint(connection, job) for job in jobs]
        connection.execute("commit")
    except sqlite3.Error as error:
        raise _meant(error) from error
    finally:
        if connection.in_transaction:
            # the disk may refuse this too; SQLite then undoes the transaction by itself
            with suppress(sqlite3.Error):
                connection.execute("rollback")
        lock.release()
    return answers


def _read_each(jobs: list[_Job], connection: sqlite3.Connection) -> list[Any]:
    """Jobs on one state of the database, as many as memory has room for. What a unit raises is its answer."""
    try:
        connection.execute("begin")
    except sqlite3.Error as error:
        raise _meant(error) from error
    answers: list[Any] = []
    read = 0
    try:
        for job in jobs:
            try:
                answers.append(_drive(connection, job.unit, job.bind))
            except Exception as error:
                answers.append(_meant(error))
            read += _characters(answers[-1])
            if read > _LARGEST_HOP:
                break
    finally:
        if connection.in_transaction:
            connection.execute("rollback")
    return answers


def _characters(answer: Any) -> int:
    """How many characters the rows of an answer hold; one row alone is not looked at, for it is little."""
    if isinstance(answer, tuple):
        return sum(map(_characters, answer))
    rows = answer if isinstance(answer, list) else ()
    return sum(len(value) for row in rows for value in row.values() if isinstance(value, str))


async def _connect(path: Path, pragmas: tuple[str, ...]) -> aiosqlite.Connection:
    connection = await aiosqlite.connect(
        path,
        isolation_level=None,
        detect_types=sqlite3.PARSE_COLNAMES,
        cached_statements=256,
        timeout=_PATIENCE,
    )
    try:
        for pragma in pragmas:
            await connection.execute_fetchall(pragma)
    except BaseException:
        await connection.close()
        raise
    return connection


async def _on_thread(connection: aiosqlite.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    """One hop: runs `work` on the connection's own thread.

    aiosqlite offers only single statements in public; a transaction spread over several of them could be cut by a
    cancelled request. The version is pinned, and a test holds that the method is there.
    """

    def run() -> tuple[T | None, Exception | None]:
        # aiosqlite logs what it sees raised, and what a unit raises may quote its client
        try:
            return work(connection._conn), None
        except Exception as error:
            return None, error

    result, error = await connection._execute(run)  # type: ignore[no-untyped-call]  # private
    if error is not None:
        raise error
    return cast(T, result)


def _within_savepoint(connection: sqlite3.Connection, job: _Job) -> Any:
    connection.execute("savepoint unit")
    try:
        answer = _drive(connection, job.unit, job.bind)
    except Exception as error:
        if isinstance(error, Unavailable) or not connection.in_transaction:
            # a full disk or an I/O error: SQLite may have undone the whole transaction, so the whole batch fails with it
            raise _meant(error) from error
        connection.execute("rollback to unit")
        connection.execute("release unit")
        return error
    connection.execute("release unit")
    return answer


def _drive(connection: sqlite3.Connection, unit: Unit[T], bind: Bind) -> T:
    """Runs a unit to its end: each query it yields is answered, or its error raised inside the unit."""
    try:
        asked = next(unit)
        while True:
            try:
                if isinstance(asked, Together):
                    answer: Any = tuple(_execute(connection, bind(each)) for each in asked.asks)
                else:
                    answer = _execute(connection, bind(asked))
            except Exception as error:
                asked = unit.throw(_meant(error))
            else:
                asked = unit.send(answer)
    except StopIteration as stop:
        result: T = stop.value
        return result


def _execute(connection: sqlite3.Connection, statement: Statement) -> Any:
    query, parameters = statement
    cursor = connection.execute(query.sql, parameters)
    if query.shape is Shape.COUNT:
        return cursor.rowcount
    rows = cursor.fetchall()
    if query.shape is Shape.VALUE:
        return rows[0][0] if rows else None
    columns = [column[0] for column in cursor.description]
    if query.shape is Shape.ONE:
        return dict(zip(columns, rows[0], strict=True)) if rows else None
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _meant(error: Exception) -> Exception:
    """The error in the storage's own words, where it has one; else the error itself, a defect of ours."""
    if not isinstance(error, sqlite3.Error):
        return error
    code = getattr(error, "sqlite_errorcode", None)
    if code in (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY):
        return UniqueViolation(str(error))
    if code == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
        return ForeignKeyViolation(str(error))
    if code is not None and code & 0xFF in _PASSING:
        return Unavailable()
    return error
