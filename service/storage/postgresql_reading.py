"""How units that read are driven on a connection to PostgreSQL: what is asked alike is asked in one round trip.

What looks a few rows up, whoever's they are, shares a transaction: each query says first for which tenant it is, and nothing
is read before (postgresql_queries.py). What may take longer has one of its tenant's.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from service.storage.postgresql_errors import LOST, PASSING
from service.storage.postgresql_lanes import Job
from service.storage.postgresql_queries import PostgresqlQuery, Statements
from service.storage.postgresql_transactions import begin

# characters: a row of fewer costs as much, for what is around it
_SHORTEST = 1024
# for so many seconds
_REMEMBERED = 60.0
_MOST_KNOWN = 10_000


class Reading:
    """The two kinds of work of lanes that read.

    `sizes` hears how long each tenant's rows are; `again` takes jobs that could not share a transaction.
    """

    def __init__(self, statements: Statements, sizes: "Sizes", again: Callable[[Job], None]) -> None:
        self._statements = statements
        self._sizes = sizes
        self._again = again

    async def look_up(self, connection: asyncpg.Connection, jobs: list[Job]) -> None:
        """Answers jobs of any tenants, each of one query. What is wrong with one, or takes too long, is nobody else's."""
        for statement, bound in self._statements.alike(jobs).items():
            asking = [_Asked(job, statement, values, is_last=True) for job, values in bound]
            try:
                await self._answer(connection, statement, asking)
            except LOST:
                raise
            except asyncpg.PostgresError as error:
                if len(asking) == 1:
                    asking[0].job.fail(error)
                elif isinstance(error, PASSING):
                    for each in asking:
                        self._again(each.job)
                else:
                    # which of them it was, each finds out by itself
                    for each in asking:
                        await self._answer_alone(connection, each)

    async def _answer_alone(self, connection: asyncpg.Connection, asked: "_Asked") -> None:
        try:
            await self._answer(connection, asked.statement, [asked])
        except asyncpg.PostgresError as error:
            asked.job.fail(error)

    async def read(self, connection: asyncpg.Connection, jobs: list[Job]) -> None:
        """Runs jobs of one tenant to their ends. What the database raises is told to all: their transaction is lost."""
        tenant_id = jobs[0].tenant_id
        waiting = [asked for job in jobs.copy() if (asked := self._bound(job, jobs)) is not None]
        if tenant_id is not None:
            # one query sees one state whatever the transaction
            alone = [each for each in waiting if each.is_last and not each.statement.writes]
            waiting = [each for each in waiting if each not in alone]
            await self._read_in_step(connection, jobs, alone)
        if waiting:
            start = "begin isolation level repeatable read read only"
            if tenant_id is None or waiting[0].statement.writes:
                await begin(connection, start, "reads", tenant_id)
            else:
                # the first query says for whom it is
                await connection.execute(start)
            await self._read_in_step(connection, jobs, waiting)
            await connection.execute("rollback")

    async def _read_in_step(self, connection: asyncpg.Connection, jobs: list[Job], waiting: list["_Asked"]) -> None:
        """Runs units of one tenant to their ends: what they ask alike, they ask together. See `read`."""
        while waiting:
            statement = waiting[0].statement
            together = [each for each in waiting if each.statement is statement] if statement.is_small else waiting[:1]
            # the caller's list too, so that no answer is held by it
            waiting[:] = [each for each in waiting if each not in together]
            await self._answer(connection, statement, together)
            for each in together:
                if (asked := self._bound(each.job, jobs)) is not None:
                    waiting.append(asked)

    async def _answer(self, connection: asyncpg.Connection, statement: PostgresqlQuery, asking: Sequence["_Asked"]) -> None:
        """Asks the same for each of them, and gives each its answer."""
        asked = [(each.job.tenant_id, each.values) for each in asking]
        answers = await statement.read_each(connection, asked, self._sizes.measure)
        for each, answer in zip(asking, answers, strict=True):
            each.job.go_on(answer)
            if each.is_last and each.job.asked is not None:
                each.job.asked = None
                each.job.fail(RuntimeError("A unit asked for more after what it called its last query."))

    def _bound(self, job: Job, jobs: list[Job]) -> "_Asked | None":
        """What the unit asks for now; None where it has ended, and is no longer one of `jobs`."""
        if job.asked is not None:
            try:
                statement, values = self._statements.of(job)
            except Exception as error:
                job.fail(error)
            else:
                return _Asked(job, statement, values, job.asked.is_last)
        # its answer may be large, and is not held until the others have theirs
        jobs.remove(job)
        return None


class Sizes:
    """How long the rows of each tenant are, as far as its requests have shown: who has long ones shares with nobody.

    The longest counts that was seen since the tenant is known. After a minute it is not known any more, and looked at anew.
    """

    def __init__(self) -> None:
        # characters, and until when by the loop's clock; the oldest first
        self._known: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def of(self, tenant_id: str) -> int | None:
        """How many characters a row of the tenant's has, about; None where nobody has looked lately."""
        known = self._known.get(tenant_id)
        if known is not None and known[1] > self._now():
            return known[0]
        self._known.pop(tenant_id, None)
        return None

    def measure(self, tenant_id: str, rows: Sequence[Sequence[Any]]) -> None:
        """Takes a look at what one query has found."""
        if rows:
            texts = (value for row in rows for value in row if isinstance(value, str))
            self.note(tenant_id, sum(map(len, texts)) // len(rows))

    def note(self, tenant_id: str, characters: int) -> None:
        """Remembers how long a row is."""
        known = self._known.get(tenant_id)
        # the clock is not looked at for each row that is as short as all of them
        if known is None or characters > known[0]:
            self._known[tenant_id] = (max(characters, _SHORTEST), self._now() + _REMEMBERED)
            self._known.move_to_end(tenant_id)
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """What a unit asks for and waits for."""

    job: Job
    statement: PostgresqlQuery
    values: Mapping[str, Any]
    is_last: bool
