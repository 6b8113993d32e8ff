"""All that is stored, as tables of rows: read whole, compared, and put back."""

import atexit
import functools
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg

from service.storage.lock import writer_lock
from service.storage.sqlite import connect
from tests.support.storage import Database

Rows = list[dict[str, Any]]

# in an order in which nothing is referred to before it is there
TABLES = (
    "tenants",
    "api_keys",
    "tools",
    "agent_ids",
    "agents",
    "agent_tools",
    "runs",
    "run_counts",
    "usage",
    "kept_answers",
    "audit_log",
)
# kept by the triggers on runs
_KEPT = ("run_counts", "usage")
_COUNTED = ("api_keys", "tools", "agent_ids", "runs", "audit_log")
# on a server each statement has its price: it reads all tables in one, and sets all ids in one
_READ = " union all ".join(f"select '{table}', to_json(each) from {table} as each" for table in TABLES)
_RESTART = " union all ".join(
    f"select setval('{table}_id_seq', greatest(1, max(id)), coalesce(max(id), 0) > 0) from {table}" for table in _COUNTED
)
# what a tenant has in the audit log goes only with the tenant
DELETES = ("update tenants set deleted_at = created_at", *(f"delete from {table}" for table in reversed(TABLES)))


def tables(database: Database) -> dict[str, Rows]:
    """All rows of all tables, as a connection of its own sees them."""
    if isinstance(database, Path):
        with _file(database) as cursor:
            return {table: _rows(cursor, table) for table in TABLES}
    return _read(_server(database))


def put_back(database: Database, before: Mapping[str, Rows]) -> None:
    """Makes the tables what they were, and the next ids with them. A server may run, which writes nothing meanwhile."""
    given = {table: before[table] for table in TABLES if table not in _KEPT and before[table]}
    if isinstance(database, Path):
        with _file(database) as cursor:
            for statement in DELETES:
                cursor.execute(statement)
            for table, each in given.items():
                names = ", ".join(each[0])
                values = ", ".join("?" * len(each[0]))
                cursor.executemany(f"insert into {table} ({names}) values ({values})", [[*row.values()] for row in each])
            _restart(cursor)
            assert {table: _rows(cursor, table) for table in _KEPT} == {table: before[table] for table in _KEPT}
        return
    server = _server(database)
    inserts = [
        f"insert into {table} ({', '.join(each[0])}) select {', '.join(each[0])} "
        f"from json_populate_recordset(null::{table}, %s)"
        for table, each in given.items()
    ]
    with server.transaction():
        together = "; ".join([*DELETES, *inserts, _RESTART])
        psycopg.ClientCursor(server).execute(together.encode(), [json.dumps(each) for each in given.values()])
        after = _read(server)
        assert {table: after[table] for table in _KEPT} == {table: before[table] for table in _KEPT}


def restart_ids(database: Database) -> None:
    """Lets each next id be the one behind those that are there: PostgreSQL uses some up for what is undone."""
    if isinstance(database, Path):
        with _file(database) as cursor:
            _restart(cursor)
    else:
        _server(database).execute(_RESTART.encode())


@functools.cache
def _server(database: str) -> "psycopg.Connection[Any]":
    """A connection that is kept for the next time."""
    connection: psycopg.Connection[Any] = psycopg.connect(database, autocommit=True)
    atexit.register(connection.close)
    # what a test puts back need not reach the disk
    connection.execute("set synchronous_commit = off")
    return connection


@contextmanager
def _file(database: Path) -> Iterator[sqlite3.Cursor]:
    """A cursor within a transaction of its own."""
    with closing(writer_lock(database)) as lock, closing(connect(database)) as connection:
        lock.acquire(5.0)
        connection.execute("pragma synchronous = off")
        cursor = connection.cursor()
        cursor.execute("begin immediate")
        yield cursor
        cursor.execute("commit")


def _read(server: "psycopg.Connection[Any]") -> dict[str, Rows]:
    found: dict[str, Rows] = {table: [] for table in TABLES}
    for table, row in server.execute(_READ.encode()):
        found[table].append(row)
    return {table: sorted(each, key=repr) for table, each in found.items()}


def _rows(cursor: sqlite3.Cursor, table: str) -> Rows:
    cursor.execute(f"select * from {table}")
    names = [column[0] for column in cursor.description]
    return sorted((dict(zip(names, row, strict=True)) for row in cursor.fetchall()), key=repr)


def _restart(cursor: sqlite3.Cursor) -> None:
    for table in _COUNTED:
        cursor.execute(
            f"update sqlite_sequence set seq = (select coalesce(max(id), 0) from {table}) where name = ?", (table,)
        )
