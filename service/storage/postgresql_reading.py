"""How units that read are driven on a connection to PostgreSQL: what is asked alike is asked in one round trip.

What looks a few rows up, whoever's they are, shares a transaction: each query says first for which tenant it is, and nothing
is read before (postgresql_queries.py). What may take longer has one of its tenant's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from service.storage.postgresql_errors import PASSING
from service.storage.postgresql_lanes import Job
from service.storage.postgresql_queries import PostgresqlQuery, Statements
from service.storage.postgresql_transactions import begin


class Reading:
    """The two kinds of work of lanes that read."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    async def look_up(self, connection: asyncpg.Connection, jobs: list[Job]) -> None:
        """Answers jobs of any tenants, each of one query. What the database says of one is nobody else's."""
        alike: dict[PostgresqlQuery, list[_Asked]] = {}
        for job in jobs:
            if (asked := self._bound(job)) is not None:
                alike.setdefault(asked.statement, []).append(asked)
        for statement, asking in alike.items():
            try:
                await _answer(connection, statement, asking)
            except asyncpg.PostgresError as error:
                if isinstance(error, PASSING):
                    raise
                # which of them it was, each finds out by itself
                for each in asking:
                    try:
                        await _answer(connection, statement, [each])
                    except asyncpg.PostgresError as its_own:
                        each.job.fail(its_own)

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
            await _answer(connection, statement, together)
            for each in together:
                if (asked := self._bound(each.job, jobs)) is not None:
                    waiting.append(asked)

    def _bound(self, job: Job, jobs: list[Job] | None = None) -> "_Asked | None":
        """What the unit asks for now; None where it has ended, and is no longer one of `jobs`."""
        if job.asked is not None:
            try:
                statement, values = self._statements.of(job)
            except Exception as error:
                job.fail(error)
            else:
                return _Asked(job, statement, values, job.asked.is_last)
        if jobs is not None:
            # its answer may be large, and is not held until the others have theirs
            jobs.remove(job)
        return None


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """What a unit asks for and waits for."""

    job: Job
    statement: PostgresqlQuery
    values: Mapping[str, Any]
    is_last: bool


async def _answer(connection: asyncpg.Connection, statement: PostgresqlQuery, asking: Sequence[_Asked]) -> None:
    """Asks the same for each of them, and gives each its answer."""
    answers = await statement.read_each(connection, [(each.job.tenant_id, each.values) for each in asking])
    for each, answer in zip(asking, answers, strict=True):
        each.job.go_on(answer)
        if each.is_last and each.job.asked is not None:
            each.job.asked = None
            each.job.fail(RuntimeError("A unit asked for more after what it called its last query."))
