"""What is looked at past the service: damage of every kind is seen, and so is what a process has left open."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from service.resources import resource
from service.times import utc_now
from tests.attacks import databases, databases_base, databases_postgresql, upgrades
from tests.attacks.databases_base import Store
from tests.support import postgresql


@pytest.fixture
def store(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A database with 10 agents, their tools and their runs."""
    monkeypatch.setattr(upgrades, "_AGENTS", 10)
    monkeypatch.setattr(upgrades, "_RUNS", 20)
    made = databases.new(engine, tmp_path, "looked-at")
    upgrades._fill(made, 3)
    return made


def break_rules(store: Store, statement: str) -> None:
    """Runs a statement whatever the foreign keys and triggers say."""
    if isinstance(store.database, Path):
        with closing(sqlite3.connect(store.database)) as file, file:
            file.execute(statement)
    else:
        with psycopg.connect(store.database, options="-c session_replication_role=replica") as connection:
            connection.execute(statement)


def test_a_whole_database_is_whole(store: Store) -> None:
    store.check()
    store.check(range(1, 11))


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("delete from tools where id = 3", "agent_tools"),
        ("delete from agent_ids where id = 3", "agents|runs"),
        ("delete from tenants where id = 'tenant_a'", "tools|run_counts"),
        ("update run_counts set runs = runs + 1 where agent_id = 4", "run_counts are"),
        ("update run_counts set runs = runs - 1 where agent_id = 0", "run_counts are"),
    ],
)
def test_damage_is_found_out(store: Store, statement: str, complaint: str) -> None:
    break_rules(store, statement)
    with pytest.raises(AssertionError, match=complaint):
        store.check()


def test_half_an_agent_is_found_out(store: Store) -> None:
    for known, complaint in ((range(1, 10), r"\[10\] too many"), (range(1, 12), r"\[11\] missing")):
        with pytest.raises(AssertionError, match=complaint):
            store.check(known)


def test_a_copy_has_all_of_it_and_is_another_database(store: Store, tmp_path: Path) -> None:
    before = store.schema()
    copy = store.copy(tmp_path, "copy")
    assert copy.schema() == before
    with copy.writing() as write:
        write("insert into tenants (id, created_at) values (?, ?)", [("new", utc_now())])
    query = "select count(*) from tenants where id = 'new'"
    assert (copy.rows(query), store.rows(query)) == ([(1,)], [(0,)])


def test_another_schema_is_another_one(store: Store) -> None:
    before = store.schema()
    assert len(before) > 10
    break_rules(store, "create index one_more on tools (tenant_id)")
    assert store.schema() != before


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Store, "psycopg.Connection[object]"]]:
    """A database of the server, and somebody else's connection to it."""
    store = databases.new("postgresql", tmp_path, "served")
    assert isinstance(store.database, str)
    with psycopg.connect(store.database, autocommit=True) as connection:
        yield store, connection


needs_postgresql = pytest.mark.skipif(postgresql.server() is None, reason=postgresql.HOW_TO_RUN)


@needs_postgresql
async def test_a_connection_that_outlives_its_process_is_found_out(
    served: tuple[Store, "psycopg.Connection[object]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, connection = served
    monkeypatch.setattr(databases_base, "_ENDS", 0.05)
    sessions = store.sessions()
    assert sessions == {connection.info.backend_pid}
    with pytest.raises(AssertionError, match="connections of a killed process go on"):
        await store.gone(sessions)
    connection.close()
    monkeypatch.setattr(databases_base, "_ENDS", 5.0)
    await store.gone(sessions)


@needs_postgresql
@pytest.mark.parametrize("statement", ["begin; select 1", "select pg_advisory_lock(7203)"])
def test_what_is_left_open_is_found_out(served: tuple[Store, "psycopg.Connection[object]"], statement: str) -> None:
    store, connection = served
    assert store.at_work() == []
    connection.execute(statement.encode())
    assert [row[0] for row in store.at_work()] == [connection.info.backend_pid]


@needs_postgresql
def test_the_databases_of_a_process_are_found_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    # which is to go with this process, whatever its number is said to be below
    databases_postgresql.template()
    monkeypatch.setattr(os, "getpid", lambda: 10_000_000)
    url = databases_postgresql.create()
    databases_postgresql.forget(1_000_000)
    psycopg.connect(url).close()
    databases_postgresql.forget(10_000_000)
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(url)


def test_the_migrations_are_the_engines_own(store: Store) -> None:
    files = {each.stem for each in (resource("migrations") / store.part).glob("[0-9]*") if "rollback" not in each.stem}
    assert store.engine.known(resource("migrations")) == files
