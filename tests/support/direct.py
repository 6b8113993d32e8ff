"""A database looked at and written to beside the service, on either engine: past its queries, scopes and roles."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg

from service.storage.scope import Scope
from service.storage.sqlite import connect
from service.storage.units import Row, Unit, ask
from service.times import utc_now

# what a database raises that refuses a row
REFUSED = (sqlite3.IntegrityError, psycopg.IntegrityError, psycopg.DataError)
_VARIABLE = re.compile(r"(?<![:\w]):(\w+)")


class Direct:
    """An open connection as the database's owner, which commits each statement. Parameters are named, as in :name."""

    def __init__(self, connection: "sqlite3.Connection | psycopg.Connection[Any]") -> None:
        self._connection = connection

    def run(self, sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Runs one statement, and gives the rows that it answers with."""
        if isinstance(self._connection, sqlite3.Connection):
            return self._connection.execute(sql, parameters).fetchall()
        # a sign of per cent would be a parameter's
        cursor = self._connection.execute(_VARIABLE.sub(r"%(\1)s", sql.replace("%", "%%")).encode(), parameters)
        return cursor.fetchall() if cursor.description else []

    def add(self, table: str, **row: Any) -> None:
        """Inserts one row."""
        self.run(f"insert into {table} ({', '.join(row)}) values ({', '.join(f':{name}' for name in row)})", **row)

    def tables(self) -> list[str]:
        """The names of the service's own tables."""
        if isinstance(self._connection, sqlite3.Connection):
            names = self.run("select name from sqlite_master where type = 'table' and name not like 'sqlite_%'")
        else:
            names = self.run("select tablename from pg_tables where schemaname = 'public'")
        return sorted(name for (name,) in names if "yoyo" not in name)

    def contents(self) -> dict[str, list[tuple[Any, ...]]]:
        """All rows of all tables."""
        return {table: sorted(self.run(f"select * from {table}"), key=repr) for table in self.tables()}


@contextmanager
def direct(database: Path | str) -> Iterator[Direct]:
    """Opens the file or the URL."""
    if isinstance(database, Path):
        with closing(connect(database)) as embedded:
            yield Direct(embedded)
    else:
        with psycopg.connect(database, autocommit=True) as connection:
            yield Direct(connection)


def two_tools(first: str, second: str) -> Unit[Row]:
    """A unit that makes two tools, or none; it gives the second."""
    yield ask("create_tool", name=first, description="d", now=utc_now())
    made: Row = yield ask("create_tool", name=second, description="d", now=utc_now())
    return made


async def names(tenant: Scope) -> list[str]:
    """The names of all the tenant's tools, in the order of their ids."""
    rows = await tenant.many("list_tools", after=0, name=None, limit=10_000, offset=0)
    return [row["name"] for row in rows]
