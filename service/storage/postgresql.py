"""PostgreSQL: the same units of work over a pool of connections, each query held to one tenant by row-level security.

A round trip costs more than what it asks for, mostly, so what has queued up while the connections were busy shares the next
one. Four kinds of work have their own connections, so that none waits for a slower one: what looks a few rows up or inserts
one shares a transaction whoever's it is; what reads more, and what writes otherwise, has one of its tenant's. How each is
driven say postgresql_reading.py and postgresql_writing.py, who is next postgresql_lanes.py.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

import asyncpg

from service.errors import Unavailable
from service.storage.migrations import MigrationError
from service.storage.postgresql_errors import PASSING
from service.storage.postgresql_lanes import Job, Lanes
from service.storage.postgresql_queries import Statements
from service.storage.postgresql_reading import Reading, Sizes
from service.storage.postgresql_transactions import PREPARED
from service.storage.postgresql_writing import Writing
from service.storage.queries import Query
from service.storage.scope import Bind
from service.storage.units import Ask, T, Together, Unit

# how many connections look few rows up, read what may take longer, insert, and write; each process has as many
_LOOKUPS = 2
_READERS = 2
_INSERTS = 1
_WRITERS = 3
CONNECTIONS = _LOOKUPS + _READERS + _INSERTS + _WRITERS
# what has so many characters shares no turn
_LONG = 32 * 1024
# a tenant's read that takes longer than this, in seconds, lets its others pass
_SLOW = 0.005
# seconds for a connection to be made, and for a statement to be answered: from a server that has fallen silent to the next
# one it takes no longer than five
_PATIENCE = 4.0

# any number, but always this one: who holds it does what one process at a time is to do (pg_try_advisory_lock)
_TURN = 7204

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
    # before a statement's time is over: what the server refuses is known not to be done
    "lock_timeout": "2000",
}


class PostgresqlDatabase:
    """A migrated database, open. Made by `open`, closed by `close`."""

    def __init__(self, queries: Mapping[str, Query], pool: asyncpg.Pool) -> None:
        self.queries = queries
        self._pool = pool
        self._statements = Statements(queries)
        self._sizes = Sizes()
        reading = Reading(self._statements, self._sizes, again=lambda job: self._readers.run(job))
        writing = Writing(
            self._statements,
            has_more=lambda tenant_id: self._writers.has_more(tenant_id),
            again=lambda job: self._writers.run(job),
        )
        self._lookups = Lanes(pool, _LOOKUPS, _PATIENCE, reading.look_up, _SLOW, is_shared=True)
        self._readers = Lanes(pool, _READERS, _PATIENCE, reading.read, _SLOW)
        # one transaction at a time writes for a tenant
        self._inserts = Lanes(pool, _INSERTS, _PATIENCE, writing.insert, None, is_shared=True)
        self._writers = Lanes(pool, _WRITERS, _PATIENCE, writing.commit, None)

    @classmethod
    async def open(cls, url: str, queries: Mapping[str, Query], patience: float = _PATIENCE) -> "PostgresqlDatabase":
        """Connects to the database at `url`, which has been migrated; a statement may take `patience` seconds.

        Raises Unavailable where it does not answer, MigrationError where the user may not become what it has to become.
        """
        try:
            pool = await asyncpg.create_pool(
                url,
                min_size=1,
                max_size=CONNECTIONS,
                timeout=_PATIENCE,
                command_timeout=patience,
                statement_cache_size=256,
                max_cached_statement_lifetime=0,
                # sooner than our own time is over: what the server ends is known not to be done
                server_settings=_SETTINGS | {"statement_timeout": str(round(patience * 875))},
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
        self._inserts.tell = self._writers.tell = tell

    def waiting_writes(self) -> int:
        """How many units of work wait for a connection that writes."""
        return self._inserts.waiting + self._writers.waiting

    async def check(self) -> None:
        """Nothing more than what a query shows."""

    async def close(self) -> None:
        """Finishes what is queued, refuses what comes, and closes the connections."""
        for lanes in (self._lookups, self._readers, self._inserts, self._writers):
            await lanes.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self._pool.close()

    def read(self, unit: Unit[T], bind: Bind, tenant_id: str | None) -> asyncio.Future[T]:
        """Runs a unit that only reads, on one state of the database."""
        job = self._begun(unit, bind, tenant_id)
        if job.asked is not None:
            (self._lookups if self._looks_up(job) else self._readers).run(job)
        return job.answer

    def write(self, unit: Unit[T], bind: Bind, tenant_id: str | None) -> asyncio.Future[T]:
        """Runs a unit as one transaction and answers when it is on disk: commits are shared with what came meanwhile."""
        job = self._begun(unit, bind, tenant_id)
        if job.asked is not None:
            (self._inserts if self._inserts_one(job) else self._writers).run(job)
        return job.answer

    def _begun(self, unit: Unit[T], bind: Bind, tenant_id: str | None) -> Job:
        """A job whose unit has said what it asks for first. One that asks for nothing has done nothing, and is answered."""
        job = Job(unit, bind, tenant_id, asyncio.get_running_loop().create_future())
        job.go_on()
        return job

    def _looks_up(self, job: Job) -> bool:
        """Is it one query of a tenant's that looks at few and short rows, however many there are?"""
        if isinstance(job.asked, Together):
            rows = job.asked.rows
        else:
            statement = self._statements.only(job)
            rows = 1 if statement is not None and statement.finds_one else None
        if job.tenant_id is None or rows is None:
            return False
        # who is not known yet is looked at by itself first
        job.characters = rows * (self._sizes.of(job.tenant_id) or _LONG)
        return job.characters < _LONG

    def _inserts_one(self, job: Job) -> bool:
        """Is it one query of a tenant's that inserts a row that is not long, wherever it is told to?"""
        statement = self._statements.only(job)
        if job.tenant_id is None or statement is None or not statement.enters or not isinstance(job.asked, Ask):
            return False
        job.characters = sum(len(value) for value in job.asked.parameters.values() if isinstance(value, str))
        job.since = asyncio.get_running_loop().time()
        # what is written will be read
        self._sizes.note(job.tenant_id, job.characters)
        return job.characters < _LONG


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


async def _make_ready(connection: asyncpg.Connection) -> None:
    """Gives it a role that owns nothing and sees nothing until the transaction says for which tenant."""
    await connection.execute(f"{PREPARED}; set role agent_platform_tenant")


async def _leave_as_it_is(connection: asyncpg.Connection) -> None:
    pass
