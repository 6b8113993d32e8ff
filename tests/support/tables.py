"""All that is stored, as tables of rows: read whole, compared, and put back."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg

from service.storage.lock import writer_lock
from service.storage.sqlite import connect
from tests.support.storage import Database

Rows = list[dict[str, Any]]
Cursor = sqlite3.Cursor | psycopg.Cursor[Any]

# in an order in which nothing is referred to before it is there
TABLES = ("tenants", "api_keys", "tools", "agent_ids", "agents", "agent_tools", "runs", "run_counts", "kept_answers")
_COUNTED = ("api_keys", "tools", "agent_ids", "runs")


def tables(database: Database) -> dict[str, Rows]:
    """All rows of all tables, as a connection of its own sees them."""
    with _opened(database) as cursor:
        return {table: _rows(cursor, table) for table in TABLES}


def put_back(database: Database, before: Mapping[str, Rows]) -> None:
    """Makes the tables what they were, and the next ids with them. A server may run, which writes nothing meanwhile."""
    with _opened(database) as cursor:
        for table in reversed(TABLES):
            cursor.execute(f"delete from {table}")
        for table in TABLES:
            # the triggers on runs count them
            for row in before[table] if table != "run_counts" else ():
                _run(cursor, f"insert into {table} ({', '.join(row)}) values ({', '.join('?' * len(row))})", [*row.values()])
        assert _rows(cursor, "run_counts") == before["run_counts"]
        _restart(cursor)


def restart_ids(database: Database) -> None:
    """Lets each next id be the one behind those that are there: PostgreSQL uses some up for what is undone."""
    with _opened(database) as cursor:
        _restart(cursor)


@contextmanager
def _opened(database: Database) -> Iterator[Cursor]:
    """A cursor within a transaction of its own."""
    if isinstance(database, Path):
        with closing(writer_lock(database)) as lock, closing(connect(database)) as connection:
            lock.acquire(5.0)
            connection.execute("pragma synchronous = off")
            cursor = connection.cursor()
            cursor.execute("begin immediate")
            yield cursor
            cursor.execute("commit")
    else:
        with psycopg.connect(database) as served, served.cursor() as cursor_there:
            yield cursor_there


def _rows(cursor: Cursor, table: str) -> Rows:
    cursor.execute(f"select * from {table}")
    names = [column[0] for column in cursor.description or ()]
    return sorted((dict(zip(names, row, strict=True)) for row in cursor.fetchall()), key=repr)


def _restart(cursor: Cursor) -> None:
    for table in _COUNTED:
        (last,) = (cursor.execute(f"select coalesce(max(id), 0) from {table}") or cursor).fetchone() or (0,)
        if isinstance(cursor, sqlite3.Cursor):
            cursor.execute("update sqlite_sequence set seq = ? where name = ?", (last, table))
        else:
            cursor.execute("select setval(%s::regclass, %s, %s)", (f"{table}_id_seq", max(1, last), last > 0))


def _run(cursor: Cursor, sql: str, parameters: Sequence[Any]) -> None:
    if isinstance(cursor, sqlite3.Cursor):
        cursor.execute(sql, parameters)
    else:
        cursor.execute(sql.replace("?", "%s").encode(), parameters)
