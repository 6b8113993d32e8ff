"""The queues in front of a few connections: each tenant has its own, and whoever has waited longest is served next."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import asyncpg

from service.errors import Unavailable
from service.storage.postgresql_errors import PASSING, meant
from service.storage.scope import Bind
from service.storage.units import T, Unit

_LARGEST_BATCH = 64


@dataclass(slots=True)
class Job:
    """A unit that waits for its connection, and where its result goes."""

    unit: Unit[Any]
    bind: Bind
    answer: asyncio.Future[Any]


# drives the jobs of one tenant, None for what belongs to none, in one transaction, answers each, and ends it; the connection
# may be in a transaction that is empty yet, before and after
Work = Callable[[asyncpg.Connection, str | None, list[Job]], Awaitable[None]]


class Lanes:
    """Up to `most` connections at work, each for another tenant: what shares a transaction costs least.

    Behind work that takes longer than `slow` seconds another one steps in for the same tenant; never, where that is None.
    """

    def __init__(self, pool: asyncpg.Pool, most: int, patience: float, work: Work, slow: float | None) -> None:
        self._pool = pool
        self._most = most
        self._patience = patience
        self._work = work
        self._slow = slow
        self._waiting: OrderedDict[str | None, list[Job]] = OrderedDict()
        # since when, by the loop's clock
        self._served: dict[str | None, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        # hears how many jobs each transaction is given
        self.tell: Callable[[int], object] | None = None

    def run(self, unit: Unit[T], bind: Bind, tenant_id: str | None) -> asyncio.Future[T]:
        """Queues a unit and promises its result. A caller that is cancelled leaves it done whole or not at all."""
        if self._closing:
            raise Unavailable
        job = Job(unit, bind, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(tenant_id, []).append(job)
        if self._is_free(tenant_id):
            self._begin()
        return job.answer

    @property
    def waiting(self) -> int:
        """How many jobs wait for a connection, or for another one of the same tenant."""
        return sum(map(len, self._waiting.values()))

    def has_more(self, served: str | None) -> bool:
        """Will whoever serves this tenant now find something to do after it?"""
        return any(tenant_id == served or self._is_free(tenant_id) for tenant_id in self._waiting)

    async def close(self) -> None:
        """Finishes what is queued, and refuses what comes."""
        self._closing = True
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _begin(self) -> None:
        if len(self._tasks) < self._most:
            self._tasks.add(asyncio.create_task(self._take_what_waits()))

    async def _take_what_waits(self) -> None:
        try:
            async with self._pool.acquire(timeout=self._patience) as connection:
                while _is_open(connection) and (taken := self._next()) is not None:
                    await self._serve(connection, *taken)
                await _leave(connection)
        except Exception as error:
            # no connection is to be had: who waits is told so, and who comes next tries again
            while (taken := self._next()) is not None:
                _refuse(taken[1], error)
        # now, and not a moment later when the task is over: who came while the connections were given back found all of
        # them at work, and would wait until somebody else comes
        self._tasks.discard(asyncio.current_task())
        if any(map(self._is_free, self._waiting)):
            self._begin()

    async def _serve(self, connection: asyncpg.Connection, tenant_id: str | None, jobs: list[Job]) -> None:
        self._served[tenant_id] = asyncio.get_running_loop().time()
        try:
            # whoever gave up while queueing has nothing done
            if jobs:
                if self.tell is not None:
                    self.tell(len(jobs))
                await self._work(connection, tenant_id, jobs)
        except Exception as error:
            _refuse(jobs, error)
            if isinstance(error.__cause__ or error, OSError):
                # nobody answers there: what was connected before may wait in vain, too (TimeoutError is an OSError)
                if _is_open(connection):
                    connection.terminate()
                await self._pool.expire_connections()
            else:
                await _leave(connection)
        finally:
            self._served.pop(tenant_id, None)

    def _next(self) -> tuple[str | None, list[Job]] | None:
        """The jobs of the tenant that has waited longest, if there is one that nobody works for."""
        for tenant_id in self._waiting:
            if self._is_free(tenant_id):
                waiting = self._waiting.pop(tenant_id)
                if rest := waiting[_LARGEST_BATCH:]:
                    self._waiting[tenant_id] = rest
                return tenant_id, [job for job in waiting[:_LARGEST_BATCH] if not job.answer.done()]
        return None

    def _is_free(self, tenant_id: str | None) -> bool:
        since = self._served.get(tenant_id)
        return since is None or (self._slow is not None and asyncio.get_running_loop().time() - since > self._slow)


def _refuse(jobs: list[Job], error: Exception) -> None:
    for job in jobs:
        if not job.answer.done():
            job.answer.set_exception(meant(error))


def _is_open(connection: asyncpg.Connection) -> bool:
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:
        # it broke, and the pool has taken it back already
        return False


async def _leave(connection: asyncpg.Connection) -> None:
    """Ends a transaction that has not ended, and the connection where that fails: it can't be told what state it is in."""
    try:
        if _is_open(connection) and connection.is_in_transaction():
            await connection.execute("rollback")
    except (*PASSING, asyncpg.PostgresError):
        if _is_open(connection):
            connection.terminate()
