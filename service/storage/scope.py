"""The tenant's view of the storage: the first lock on tenancy.

Handlers hold a Scope, never the database. It adds `tenant_id` to each query itself, and refuses the queries of
sql/unscoped.sql, which only app.py, auth.py and the command line run, through Unscoped.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from service.storage.queries import Query, Shape
from service.storage.units import Ask, Row, T, Unit, ask_last

# a query and its parameters, ready to run
Statement = tuple[Query, dict[str, Any]]
Bind = Callable[[Ask], Statement]


class OutOfScope(Exception):
    """A query that the view it was asked of may not run: a defect of ours."""


class Database(Protocol):
    """What an engine gives: its queries, and two ways to run a unit of work, for one tenant or for none."""

    queries: Mapping[str, Query]

    def read(self, unit: Unit[T], bind: Bind, tenant_id: str | None) -> Awaitable[T]: ...

    def write(self, unit: Unit[T], bind: Bind, tenant_id: str | None) -> Awaitable[T]: ...

    def watch_writes(self, tell: Callable[[int], object]) -> None:
        """From now on `tell` hears how many units of work each writing transaction takes together."""

    def waiting_writes(self) -> int:
        """How many units of work wait for a connection that writes."""

    async def check(self) -> None: ...

    async def close(self) -> None: ...


class _View(ABC):
    """Runs named queries one by one or as units of work; what may be bound is the subclass's to say."""

    __slots__ = ("_database",)

    # whose view it is
    tenant_id: str | None

    def __init__(self, database: Database) -> None:
        self._database = database

    @abstractmethod
    def bind(self, asked: Ask) -> Statement:
        """The query and its parameters, if this view may run it."""

    async def one(self, query: str, /, **parameters: Any) -> Row | None:
        """The row that `query` finds or writes, or None."""
        row: Row | None = await self._run(Shape.ONE, ask_last(query, **parameters))
        return row

    async def many(self, query: str, /, **parameters: Any) -> list[Row]:
        """All rows that `query` finds."""
        rows: list[Row] = await self._run(Shape.MANY, ask_last(query, **parameters))
        return rows

    async def value(self, query: str, /, **parameters: Any) -> Any:
        """The first column of the first row that `query` finds, or None."""
        return await self._run(Shape.VALUE, ask_last(query, **parameters))

    async def read(self, unit: Unit[T]) -> T:
        """Runs a unit of queries that only read, all on one state of the storage."""
        return await self._database.read(unit, self.bind, self.tenant_id)

    async def write(self, unit: Unit[T]) -> T:
        """Runs a unit of work as one transaction; it is stored for good when this returns."""
        return await self._database.write(unit, self.bind, self.tenant_id)

    def _run(self, shape: Shape, asked: Ask) -> Awaitable[Any]:
        query = self._query(asked.name)
        if query.shape is not shape:
            raise TypeError(f"The query {asked.name} answers with {query.shape.name}, not {shape.name}.")
        run = self._database.write if query.writes else self._database.read
        return run(_single(asked), self.bind, self.tenant_id)

    def _query(self, name: str) -> Query:
        query = self._database.queries.get(name)
        if query is None:
            raise LookupError(f"There is no query named {name}.")
        return query


class Scope(_View):
    """One tenant's view, for one request or command, and who asks: that is what the audit log has of it.

    `key_id` is the key that opened it, None for a demo key and for whoever runs the command line (`is_operator`).
    """

    __slots__ = ("_own", "key_id", "tenant_id")

    tenant_id: str

    def __init__(
        self,
        database: Database,
        tenant_id: str,
        key_id: int | None,
        request_id: str | None = None,
        *,
        is_operator: bool = False,
    ) -> None:
        super().__init__(database)
        self.tenant_id = tenant_id
        self.key_id = key_id
        actor = "operator" if is_operator else "demo" if key_id is None else "key"
        # what no caller says himself
        self._own = {"tenant_id": tenant_id, "actor": actor, "actor_key_id": key_id, "request_id": request_id}

    def bind(self, asked: Ask) -> Statement:
        """The query and its parameters, the tenant's among them, and who asks where the query wants that.

        Raises TypeError where the caller passes one of these, OutOfScope for a query of sql/unscoped.sql.
        """
        if not self._own.keys().isdisjoint(asked.parameters):
            raise TypeError("A scope adds tenant_id itself, and who asks.")
        query = self._query(asked.name)
        if not query.scoped:
            raise OutOfScope(f"The query {asked.name} belongs to no tenant.")
        own = self._own if "actor" in query.parameter_names else {"tenant_id": self.tenant_id}
        return query, _complete(query, {**own, **asked.parameters})


class Unscoped(_View):
    """What belongs to no tenant: the queries of sql/unscoped.sql and no others."""

    __slots__ = ()

    tenant_id = None

    def bind(self, asked: Ask) -> Statement:
        """The query and its parameters. Raises OutOfScope for a tenant's query."""
        query = self._query(asked.name)
        if query.scoped:
            raise OutOfScope(f"The query {asked.name} belongs to a tenant.")
        return query, _complete(query, asked.parameters)

    async def check(self) -> None:
        """Raises Unavailable where the storage is not there any more; a query alone may be answered from memory."""
        await self._database.check()


def _complete(query: Query, parameters: dict[str, Any]) -> dict[str, Any]:
    if parameters.keys() != query.parameter_names:
        raise TypeError(f"The query {query.name} takes {sorted(query.parameter_names)}, not {sorted(parameters)}.")
    return parameters


def _single(asked: Ask) -> Unit[Any]:
    return (yield asked)
