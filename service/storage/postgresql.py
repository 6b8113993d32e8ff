"""PostgreSQL: the same units of work over a pool of connections, each transaction held to one tenant by row-level security.

What has queued up for a tenant while the connections were busy shares the next transaction: reads one state of the database,
writes one commit, a savepoint each. One transaction at a time writes for a tenant, in all processes, so that a unit finds as
it was what it has looked at, and the ids and times of a tenant's runs grow together.
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import asyncpg
import orjson

from service.errors import Unavailable
from service.storage.queries import Query, Shape
from service.storage.scope import Bind
from service.storage.units import ForeignKeyViolation, T, UniqueViolation, Unit

# how many connections read, and how many write; each process has as many
_READERS = 3
_WRITERS = 5
_LARGEST_BATCH = 64
# seconds for a connection to be made, and for a statement to be answered
_PATIENCE = 5.0

# the tenant ends with the transaction; whoever writes for it waits until nobody else does
_SEES = "select set_config('agent_platform.tenant_id', $1, true)"
_WRITES = "select set_config('agent_platform.tenant_id', $1, true), pg_advisory_xact_lock(hashtextextended($1, 7203))"
_SETTINGS = {
    "application_name": "agent-platform",
    # one plan for all values: every query has the index that it needs, and planning each time would cost more than most run
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    # a connection that is cut off in the middle of a transaction lets go of its locks
    "idle_in_transaction_session_timeout": "10000",
    "statement_timeout": "5000",
    "lock_timeout": "5000",
}

_VARIABLE = re.compile(r"(?<![:\w]):(\w+)")
_CONVERTED = {"json": orjson.Fragment, "parsed": orjson.loads}

# of a storage that is stopping, full, or out of reach: the same request may work soon
_PASSING = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
    asyncpg.PostgresSystemError,
    asyncpg.InternalClientError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ObjectNotInPrerequisiteStateError,
)


@dataclass(slots=True)
class _Job:
    """A unit that waits for its connection, and where its result goes."""

    unit: Unit[Any]
    bind: Bind
    answer: asyncio.Future[Any]


# drives the jobs of one tenant in one transaction, and answers each
Work = Callable[[asyncpg.Connection, str | None, list[_Job]], Awaitable[None]]


class _Lanes:
    """Up to `most` connections at work, and the queue of each tenant, None for what belongs to none."""

    def __init__(self, pool: asyncpg.Pool, most: int, work: Work, *, one_for_a_tenant: bool) -> None:
        self._pool = pool
        self._most = most
        self._work = work
        self._one_for_a_tenant = one_for_a_tenant
        self._waiting: OrderedDict[str | None, list[_Job]] = OrderedDict()
        self._served: set[str | None] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    def run(self, unit: Unit[T], bind: Bind, tenant_id: str | None) -> asyncio.Future[T]:
        """Queues a unit and promises its result. A caller that is cancelled leaves it done whole or not at all."""
        if self._closing:
            raise Unavailable
        job = _Job(unit, bind, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(tenant_id, []).append(job)
        if len(self._tasks) < self._most and not (self._one_for_a_tenant and tenant_id in self._served):
            task = asyncio.create_task(self._take_what_waits())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return job.answer

    async def close(self) -> None:
        """Finishes what is queued, and refuses what comes."""
        self._closing = True
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _take_what_waits(self) -> None:
        try:
            async with self._pool.acquire(timeout=_PATIENCE) as connection:
                while (taken := self._next()) is not None:
                    tenant_id, jobs = taken
                    self._served.add(tenant_id)
                    try:
                        await self._work(connection, tenant_id, jobs)
                    except Exception as error:
                        _refuse(jobs, error)
                    finally:
                        self._served.discard(tenant_id)
                    if connection.is_closed():
                        break
        except Exception as error:
            # no connection is to be had: who waits is told so, and who comes next tries again
            while (taken := self._next()) is not None:
                _refuse(taken[1], error)
        if self._waiting and not self._tasks - {asyncio.current_task()}:
            # what came while a broken connection was given back
            await self._take_what_waits()

    def _next(self) -> tuple[str | None, list[_Job]] | None:
        """The jobs of the tenant that has waited longest, if there is one that nobody works for."""
        for tenant_id in self._waiting:
            if not (self._one_for_a_tenant and tenant_id in self._served):
                waiting = self._waiting.pop(tenant_id)
                if rest := waiting[_LARGEST_BATCH:]:
                    self._waiting[tenant_id] = rest
                return tenant_id, [job for job in waiting[:_LARGEST_BATCH] if not job.answer.done()]
        return None


class PostgresqlDatabase:
    """A migrated database, open. Made by `open`, closed by `close`."""

    def __init__(self, queries: Mapping[str, Query], pool: asyncpg.Pool) -> None:
        self.queries = queries
        self._pool = pool
        self._statements = {name: _Statement(query) for name, query in queries.items()}
        self._readers = _Lanes(pool, _READERS, self._read_each, one_for_a_tenant=False)
        self._writers = _Lanes(pool, _WRITERS, self._commit, one_for_a_tenant=True)

    @classmethod
    async def open(cls, url: str, queries: Mapping[str, Query]) -> "PostgresqlDatabase":
        """Connects to the database at `url`, which has been migrated. Raises Unavailable where it does not answer."""
        try:
            pool = await asyncpg.create_pool(
                url,
                min_size=1,
                max_size=_READERS + _WRITERS,
                timeout=_PATIENCE,
                command_timeout=_PATIENCE,
                statement_cache_size=256,
                max_cached_statement_lifetime=0,
                server_settings=_SETTINGS,
                init=_become_nobody,
                # each transaction says all that it needs, and leaves nothing behind
                reset=_leave_as_it_is,
            )
        except (*_PASSING, asyncpg.PostgresError) as error:
            raise Unavailable from error
        return cls(queries, pool)

    async def check(self) -> None:
        """Nothing more than what a query shows."""

    async def close(self) -> None:
        """Finishes what is queued, refuses what comes, and closes the connections."""
        await self._readers.close()
        await self._writers.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self._pool.close()

    def read(self, unit: Unit[T], bind: Bind, tenant_id: str | None) -> asyncio.Future[T]:
        """Runs a unit that only reads, on one state of the database."""
        return self._readers.run(unit, bind, tenant_id)

    def write(self, unit: Unit[T], bind: Bind, tenant_id: str | None) -> asyncio.Future[T]:
        """Runs a unit as one transaction and answers when it is on disk: commits are shared with what came meanwhile."""
        return self._writers.run(unit, bind, tenant_id)

    async def _read_each(self, connection: asyncpg.Connection, tenant_id: str | None, jobs: list[_Job]) -> None:
        try:
            await connection.execute("begin isolation level repeatable read read only")
            await _enter(connection, tenant_id, _SEES)
            for job in jobs:
                try:
                    answer = await self._drive(connection, job)
                except (*_PASSING, asyncpg.PostgresError):
                    # the transaction is lost, and with it those that wait behind
                    raise
                except Exception as error:
                    _fail(job, error)
                else:
                    _answer(job, answer)
        finally:
            await _end(connection, "rollback")

    async def _commit(self, connection: asyncpg.Connection, tenant_id: str | None, jobs: list[_Job]) -> None:
        answers: list[tuple[_Job, Any, Exception | None]] = []
        try:
            await connection.execute("begin")
            await _enter(connection, tenant_id, _WRITES)
            for job in jobs:
                await connection.execute("savepoint unit")
                try:
                    answers.append((job, await self._drive(connection, job), None))
                except Exception as error:
                    if isinstance(error, (Unavailable, *_PASSING)):
                        raise
                    await connection.execute("rollback to unit")
                    answers.append((job, None, error))
            await connection.execute("commit")
        finally:
            await _end(connection, "rollback")
        for job, answer, failure in answers:
            if failure is None:
                _answer(job, answer)
            else:
                _fail(job, failure)

    async def _drive(self, connection: asyncpg.Connection, job: _Job) -> Any:
        """Runs a unit to its end: each query it yields is answered, or its error raised inside the unit."""
        unit, bind = job.unit, job.bind
        try:
            asked = next(unit)
            while True:
                query, parameters = bind(asked)
                try:
                    answer = await self._statements[query.name].run(connection, parameters)
                except Exception as error:
                    asked = unit.throw(_meant(error))
                else:
                    asked = unit.send(answer)
        except StopIteration as stop:
            return stop.value


class _Statement:
    """A query in PostgreSQL's words: its parameters numbered, its columns converted as their names say."""

    def __init__(self, query: Query) -> None:
        self._shape = query.shape
        self._parameters = query.parameters
        numbers = {name: f"${number}" for number, name in enumerate(query.parameters, 1)}
        self._sql = _VARIABLE.sub(lambda found: numbers[found[1]], query.sql)
        found = re.findall(r'"(\w+ \[(json|parsed)\])"', query.sql)
        self._converted = {name: _CONVERTED[how] for name, how in found}

    async def run(self, connection: asyncpg.Connection, parameters: Mapping[str, Any]) -> Any:
        arguments = [parameters[name] for name in self._parameters]
        if self._shape is Shape.COUNT:
            return int((await connection.execute(self._sql, *arguments)).rpartition(" ")[2])
        if self._shape is Shape.VALUE:
            return await connection.fetchval(self._sql, *arguments)
        rows = await connection.fetch(self._sql, *arguments)
        if self._shape is Shape.ONE:
            return self._row(rows[0]) if rows else None
        return [self._row(row) for row in rows]

    def _row(self, row: asyncpg.Record) -> dict[str, Any]:
        if not self._converted:
            return dict(row)
        return {
            name.partition(" ")[0]: value if value is None or name not in self._converted else self._converted[name](value)
            for name, value in row.items()
        }


async def _become_nobody(connection: asyncpg.Connection) -> None:
    """A role that owns nothing and sees nothing until the transaction says for which tenant."""
    await connection.execute("set role agent_platform_tenant")


async def _leave_as_it_is(connection: asyncpg.Connection) -> None:
    pass


async def _enter(connection: asyncpg.Connection, tenant_id: str | None, tenants: str) -> None:
    """Says in a transaction that has begun for whom it is."""
    if tenant_id is None:
        await connection.execute("set local role agent_platform_operator")
    else:
        await connection.fetchrow(tenants, tenant_id)


async def _end(connection: asyncpg.Connection, how: str) -> None:
    """Ends a transaction that has not ended, and the connection where that fails: it can't be told what state it is in."""
    try:
        if connection.is_in_transaction():
            await connection.execute(how)
    except (*_PASSING, asyncpg.PostgresError):
        connection.terminate()


def _answer(job: _Job, answer: Any) -> None:
    if not job.answer.done():
        job.answer.set_result(answer)


def _fail(job: _Job, error: Exception) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)


def _refuse(jobs: list[_Job], error: Exception) -> None:
    for job in jobs:
        _fail(job, _meant(error))


def _meant(error: Exception) -> Exception:
    """The error in the storage's own words, where it has one; else the error itself, a defect of ours."""
    if isinstance(error, asyncpg.UniqueViolationError):
        return UniqueViolation(error.constraint_name)
    if isinstance(error, asyncpg.ForeignKeyViolationError):
        return ForeignKeyViolation(error.constraint_name)
    if isinstance(error, _PASSING):
        unavailable = Unavailable()
        unavailable.__cause__ = error
        return unavailable
    return error
