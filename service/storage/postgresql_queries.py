"""A named query in PostgreSQL's words, run for one set of values or for many in one round trip."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import asyncpg
import orjson

from service.storage.postgresql_lanes import Job
from service.storage.queries import Query, Shape
from service.storage.scope import Statement
from service.storage.units import Ask, Together

# for which tenant, None for what belongs to none, and with which values
Asked = tuple[Any, Mapping[str, Any]]

# A query that reads, for several sets of values in one round trip, which is one transaction: a row says by its number whose
# it is. Each says first for which tenant it is: what a filter that looks at no row holds back is not begun before it has let
# it pass, and `offset 0` keeps apart what the query itself asks of no row.
_READ = """
with entered as materialized (select set_config('agent_platform.tenant_id', {tenant}, true))
select cast({number} as bigint) as "#", one.*
from (select * from ({sql}) as asked offset 0) as one
where (select count(*) from entered) > 0
"""
# One that inserts `from entered`, likewise: it makes nothing, and has no row, for a tenant that somebody else writes for. It
# waits for no row for long either: there are others in the same transaction. Its tables are locked before that is said.
_WRITTEN = """
with entered as materialized (
    select set_config('agent_platform.tenant_id', {tenant}, true), set_config('lock_timeout', '100', true)
    where pg_try_advisory_xact_lock(hashtextextended({tenant}, 7203))
),
made as ({sql})
select cast({number} as bigint) as "#", made.* from made
"""
# the same within a transaction that is the tenant's
_ENTERED = "with entered as (select true) {sql}"
# Values, and beside them rows: one row of nulls where there are none. A left join on nothing can be none but a loop, so that
# the rows come in the order of the query that has them.
_TOGETHER = """
select *
from (select {values}) as found
left join (select true as is_there, * from ({rows}) as listed) as beside on true
"""

_FROM_ENTERED = re.compile(r"\bfrom entered\b")
_VARIABLE = re.compile(r"(?<![:\w]):(\w+)")
# what becomes of a column, by the second word of its name
_CONVERTED: Mapping[str, Callable[[str], Any]] = {"[json]": orjson.Fragment, "[parsed]": orjson.loads}


class PostgresqlQuery:
    """A query made ready: its parameters numbered, its columns converted as their names say."""

    def __init__(self, query: Query) -> None:
        self.names: tuple[str, ...] = (query.name,)
        self.writes = query.writes
        # does it insert a row `from entered`? Then it may be one of several that say themselves for which tenant they are
        self.enters = query.writes and _FROM_ENTERED.search(query.sql) is not None
        self.finds_one = query.finds_one
        # of few rows, and none of them long: many answers may be in memory at once
        self.is_small = query.shape in (Shape.ONE, Shape.VALUE) and not query.writes
        self._shape = query.shape
        self._parameters = query.parameters
        numbers = {name: f"${number}" for number, name in enumerate(query.parameters, 1)}
        sql = _VARIABLE.sub(lambda found: numbers[found[1]], query.sql)
        self._sql = _ENTERED.format(sql=sql) if self.enters else sql
        number, tenant = (f"${len(numbers) + more}" for more in (1, 2))
        self._sql_of_many = (_WRITTEN if self.enters else _READ).format(sql=sql, number=number, tenant=tenant)
        # known when the first row is
        self._columns: list[tuple[str, Callable[[str], Any] | None]] = []

    async def run(self, connection: asyncpg.Connection, parameters: Mapping[str, Any]) -> Any:
        arguments = [parameters[name] for name in self._parameters]
        if self._shape is Shape.COUNT:
            return int((await connection.execute(self._sql, *arguments)).rpartition(" ")[2])
        if self._shape is Shape.VALUE:
            return await connection.fetchval(self._sql, *arguments)
        rows = await connection.fetch(self._sql, *arguments)
        if self._shape is Shape.ONE:
            return self._row(rows[0], 0) if rows else None
        return [self._row(row, 0) for row in rows]

    async def read_each(
        self,
        connection: asyncpg.Connection,
        asked: Sequence[Asked],
        measure: Callable[[str, Sequence[asyncpg.Record]], None],
    ) -> list[Any]:
        """The answer to each of `asked`, for its tenant, in a transaction of their own where none has begun.

        `measure` gets each tenant's rows. What writes, or belongs to no tenant, wants a transaction that has begun.
        """
        if self.writes or asked[0][0] is None:
            return [await self.run(connection, values) for _, values in asked]
        found: list[list[asyncpg.Record]] = [[] for _ in asked]
        for row in await self._run_each(connection, asked):
            found[row[0]].append(row)
        for (tenant_id, _), rows in zip(asked, found, strict=True):
            measure(tenant_id, rows)
        return [self._answer(rows) for rows in found]

    async def write_each(self, connection: asyncpg.Connection, asked: Sequence[Asked]) -> list[dict[str, Any] | None]:
        """The row that each of `asked` makes for its tenant, in a transaction of their own; None where it made none.

        It makes none for a tenant that another transaction writes for at the time. Only where it `enters`.
        """
        made: list[dict[str, Any] | None] = [None] * len(asked)
        for row in await self._run_each(connection, asked):
            made[row[0]] = self._row(row, 1)
        return made

    async def run_together(self, connection: asyncpg.Connection, asked: Sequence[Mapping[str, Any]]) -> list[Any]:
        """The row that each of `asked` makes; they can't be told apart where one makes none."""
        arguments = [[each[name] for name in self._parameters] for each in asked]
        return [self._row(row, 0) for row in await connection.fetchmany(self._sql, arguments)]

    async def _run_each(self, connection: asyncpg.Connection, asked: Sequence[Asked]) -> list[asyncpg.Record]:
        """The rows of all, each with the number of its own as its first column."""
        arguments = [
            [*(values[name] for name in self._parameters), number, tenant_id]
            for number, (tenant_id, values) in enumerate(asked)
        ]
        rows: list[asyncpg.Record] = await connection.fetchmany(self._sql_of_many, arguments)
        return rows

    def _answer(self, rows: Sequence[asyncpg.Record]) -> Any:
        """What the rows are that one set of values has found, behind their number."""
        if self._shape is Shape.MANY:
            return [self._row(row, 1) for row in rows]
        if not rows:
            return None
        return rows[0][1] if self._shape is Shape.VALUE else self._row(rows[0], 1)

    def _row(self, row: asyncpg.Record, first: int) -> dict[str, Any]:
        """The row from its column number `first` on."""
        if not self._columns:
            split = [key.partition(" ") for key in list(row.keys())[first:]]
            self._columns = [(name, _CONVERTED.get(how)) for name, _, how in split]
        return {
            name: value if convert is None or value is None else convert(value)
            for (name, convert), value in zip(self._columns, row[first:], strict=True)
        }


class Statements:
    """All queries, made ready by name; those that are asked together, when they are first."""

    def __init__(self, queries: Mapping[str, Query]) -> None:
        self._single = {name: PostgresqlQuery(query) for name, query in queries.items()}
        self._together: dict[tuple[str, ...], TogetherQuery] = {}

    def of(self, job: Job) -> tuple[PostgresqlQuery, Mapping[str, Any]]:
        """What answers what a job asks for, and the values for it. Raises what the job's `bind` raises."""
        if isinstance(job.asked, Together):
            bound = [job.bind(each) for each in job.asked.asks]
            names = tuple(query.name for query, _ in bound)
            if names not in self._together:
                self._together[names] = TogetherQuery([query for query, _ in bound])
            return self._together[names], self._together[names].joint(bound)
        if job.asked is None:
            raise RuntimeError("A unit that has ended asks for nothing.")
        query, values = job.bind(job.asked)
        return self._single[query.name], values

    def alike(self, jobs: Sequence[Job]) -> dict[PostgresqlQuery, list[tuple[Job, Mapping[str, Any]]]]:
        """Jobs by what answers what they ask for, each with its values. One that can't be bound is told so, and left out."""
        found: dict[PostgresqlQuery, list[tuple[Job, Mapping[str, Any]]]] = {}
        for job in jobs:
            try:
                statement, values = self.of(job)
            except Exception as error:
                job.fail(error)
            else:
                found.setdefault(statement, []).append((job, values))
        return found

    def only(self, job: Job) -> PostgresqlQuery | None:
        """The one query that answers a job, where it has promised to ask for nothing else."""
        return self._single.get(job.asked.name) if isinstance(job.asked, Ask) and job.asked.is_last else None


class TogetherQuery(PostgresqlQuery):
    """Several of a tenant's queries as one, see units.Together: it answers with a tuple of what they answer."""

    def __init__(self, queries: Sequence[Query]) -> None:
        *values, rows = [_jointly(number, query) for number, query in enumerate(queries)]
        self._values = len(values)
        joint = Query(
            name=" and ".join(query.name for query in queries),
            sql=_TOGETHER.format(values=", ".join(f"({value})" for value in values), rows=rows),
            shape=Shape.MANY,
            parameters=tuple(dict.fromkeys(_joint(n, name) for n, query in enumerate(queries) for name in query.parameters)),
            scoped=True,
            writes=False,
        )
        super().__init__(joint)
        self.names = tuple(query.name for query in queries)

    def joint(self, bound: Sequence[Statement]) -> dict[str, Any]:
        """The values of all queries as those of the one."""
        return {_joint(n, name): value for n, (_, values) in enumerate(bound) for name, value in values.items()}

    async def run(self, connection: asyncpg.Connection, parameters: Mapping[str, Any]) -> Any:
        rows = await connection.fetch(self._sql, *(parameters[name] for name in self._parameters))
        return self._tuple(rows, 0)

    def _answer(self, rows: Sequence[asyncpg.Record]) -> Any:
        return self._tuple(rows, 1)

    def _tuple(self, rows: Sequence[asyncpg.Record], first: int) -> tuple[Any, ...]:
        """What all queries answer: the values from column number `first` on, and behind them whether there are rows."""
        is_there = first + self._values
        return (*rows[0][first:is_there], [self._row(row, is_there + 1) for row in rows if row[is_there]])


def _jointly(number: int, query: Query) -> str:
    """The query's text with its parameters called as they are beside those of others."""
    return _VARIABLE.sub(lambda found: f":{_joint(number, found[1])}", query.sql)


def _joint(number: int, name: str) -> str:
    """What a parameter of the query with this number is called beside those of others: the tenant is the same for all."""
    return name if name == "tenant_id" else f"{name}_{number}"
