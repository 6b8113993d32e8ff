"""What a test does to a database behind the service's back, and to the engine within it, whichever engine that is."""

import asyncio
import inspect
import itertools
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
from aiohttp import web

from service.resources import resource
from service.state import STATE
from service.storage import sqlite
from service.storage.engines import engine_of
from service.storage.lock import writer_lock
from service.storage.postgresql import PostgresqlDatabase
from service.storage.postgresql_queries import PostgresqlQuery
from service.storage.sqlite import SqliteDatabase
from service.storage.units import Unit
from tests.support import postgresql as server
from tests.support.database import migrated

Database = Path | str
Row = tuple[Any, ...]
# what a table refuses, in either engine's words
REFUSED = (sqlite3.IntegrityError, psycopg.IntegrityError, psycopg.DataError)
_number = itertools.count()
# what the service's connections call themselves
_OURS = "datname = current_database() and application_name = 'agent-platform'"


def made(engine: str, file: Path) -> Database:
    """A migrated, empty database of a test's or a module's own: the file, or one of the server named like it."""
    if engine == "sqlite":
        return migrated(file)
    url = server.create(f"agent_platform_{file.stem}_{os.getpid()}_{next(_number)}")
    engine_of(url).migrate(resource("migrations"))
    return url


def rows(database: Database, sql: str, *parameters: Any) -> list[Row]:
    """What a query finds, on a connection of its own; `?` stands for a parameter."""
    if isinstance(database, Path):
        with closing(sqlite3.connect(database)) as connection:
            return connection.execute(sql, parameters).fetchall()
    with psycopg.connect(database) as served:
        return served.execute(_in_its_words(sql), parameters or None).fetchall()


def execute(database: Database, sql: str, *each: Sequence[Any]) -> None:
    """Runs a statement, as one transaction: once for each list of parameters, or once without."""
    if isinstance(database, Path):
        with closing(writer_lock(database)) as lock, closing(sqlite.connect(database)) as connection:
            lock.acquire(5.0)
            connection.execute("begin immediate")
            for parameters in each or [()]:
                connection.execute(sql, parameters)
            connection.execute("commit")
        return
    with psycopg.connect(database) as served, served.cursor() as cursor:
        if each:
            cursor.executemany(_in_its_words(sql), each)
        else:
            cursor.execute(sql)


def _in_its_words(sql: str) -> Any:
    return sql.replace("?", "%s")


@contextmanager
def held_writes(database: Database) -> Iterator[None]:
    """Who writes for a tenant that is there waits for as long as this lasts; who reads does not."""
    if isinstance(database, Path):
        with closing(writer_lock(database)) as lock:
            lock.acquire(5.0)
            yield
        return
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("select pg_advisory_lock(hashtextextended(id, 7203)) from tenants")
        yield
        connection.execute("select pg_advisory_unlock_all()")


@contextmanager
def refused_rows(database: Database, table: str, column: str, value: str) -> Iterator[None]:
    """No row of `table` is stored whose `column` is `value`; who tries fails as on a defect of ours."""
    if isinstance(database, Path):
        body = f"when new.{column} = '{value}' begin select raise(abort, 'no'); end"
        execute(database, f"create trigger refuse after insert on {table} {body}")
    else:
        execute(
            database,
            "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$; "
            f"create trigger refuse after insert on {table} for each row when (new.{column} = '{value}') "
            "execute function refuse()",
        )
    try:
        yield
    finally:
        execute(database, "drop trigger refuse" if isinstance(database, Path) else "drop function refuse() cascade")


def engine_in(app: web.Application) -> SqliteDatabase | PostgresqlDatabase:
    """The open database of a service that runs."""
    database = app[STATE].authenticator._database
    assert isinstance(database, SqliteDatabase | PostgresqlDatabase)
    return database


@asynccontextmanager
async def only_reads(app: web.Application, database: Database) -> AsyncIterator[None]:
    """A service that runs may only read while this lasts."""
    engine = engine_in(app)
    if isinstance(engine, SqliteDatabase):
        await engine._writer.connection.execute_fetchall("pragma query_only = on")
        yield
        await engine._writer.connection.execute_fetchall("pragma query_only = off")
        return
    assert isinstance(database, str)

    async def each_session(setting: str) -> None:
        with psycopg.connect(database, autocommit=True, options="-c default_transaction_read_only=off") as connection:
            connection.execute(f'alter database "{connection.info.dbname}" {setting}')
        cut_off(database)
        async with asyncio.timeout(5):
            # else the next request may find out first
            while engine._pool.get_size():  # noqa: ASYNC110  # nothing announces it
                await asyncio.sleep(0.001)

    await each_session("set default_transaction_read_only = on")
    try:
        yield
    finally:
        await each_session("reset default_transaction_read_only")


def cut_off(database: str, which: str = "true") -> int:
    """Ends the service's connections, or those for which `which` holds in pg_stat_activity; how many there were."""
    return len(rows(database, f"select pg_terminate_backend(pid) from pg_stat_activity where {_OURS} and {which}"))


def nothing() -> Unit[None]:
    """A unit that waits for its turn and does nothing."""
    yield from ()


async def rest(app: web.Application, database: Database) -> None:
    """Waits until each connection has done what it has; then none may be in a transaction or hold the lock."""
    engine = engine_in(app)
    async with asyncio.timeout(10):
        if isinstance(engine, SqliteDatabase):
            for lane in (engine._writer, *engine._readers):
                await lane.run(nothing(), app[STATE].authenticator._unscoped.bind)
                assert not lane.connection.in_transaction
        else:
            lanes = (engine._lookups, engine._readers, engine._inserts, engine._writers)
            while tasks := [task for each in lanes for task in each._tasks]:
                await asyncio.wait(tasks)
    if isinstance(database, Path):
        with closing(writer_lock(database)) as lock:
            lock.acquire()
    else:
        assert rows(database, f"select query from pg_stat_activity where {_OURS} and xact_start is not null") == []


@asynccontextmanager
async def traced(app: web.Application, told: Callable[[str], Any]) -> AsyncIterator[None]:
    """Tells `told` of each statement as it begins: on its thread, or on the event loop, where what it returns is awaited."""
    engine = engine_in(app)
    if isinstance(engine, SqliteDatabase):
        lanes = (engine._writer, *engine._readers)
        for lane in lanes:
            await lane.connection.set_trace_callback(told)
        yield
        for lane in lanes:
            await lane.connection.set_trace_callback(None)  # type: ignore[arg-type]  # what sqlite3 takes to end it
        return

    def watched(method: Any) -> Any:
        async def run(self: Any, query: str, *arguments: Any, **more: Any) -> Any:
            if inspect.isawaitable(waiting := told(query)):
                await waiting
            return await method(self, query, *arguments, **more)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for name in ("execute", "fetch", "fetchrow", "fetchval", "fetchmany"):
            patch.setattr(asyncpg.Connection, name, watched(getattr(asyncpg.Connection, name)))
        yield


# Inside the engine. Whoever runs the tests may hook into it; so may a process of theirs that is to die there.

Patch = Callable[[Any, str, Any], None]
# is told the name of a query that was run, or "commit" before a commit and "committed" after it; what it raises is what
# the storage raises, and on PostgreSQL, where it is called on the event loop, what it returns is awaited
Then = Callable[[str], Any]


def watch(patch: Patch, then: Then) -> None:
    """Tells `then` of all that either engine does from now on in this process."""
    _watch_sqlite(patch, then)
    _watch_postgresql(patch, then)


def _watch_sqlite(patch: Patch, then: Then) -> None:
    execute, commit = sqlite._execute, sqlite._commit

    class Watched:
        def __init__(self, connection: sqlite3.Connection) -> None:
            self._connection = connection

        def __getattr__(self, name: str) -> Any:
            return getattr(self._connection, name)

        def execute(self, sql: str, *parameters: Any) -> Any:
            if sql == "commit":
                then("commit")
            found = self._connection.execute(sql, *parameters)
            if sql == "commit":
                then("committed")
            return found

    def watched(connection: Any, statement: Any) -> Any:
        found = execute(connection, statement)
        then(statement[0].name)
        return found

    patch(sqlite, "_execute", watched)
    patch(sqlite, "_commit", lambda lock, jobs, connection: commit(lock, jobs, Watched(connection)))  # type: ignore[arg-type]


def _watch_postgresql(patch: Patch, then: Then) -> None:
    run, read_each, write_each = PostgresqlQuery.run, PostgresqlQuery.read_each, PostgresqlQuery.write_each
    execute = asyncpg.Connection.execute

    async def told(*names: str) -> None:
        for name in names:
            if inspect.isawaitable(waiting := then(name)):
                await waiting

    async def watched(self: Any, *arguments: Any) -> Any:
        found = await run(self, *arguments)
        await told(*self.names)
        return found

    async def watched_reads(self: Any, connection: Any, asked: Any, measure: Any) -> Any:
        found = await read_each(self, connection, asked, measure)
        # else it was run, and told of there
        if asked[0][0] is not None and not self.writes:
            await told(*self.names)
        return found

    async def watched_inserts(self: Any, connection: Any, asked: Any) -> Any:
        # what it inserts is committed in the same round trip
        await told(*self.names)
        await told("commit")
        made = await write_each(self, connection, asked)
        await told("committed")
        return made

    async def commits(self: Any, query: str, *arguments: Any, **more: Any) -> Any:
        if query.startswith("commit"):
            await told("commit")
        found = await execute(self, query, *arguments, **more)
        if query.startswith("commit"):
            await told("committed")
        return found

    patch(PostgresqlQuery, "run", watched)
    patch(PostgresqlQuery, "read_each", watched_reads)
    patch(PostgresqlQuery, "write_each", watched_inserts)
    patch(asyncpg.Connection, "execute", commits)


def watched_turns(patch: Patch) -> list[list[str | None]]:
    """For each round trip to PostgreSQL that reads or inserts from now on, whose queries it takes."""
    turns: list[list[str | None]] = []

    def watched(really: Any) -> Any:
        async def run(self: Any, connection: Any, asked: Any, *more: Any) -> Any:
            turns.append([tenant_id for tenant_id, _ in asked])
            return await really(self, connection, asked, *more)

        return run

    for name in ("read_each", "write_each"):
        patch(PostgresqlQuery, name, watched(getattr(PostgresqlQuery, name)))
    return turns


def disk_full(database: Database) -> Exception:
    """What a driver raises on a disk that is full."""
    if isinstance(database, str):
        return asyncpg.DiskFullError("could not extend file: No space left on device")
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


def paused_until(go: threading.Event) -> Any:
    """Waits for `go`, for five seconds at the most: at once on a thread; on the event loop what is returned does."""

    async def wait() -> None:
        async with asyncio.timeout(5):
            while not go.is_set():  # noqa: ASYNC110  # it is set from elsewhere
                await asyncio.sleep(0.001)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        go.wait(5)
        return None
    return wait()
