"""PostgreSQL: the same units of work over a pool of connections, each transaction held to one tenant by row-level security.

What has queued up for a tenant while the connections were busy shares the next transaction: reads one state of the database,
writes one commit, a savepoint each. One transaction at a time writes for a tenant, in all processes, so that a unit finds as
it was what it has looked at, and the ids and times of a tenant's runs grow together.

A round trip costs more than what it asks for, mostly: units that read ask together what they ask alike, the end of a
transaction begins the next one where more is waiting, and a unit that is alone goes without a savepoint.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import asyncpg

from service.errors import OutcomeUnknown, Unavailable
from service.storage.migrations import MigrationError
from service.storage.postgresql_errors import PASSING, meant
from service.storage.postgresql_lanes import Job, Lanes
from service.storage.postgresql_queries import PostgresqlQuery
from service.storage.queries import Query
from service.storage.scope import Bind
from service.storage.units import Ask, T, Unit

# how many connections read, and how many write; each process has as many
_READERS = 3
_WRITERS = 5
# a tenant's read that takes longer than this, in seconds, lets its others pass
_SLOW = 0.005
# seconds for a connection to be made, and for a statement to be answered: from a server that has fallen silent to the next
# one it takes no longer than five
_PATIENCE = 4.0

# any number, but always this one: who holds it does what one process at a time is to do (pg_try_advisory_lock)
_TURN = 7204

# the tenant ends with the transaction; whoever writes for it waits until nobody else does
_PREPARED = """prepare reads(text) as select set_config('agent_platform.tenant_id', $1, true);
prepare writes(text) as select set_config('agent_platform.tenant_id', $1, true),
    pg_advisory_xact_lock(hashtextextended($1, 7203))"""
_SETTINGS = {
    "application_name": "agent-platform",
    # one plan for all values: every query has the index that it needs, and planning each time would cost more than most run
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    "standard_conforming_strings": "on",
    # and is to use it, however little there was when the plan was made: what the planner may prefer is meant for reports
    **dict.fromkeys(("enable_seqscan", "enable_bitmapscan", "enable_hashjoin", "enable_mergejoin"), "off"),
    # a connection that is cut off in the middle of a transaction lets go of its locks
    "idle_in_transaction_session_timeout": "4000",
    "lock_timeout": "5000",
}


class PostgresqlDatabase:
    """A migrated database, open. Made by `open`, closed by `close`."""

    def __init__(self, queries: Mapping[str, Query], pool: asyncpg.Pool) -> None:
        self.queries = queries
        self._pool = pool
        self._statements = {name: PostgresqlQuery(query) for name, query in queries.items()}
        self._readers = Lanes(pool, _READERS, _PATIENCE, self._read_each, _SLOW)
        # one transaction at a time writes for a tenant
        self._writers = Lanes(pool, _WRITERS, _PATIENCE, self._commit, None)

    @classmethod
    async def open(cls, url: str, queries: Mapping[str, Query], patience: float = _PATIENCE) -> "PostgresqlDatabase":
        """Connects to the database at `url`, which has been migrated; a statement may take `patience` seconds.

        Raises Unavailable where it does not answer, MigrationError where the user may not become what it has to become.
        """
        try:
            pool = await asyncpg.create_pool(
                url,
                min_size=1,
                max_size=_READERS + _WRITERS,
                timeout=_PATIENCE,
                command_timeout=patience,
                statement_cache_size=256,
                max_cached_statement_lifetime=0,
                server_settings=_SETTINGS | {"statement_timeout": str(round(patience * 1000))},
                init=_make_ready,
                # each transaction says all that it needs, and leaves nothing behind
                reset=_leave_as_it_is,
            )
        except asyncpg.InsufficientPrivilegeError as error:
            raise MigrationError(
                f"The database can't be served: {error}. Connect as the user who migrated it, or let that one run: "
                "grant agent_platform_tenant, agent_platform_operator to USER."
            ) from error
        except (*PASSING, asyncpg.PostgresError) as error:
            raise Unavailable from error
        return cls(queries, pool)

    def watch_writes(self, tell: Callable[[int], object]) -> None:
        """From now on `tell` hears how many units of work each writing transaction takes together."""
        self._writers.tell = tell

    def waiting_writes(self) -> int:
        """How many units of work wait for a connection that writes."""
        return self._writers.waiting

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

    async def _read_each(self, connection: asyncpg.Connection, tenant_id: str | None, jobs: list[Job]) -> None:
        """Each unit is answered when it ends. What the database raises is everyone's who waits: the transaction is lost."""
        waiting = [asked for job in jobs.copy() if (asked := self._advance(jobs, job, None))]
        if tenant_id is not None:
            # one query sees one state whatever the transaction
            alone = [each for each in waiting if each.is_last and not each.statement.writes]
            waiting = [each for each in waiting if each not in alone]
            await self._read_in_step(connection, tenant_id, jobs, alone)
        if waiting:
            begin = "begin isolation level repeatable read read only"
            if tenant_id is None or waiting[0].statement.writes:
                await _begin(connection, begin, "reads", tenant_id)
            else:
                # the first query says for whom it is
                await connection.execute(begin)
            await self._read_in_step(connection, tenant_id, jobs, waiting)
            await connection.execute("rollback")

    async def _read_in_step(
        self, connection: asyncpg.Connection, tenant_id: str | None, jobs: list[Job], waiting: list["_Asked"]
    ) -> None:
        """Runs units of one tenant to their ends: what they ask alike, they ask together. See read_each."""
        while waiting:
            statement = waiting[0].statement
            together = [each for each in waiting if each.statement is statement] if statement.is_small else waiting[:1]
            # the caller's list too, so that no answer is held by it
            waiting[:] = [each for each in waiting if each not in together]
            answers = await statement.read_each(connection, tenant_id, [each.parameters for each in together])
            for each, answer in zip(together, answers, strict=True):
                if asked := self._advance(jobs, each.job, answer):
                    waiting.append(asked)

    def _advance(self, jobs: list[Job], job: Job, answer: Any) -> "_Asked | None":
        """What the unit asks for after this answer; None where it has ended, and is no longer one of `jobs`."""
        try:
            asked = job.unit.send(answer)
            query, parameters = job.bind(asked)
        except StopIteration as stop:
            _answer(job, stop.value)
        except Exception as error:
            _fail(job, error)
        else:
            return _Asked(job, self._statements[query.name], parameters, asked.is_last)
        # its answer may be large, and is not held until the others have theirs
        jobs.remove(job)
        return None

    async def _commit(self, connection: asyncpg.Connection, tenant_id: str | None, jobs: list[Job]) -> None:
        """One transaction for all jobs. What a unit raises is its answer; what the storage raises, everyone's."""
        await _begin(connection, "begin", "writes", tenant_id)
        waiting = [(job, asked) for job in jobs if (asked := _first(job))]
        alone = len(waiting) == 1
        together = _alike(waiting)
        answers: list[tuple[Job, Any, Exception | None]] = []
        if len(together) > 1 and (written := await self._write_together(connection, tenant_id, together)):
            answers += written
            waiting = [each for each in waiting if each not in together]
        has_savepoint = False
        for job, asked in waiting:
            if not alone:
                await connection.execute("release unit; savepoint unit" if has_savepoint else "savepoint unit")
                has_savepoint = True
            try:
                answers.append((job, await self._drive(connection, job, asked), None))
            except Exception as error:
                if isinstance(error, (Unavailable, *PASSING)):
                    raise
                # alone, a unit that fails takes nobody's work with it
                await connection.execute("rollback" if alone else "rollback to unit")
                answers.append((job, None, error))
        if connection.is_in_transaction():
            try:
                ended = await connection.execute("commit and chain" if self._writers.has_more(tenant_id) else "commit")
            except PASSING as error:
                raise OutcomeUnknown from error
            if ended != "COMMIT":
                raise Unavailable("A unit went on after an error that had undone it.")
        for job, answer, failure in answers:
            if failure is None:
                _answer(job, answer)
            else:
                _fail(job, failure)

    async def _write_together(
        self, connection: asyncpg.Connection, tenant_id: str | None, asking: Sequence[tuple[Job, Ask]]
    ) -> list[tuple[Job, Any, None]]:
        """The answers of units that all ask for the same; none, and nothing is done, where one of them fails."""
        bound = [job.bind(asked) for job, asked in asking]
        statement = self._statements[bound[0][0].name]
        rows: list[Any] = []
        try:
            rows = await statement.run_together(connection, [parameters for _, parameters in bound])
        except asyncpg.PostgresError as error:
            if isinstance(error, PASSING):
                raise
        if len(rows) != len(asking):
            # which of them it was, each finds out by itself
            await connection.execute("rollback")
            await _begin(connection, "begin", "writes", tenant_id)
            return []
        return [(job, _result(job, row), None) for (job, _), row in zip(asking, rows, strict=True)]

    async def _drive(self, connection: asyncpg.Connection, job: Job, asked: Ask) -> Any:
        """Runs a unit to its end: each query it yields is answered, or its error raised inside the unit."""
        try:
            while True:
                query, parameters = job.bind(asked)
                try:
                    answer = await self._statements[query.name].run(connection, parameters)
                except Exception as error:
                    asked = job.unit.throw(meant(error))
                else:
                    asked = job.unit.send(answer)
        except StopIteration as stop:
            return stop.value


@asynccontextmanager
async def turn(url: str) -> AsyncIterator[bool]:
    """Is it for this process to do what one at a time is to do? For no other one, until this ends or its connection does.

    Raises Unavailable.
    """
    try:
        # not one of the pool's: what it does would wait for those
        connection = await asyncpg.connect(
            url, timeout=_PATIENCE, command_timeout=_PATIENCE, server_settings={"application_name": "agent-platform"}
        )
    except (*PASSING, asyncpg.PostgresError) as error:
        raise Unavailable from error
    try:
        try:
            is_ours: bool = await connection.fetchval("select pg_try_advisory_lock($1)", _TURN)
        except PASSING as error:
            raise Unavailable from error
        yield is_ours
    finally:
        with suppress(*PASSING):
            await connection.close(timeout=1)


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """What a unit asks for and waits for."""

    job: Job
    statement: PostgresqlQuery
    parameters: Mapping[str, Any]
    is_last: bool


async def _make_ready(connection: asyncpg.Connection) -> None:
    """Gives it a role that owns nothing and sees nothing until the transaction says for which tenant."""
    await connection.execute(f"{_PREPARED}; set role agent_platform_tenant")


async def _leave_as_it_is(connection: asyncpg.Connection) -> None:
    pass


async def _begin(connection: asyncpg.Connection, begin: str, does: str, tenant_id: str | None) -> None:
    """Begins a transaction, where the end of the last one has not, and says who `does` it: see _PREPARED."""
    who = "set local role agent_platform_operator" if tenant_id is None else f"execute {does}({_quoted(tenant_id)})"
    await connection.execute(who if connection.is_in_transaction() else f"{begin}; {who}")


def _quoted(text: str) -> str:
    """A literal of SQL, where a backslash is one: see _SETTINGS."""
    return "'" + text.replace("'", "''") + "'"


def _first(job: Job) -> Ask | None:
    """What a unit asks for first. One that asks for nothing has done nothing, and is answered."""
    try:
        return next(job.unit)
    except StopIteration as stop:
        _answer(job, stop.value)
    except Exception as error:
        _fail(job, error)
    return None


def _alike(asking: Sequence[tuple[Job, Ask]]) -> list[tuple[Job, Ask]]:
    """Those that ask for their last, and for the same query as the first of them."""
    last = [(job, asked) for job, asked in asking if asked.is_last]
    return [(job, asked) for job, asked in last if asked.name == last[0][1].name]


def _result(job: Job, answer: Any) -> Any:
    """What a unit makes of the answer to what it asked last."""
    try:
        job.unit.send(answer)
    except StopIteration as stop:
        return stop.value
    raise RuntimeError("A unit asked for more after what it called its last query.")


def _answer(job: Job, answer: Any) -> None:
    if not job.answer.done():
        job.answer.set_result(answer)


def _fail(job: Job, error: Exception) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)
