"""How units that write are driven on a connection to PostgreSQL, and when they are told that they are stored.

One transaction at a time writes for a tenant, in all processes (an advisory lock), so that a unit finds as it was what it
has looked at, and the ids and times of a tenant's runs grow together.

A unit that only inserts a row shares its transaction with those of other tenants, in one round trip. Any other one has a
transaction of its tenant's, with what has queued up for it: its end begins the next one where more is waiting, and a unit
that is alone goes without a savepoint.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import asyncpg

from service.errors import OutcomeUnknown, Unavailable
from service.storage.postgresql_errors import LOST, PASSING, meant
from service.storage.postgresql_lanes import Job
from service.storage.postgresql_queries import Statements
from service.storage.postgresql_transactions import begin
from service.storage.units import Ask

# seconds after which a job that could not share a transaction is refused, instead of waiting as long again
_LONGEST_WAIT = 2.5


class Writing:
    """The two kinds of work of lanes that write.

    `has_more` says whether more will be to do behind a tenant's transaction; `again` takes jobs that could not share one.
    """

    def __init__(self, statements: Statements, has_more: Callable[[str | None], bool], again: Callable[[Job], None]) -> None:
        self._statements = statements
        self._has_more = has_more
        self._again = again

    async def insert(self, connection: asyncpg.Connection, jobs: list[Job]) -> None:
        """Stores a row for each job, of whichever tenant, in one transaction.

        A tenant that somebody else writes for at the time, or a row that is refused, is nothing to the others: it goes
        `again`, by itself.
        """
        for statement, asking in self._statements.alike(jobs).items():
            try:
                made = await statement.write_each(connection, [(job.tenant_id, values) for job, values in asking])
            except LOST as error:
                raise OutcomeUnknown from error
            except (asyncpg.PostgresError, asyncpg.InterfaceError):
                # nothing is stored
                made = [None] * len(asking)
            now = asyncio.get_running_loop().time()
            for (job, _), row in zip(asking, made, strict=True):
                if row is not None:
                    job.go_on(row)
                elif now - job.since < _LONGEST_WAIT:
                    self._again(job)
                else:
                    job.fail(Unavailable())

    async def commit(self, connection: asyncpg.Connection, jobs: list[Job]) -> None:
        """One transaction for all jobs of a tenant, a savepoint each.

        What a unit raises is its answer; what the storage raises, everyone's.
        """
        tenant_id = jobs[0].tenant_id
        await begin(connection, "begin", "writes", tenant_id)
        waiting = jobs
        alone = len(waiting) == 1
        together = _alike(waiting)
        answers: list[tuple[Job, Any, Exception | None]] = []
        if len(together) > 1 and (written := await self._write_together(connection, tenant_id, together)):
            answers += written
            waiting = [each for each in waiting if each not in together]
        has_savepoint = False
        for job in waiting:
            if not alone:
                await connection.execute("release unit; savepoint unit" if has_savepoint else "savepoint unit")
                has_savepoint = True
            try:
                answers.append((job, await self._drive(connection, job), None))
            except Exception as error:
                if isinstance(error, (Unavailable, *PASSING)):
                    raise
                # alone, a unit that fails takes nobody's work with it
                await connection.execute("rollback" if alone else "rollback to unit")
                answers.append((job, None, error))
        if connection.is_in_transaction():
            try:
                ended = await connection.execute("commit and chain" if self._has_more(tenant_id) else "commit")
            except PASSING as error:
                raise OutcomeUnknown from error
            if ended != "COMMIT":
                raise Unavailable("A unit went on after an error that had undone it.")
        for job, answer, failure in answers:
            if failure is None:
                job.succeed(answer)
            else:
                job.fail(failure)

    async def _write_together(
        self, connection: asyncpg.Connection, tenant_id: str | None, jobs: Sequence[Job]
    ) -> list[tuple[Job, Any, None]]:
        """The answers of units that all ask for the same; none, and nothing is done, where one of them fails."""
        bound = [self._statements.of(job) for job in jobs]
        rows: list[Any] = []
        try:
            rows = await bound[0][0].run_together(connection, [values for _, values in bound])
        except asyncpg.PostgresError as error:
            if isinstance(error, PASSING):
                raise
        if len(rows) != len(jobs):
            # which of them it was, each finds out by itself
            await connection.execute("rollback")
            await begin(connection, "begin", "writes", tenant_id)
            return []
        return [(job, _result(job, row), None) for job, row in zip(jobs, rows, strict=True)]

    async def _drive(self, connection: asyncpg.Connection, job: Job) -> Any:
        """Runs a unit to its end: each query it yields is answered, or its error raised inside the unit."""
        try:
            while True:
                statement, values = self._statements.of(job)
                try:
                    answer = await statement.run(connection, values)
                except Exception as error:
                    job.asked = job.unit.throw(meant(error))
                else:
                    job.asked = job.unit.send(answer)
        except StopIteration as stop:
            return stop.value


def _alike(jobs: Sequence[Job]) -> list[Job]:
    """Those that ask for their last, and for the same query as the first of them."""
    last = [(job, job.asked) for job in jobs if isinstance(job.asked, Ask) and job.asked.is_last]
    return [job for job, asked in last if asked.name == last[0][1].name]


def _result(job: Job, answer: Any) -> Any:
    """What a unit makes of the answer to what it asked last."""
    try:
        job.unit.send(answer)
    except StopIteration as stop:
        return stop.value
    raise RuntimeError("A unit asked for more after what it called its last query.")
