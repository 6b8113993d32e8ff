"""A named query in PostgreSQL's words, run for one set of values or for many in one round trip."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import asyncpg
import orjson

from service.storage.queries import Query, Shape

# A query that reads, for several sets of values in one round trip, which is one transaction: a row says by its number whose
# it is. Each says first for which tenant the transaction is: what a filter that looks at no row holds back is not begun
# before it has let it pass, and `offset 0` keeps apart what the query itself asks of no row.
_OF_MANY = """
with entered as materialized (select set_config('agent_platform.tenant_id', {tenant}, true))
select cast({number} as bigint) as "#", one.*
from (select * from ({sql}) as asked offset 0) as one
where (select count(*) from entered) > 0
"""
_VARIABLE = re.compile(r"(?<![:\w]):(\w+)")
# what becomes of a column, by the second word of its name
_CONVERTED: Mapping[str, Callable[[str], Any]] = {"[json]": orjson.Fragment, "[parsed]": orjson.loads}


class PostgresqlQuery:
    """A query made ready: its parameters numbered, its columns converted as their names say."""

    def __init__(self, query: Query) -> None:
        self.writes = query.writes
        # of few rows, and none of them long: many answers may be in memory at once
        self.is_small = query.shape in (Shape.ONE, Shape.VALUE) and not query.writes
        self._shape = query.shape
        self._parameters = query.parameters
        numbers = {name: f"${number}" for number, name in enumerate(query.parameters, 1)}
        self._sql = _VARIABLE.sub(lambda found: numbers[found[1]], query.sql)
        number, tenant = (f"${len(numbers) + more}" for more in (1, 2))
        self._sql_of_many = _OF_MANY.format(sql=self._sql, number=number, tenant=tenant)
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
        self, connection: asyncpg.Connection, tenant_id: str | None, asked: Sequence[Mapping[str, Any]]
    ) -> list[Any]:
        """The answer to each of `asked`, for the tenant, in a transaction of their own where none has begun."""
        if tenant_id is None or self.writes:
            return [await self.run(connection, each) for each in asked]
        arguments = [[*(each[name] for name in self._parameters), number, tenant_id] for number, each in enumerate(asked)]
        found: list[list[Any]] = [[] for _ in asked]
        for row in await connection.fetchmany(self._sql_of_many, arguments):
            found[row[0]].append(row[1] if self._shape is Shape.VALUE else self._row(row, 1))
        return found if self._shape is Shape.MANY else [rows[0] if rows else None for rows in found]

    async def run_together(self, connection: asyncpg.Connection, asked: Sequence[Mapping[str, Any]]) -> list[Any]:
        """The row that each of `asked` makes; they can't be told apart where one makes none."""
        arguments = [[each[name] for name in self._parameters] for each in asked]
        return [self._row(row, 0) for row in await connection.fetchmany(self._sql, arguments)]

    def _row(self, row: asyncpg.Record, first: int) -> dict[str, Any]:
        """The row from its column number `first` on."""
        if not self._columns:
            split = [key.partition(" ") for key in list(row.keys())[first:]]
            self._columns = [(name, _CONVERTED.get(how)) for name, _, how in split]
        return {
            name: value if convert is None or value is None else convert(value)
            for (name, convert), value in zip(self._columns, row[first:], strict=True)
        }
