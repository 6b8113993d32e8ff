"""sql/*.sql -> named queries, read with aiosql and checked before any of them runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path

import aiosql
from aiosql.types import SQLOperationType

# the one file whose queries belong to no tenant: only app.py, auth.py and the command line run them.
UNSCOPED_FILE = "unscoped.sql"


class Shape(Enum):
    """What a query answers with; the sign stands behind its parameter list in the file."""

    MANY = ""
    ONE = "^"
    VALUE = "$"
    COUNT = "!"


_SHAPES = {
    SQLOperationType.SELECT: Shape.MANY,
    SQLOperationType.SELECT_ONE: Shape.ONE,
    SQLOperationType.SELECT_VALUE: Shape.VALUE,
    SQLOperationType.INSERT_UPDATE_DELETE: Shape.COUNT,
}


@dataclass(frozen=True)
class Query:
    """One named statement of a .sql file."""

    name: str
    sql: str
    shape: Shape
    parameters: tuple[str, ...]
    scoped: bool
    writes: bool

    @cached_property
    def parameter_names(self) -> frozenset[str]:
        return frozenset(self.parameters)

    @cached_property
    def finds_one(self) -> bool:
        """Does it look up one thing of a tenant's, by nothing but ids? It takes as long however much the tenant has."""
        is_small = self.shape in (Shape.ONE, Shape.VALUE) and not self.writes
        given = self.parameters[1:]
        return self.scoped and is_small and bool(given) and all(name.endswith("_id") for name in given)


class QueryError(Exception):
    """A .sql file that must not be served; the sentence names the file and the query."""


def load_queries(folder: Path, engine: str) -> Mapping[str, Query]:
    """Every query of every .sql file in `folder`, and in its folder named like the engine, by name.

    Raises QueryError for a name that stands twice, a shape we don't use, and a query outside unscoped.sql whose first
    declared parameter is not `tenant_id`. aiosql itself refuses a declared parameter that the text does not use, and one
    that it uses without declaring it.
    """
    found: dict[str, Query] = {}
    for file in [*sorted(folder.glob("*.sql")), *sorted((folder / engine).glob("*.sql"))]:
        try:
            loaded = aiosql.from_path(file, "sqlite3")
        except (aiosql.SQLLoadException, aiosql.SQLParseException) as error:
            raise QueryError(f"{file.name}: {error}") from error
        for name in loaded.available_queries:
            if name.endswith("_cursor"):  # aiosql adds one for each query of many rows
                continue
            query = _query(getattr(loaded, name), scoped=file.name != UNSCOPED_FILE)
            if name in found:
                raise QueryError(f"{file.name}: the query {name} stands in two places.")
            if query.scoped and query.parameters[:1] != ("tenant_id",):
                raise QueryError(f"{file.name}: the first parameter of {name} must be tenant_id.")
            if not query.scoped and "tenant_id" in query.parameters:
                raise QueryError(f"{file.name}: {name} takes a tenant_id and belongs in a scoped file.")
            found[name] = query
    return found


def _query(read: aiosql.types.QueryFn, *, scoped: bool) -> Query:
    shape = _SHAPES.get(read.operation)
    if shape is None:
        raise QueryError(f"The query {read.__name__} has a sign that is not one of ^ $ !")
    sql = read.sql.rstrip().rstrip(";")
    if ";" in sql:
        raise QueryError(f"The query {read.__name__} holds more than one statement.")
    return Query(
        name=read.__name__,
        sql=sql,
        shape=shape,
        parameters=tuple(read.parameters or ()),
        scoped=scoped,
        writes=sql.split(None, 1)[0].lower() in ("insert", "update", "delete"),
    )
