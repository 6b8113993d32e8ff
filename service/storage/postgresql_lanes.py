"""The queues in front of a few connections: each tenant has its own, and whoever has waited longest is served next.

Two kinds of lanes: those where a turn is one tenant's, and those where what is short, whoever's it is, shares a turn.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import asyncpg

from service.errors import Unavailable
from service.storage.postgresql_errors import PASSING, meant
from service.storage.scope import Bind
from service.storage.units import Ask, Together, Unit

_LARGEST_BATCH = 64
# how many characters may go to or fro in a turn that is shared: half a megabyte at the most, as UTF-8
MOST_CHARACTERS = 128 * 1024


@dataclass(slots=True, eq=False)
class Job:
    """A unit that waits for its connection, and where its result goes."""

    unit: Unit[Any]
    bind: Bind
    # whose it is, None for what belongs to no tenant
    tenant_id: str | None
    answer: asyncio.Future[Any]
    # what it asks for now; None before it has begun, and when it has ended
    asked: Ask | Together | None = None
    # how many characters it takes of a turn that it shares, as far as is known
    characters: int = 1
    # since when it waits, by the loop's clock, where that is asked for
    since: float = 0.0

    def go_on(self, answer: Any = None) -> None:
        """Gives the unit what it has asked for, at first nothing: it asks for more, or ends, and whoever waits is told."""
        self.asked = None
        try:
            self.asked = self.unit.send(answer)
        except StopIteration as stop:
            self.succeed(stop.value)
        except Exception as error:
            self.fail(error)

    def succeed(self, answer: Any) -> None:
        """Tells whoever still waits."""
        if not self.answer.done():
            self.answer.set_result(answer)

    def fail(self, error: Exception) -> None:
        """Tells whoever still waits, in the storage's own words where it has some."""
        if not self.answer.done():
            self.answer.set_exception(meant(error))


# drives jobs, one at least, to their ends, and answers each; the connection may be in a transaction that is empty yet,
# before and after
Work = Callable[[asyncpg.Connection, list[Job]], Awaitable[None]]


class Lanes:
    """Up to `most` connections at work, each for another tenant, or with `is_shared` for several: a round trip costs most.

    Behind work that takes longer than `slow` seconds another one steps in for the same tenant; never, where that is None.
    """

    def __init__(
        self, pool: asyncpg.Pool, most: int, patience: float, work: Work, slow: float | None, *, is_shared: bool = False
    ) -> None:
        self._pool = pool
        self._most = most
        self._patience = patience
        self._work = work
        self._slow = slow
        self._is_shared = is_shared
        self._waiting: OrderedDict[str | None, list[Job]] = OrderedDict()
        # since when, by the loop's clock
        self._served: dict[str | None, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        # hears how many jobs each transaction is given
        self.tell: Callable[[int], object] | None = None

    def run(self, job: Job) -> None:
        """Queues a job, which is then done whole or not at all, though its caller is cancelled. Raises Unavailable."""
        if self._closing:
            raise Unavailable
        self._waiting.setdefault(job.tenant_id, []).append(job)
        if self._is_free(job.tenant_id):
            self._begin()

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
                    await self._serve(connection, taken)
                await _leave(connection)
        except Exception as error:
            # no connection is to be had: who waits is told so, and who comes next tries again
            while (taken := self._next()) is not None:
                _refuse(taken, error)
        # now, and not a moment later when the task is over: who came while the connections were given back found all of
        # them at work, and would wait until somebody else comes
        self._tasks.discard(asyncio.current_task())
        if any(map(self._is_free, self._waiting)):
            self._begin()

    async def _serve(self, connection: asyncpg.Connection, jobs: list[Job]) -> None:
        whose = {job.tenant_id for job in jobs}
        self._served.update(dict.fromkeys(whose, asyncio.get_running_loop().time()))
        try:
            # whoever gave up while queueing has nothing done
            if jobs:
                if self.tell is not None:
                    self.tell(len(jobs))
                await self._work(connection, jobs)
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
            for tenant_id in whose:
                self._served.pop(tenant_id, None)

    def _next(self) -> list[Job] | None:
        """The jobs of the tenant that has waited longest, if there is one that nobody works for; and of others behind it.

        None are left of those who gave up.
        """
        free = [tenant_id for tenant_id in self._waiting if self._is_free(tenant_id)]
        if not free:
            return None
        taken: list[Job] = []
        characters = 0
        for tenant_id in free if self._is_shared else free[:1]:
            waiting = self._waiting.pop(tenant_id)
            for number, job in enumerate(waiting):
                characters += job.characters
                if len(taken) == _LARGEST_BATCH or (self._is_shared and taken and characters > MOST_CHARACTERS):
                    self._waiting[tenant_id] = waiting[number:]
                    # who had a part of this turn goes behind the others, who had none is first in the next one
                    self._waiting.move_to_end(tenant_id, last=number > 0)
                    return taken
                if not job.answer.done():
                    taken.append(job)
        return taken

    def _is_free(self, tenant_id: str | None) -> bool:
        since = self._served.get(tenant_id)
        return since is None or (self._slow is not None and asyncio.get_running_loop().time() - since > self._slow)


def _refuse(jobs: list[Job], error: Exception) -> None:
    for job in jobs:
        job.fail(error)


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
