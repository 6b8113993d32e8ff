"""An attacked database of the tests' PostgreSQL server; it goes when the process ends that has made it."""

import atexit
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from service.resources import resource
from service.storage.engines import engine_of
from tests.attacks.databases_base import Read, Rows, Store, Write
from tests.support import postgresql

# each foreign key, as a query for the rows that refer to nothing
_ORPHANS = """
select format(
    'select %L, count(*) from %s as child '
        'where not exists (select 1 from %s as parent where (%s) = (%s)) having count(*) > 0',
    concat(conrelid::regclass, ' ', conname), conrelid::regclass, confrelid::regclass,
    (
        select string_agg(format('child.%I', attname), ', ' order by position)
        from unnest(conkey) with ordinality as own (number, position)
        join pg_attribute on attrelid = conrelid and attnum = number
    ),
    (
        select string_agg(format('parent.%I', attname), ', ' order by position)
        from unnest(confkey) with ordinality as other (number, position)
        join pg_attribute on attrelid = confrelid and attnum = number
    )
)
from pg_constraint
where contype = 'f' and connamespace = 'public'::regnamespace
"""
# the connections of all others to this database
_OTHERS = "datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"

_numbers = count()


class PostgresqlStore(Store):
    """A database of the server; row-level security binds the service, and not the superuser who looks here."""

    is_shared = True
    part = "postgresql"
    # each is a new connection
    glance = 0.005

    def __init__(self, url: str, folder: Path, name: str) -> None:
        super().__init__(url, folder, name)
        self.url = url

    @contextmanager
    def reading(self) -> Iterator[Read]:
        with psycopg.connect(self.url) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            yield lambda query: connection.execute(query).fetchall()

    @contextmanager
    def writing(self) -> Iterator[Write]:
        with psycopg.connect(self.url) as connection, connection.cursor() as cursor:
            yield lambda statement, rows: cursor.executemany(statement.replace("?", "%s"), rows)

    def tables(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for table, column in self.rows(
            "select table_name, column_name from information_schema.columns natural join information_schema.tables "
            "where table_schema = 'public' and table_type = 'BASE TABLE' order by table_name, ordinal_position"
        ):
            found.setdefault(table, []).append(column)
        return found

    def copy(self, folder: Path, name: str) -> Store:
        return PostgresqlStore(create(self.url), folder, name)

    def left(self, folder: Path) -> Store:
        # it has committed or undone what a client began: a look changes nothing
        return self

    def sessions(self) -> set[int]:
        return {pid for (pid,) in self.rows(f"select pid from pg_stat_activity where {_OTHERS}")}

    def at_work(self) -> Rows:
        return self.rows(
            f"select pid, state, query, (select count(*) from pg_locks where pg_locks.pid = activity.pid and granted) "
            f"from pg_stat_activity as activity where {_OTHERS} and (state <> 'idle' or exists ("
            "select 1 from pg_locks where pg_locks.pid = activity.pid and locktype = 'advisory'))"
        )

    def forget_progress(self) -> None:
        pass

    def is_begun(self) -> bool:
        return bool(self.sessions())

    def begin_ids_at(self, table: str, number: int) -> None:
        with self.writing() as write:
            write("select setval(cast(? as regclass), ?)", [(f"{table}_id_seq", number)])

    def _damage(self, read: Read) -> Rows:
        return [row for (query,) in read(_ORPHANS) for row in read(query)]


def create(like: str | None = None) -> str:
    """Makes a database, a copy of the one at the URL `like` if there is one, and answers with its URL."""
    server = postgresql.server()
    assert server is not None, postgresql.HOW_TO_RUN
    number = next(_numbers)
    if number == 0:
        atexit.register(forget, os.getpid())
    name = f"{_prefix(os.getpid())}{number}"
    copied = f' template "{conninfo_to_dict(like)["dbname"]}"' if like else ""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'create database "{name}"{copied}')
    return postgresql.url_of(name)


@functools.cache
def template() -> str:
    """The URL of a migrated, empty database, made once, to be copied."""
    url = create()
    engine_of(url).migrate(resource("migrations"))
    return url


def forget(pid: int) -> None:
    """Removes the databases that a process has made."""
    if url := postgresql.server():
        with psycopg.connect(url, autocommit=True) as connection:
            found = connection.execute("select datname from pg_database where starts_with(datname, %s)", (_prefix(pid),))
            for (name,) in found.fetchall():
                connection.execute(f'drop database if exists "{name}" with (force)')


def _prefix(pid: int) -> str:
    return f"agent_platform_attacked_{pid}_"
