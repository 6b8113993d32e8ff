"""The embedded engine: units of work are whole or not at all, and are on disk when they are answered."""

import asyncio
import inspect
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from service.errors import Conflict, Unavailable
from service.resources import resource
from service.storage.lock import writer_lock
from service.storage.queries import load_queries
from service.storage.scope import Scope
from service.storage.sqlite import SqliteDatabase
from service.storage.units import UniqueViolation, ask
from service.times import utc_now

NOW = utc_now()


def two_tools(first: str, second: str) -> Any:
    yield ask("create_tool", name=first, description="d", now=NOW)
    return (yield ask("create_tool", name=second, description="d", now=NOW))


async def names(tenant: Scope) -> list[str]:
    rows = await tenant.many("list_tools", after=0, name=None, limit=10_000, offset=0)
    return [row["name"] for row in rows]


async def test_a_unit_that_fails_in_the_middle_leaves_nothing(tenants: tuple[Scope, Scope]) -> None:
    a, _ = tenants
    with pytest.raises(UniqueViolation):
        await a.write(two_tools("same", "same"))
    assert await names(a) == []


async def test_units_of_one_batch_stand_and_fall_alone(tenants: tuple[Scope, Scope]) -> None:
    a, _ = tenants

    def refuses() -> Any:
        yield ask("create_tool", name="never", description="d", now=NOW)
        raise Conflict("no")

    units = [two_tools(f"a{n}", f"b{n}") if n % 3 else refuses() for n in range(60)]
    units[10] = two_tools("twice", "twice")
    answers = await asyncio.gather(*map(a.write, units), return_exceptions=True)
    assert [type(answer) for answer in answers if isinstance(answer, Exception)].count(Conflict) == 20
    assert isinstance(answers[10], UniqueViolation)
    whole = [n for n in range(60) if n % 3 and n != 10]
    assert sorted(await names(a)) == sorted(f"{side}{n}" for n in whole for side in "ab")


async def test_a_unit_may_catch_a_violation_and_go_on(tenants: tuple[Scope, Scope]) -> None:
    a, _ = tenants

    def catches() -> Any:
        yield ask("create_tool", name="one", description="d", now=NOW)
        try:
            yield ask("create_tool", name="one", description="d", now=NOW)
        except UniqueViolation:
            return (yield ask("create_tool", name="two", description="d", now=NOW))

    assert (await a.write(catches()))["name"] == "two"
    assert await names(a) == ["one", "two"]


async def test_a_cancelled_caller_leaves_a_whole_unit_or_none(tenants: tuple[Scope, Scope]) -> None:
    a, _ = tenants
    for pause in range(12):
        task = asyncio.create_task(a.write(two_tools(f"x{pause}", f"y{pause}")))
        for _ in range(pause):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        # the next write neither waits for the cancelled one nor shares its fate
        await a.write(two_tools(f"p{pause}", f"q{pause}"))
    found = await names(a)
    for pause in range(12):
        assert (f"x{pause}" in found) == (f"y{pause}" in found)
        assert {f"p{pause}", f"q{pause}"} <= set(found)
    assert "x0" not in found


async def test_reads_see_every_write_that_was_answered_before(tenants: tuple[Scope, Scope]) -> None:
    a, _ = tenants

    async def write_then_read(number: int) -> None:
        tool = await a.write(two_tools(f"w{number}", f"v{number}"))
        assert await a.one("get_tool", tool_id=tool["id"]) == tool

    await asyncio.gather(*map(write_then_read, range(200)))


async def test_a_read_unit_sees_one_state(tenants: tuple[Scope, Scope]) -> None:
    a, _ = tenants

    def count_and_list() -> Any:
        total = yield ask("count_tools", name=None)
        rows = yield ask("list_tools", after=0, name=None, limit=1000, offset=0)
        return total, len(rows)

    async def read() -> None:
        for _ in range(50):
            total, listed = await a.read(count_and_list())
            assert total == listed

    await asyncio.gather(read(), read(), *(a.write(two_tools(f"s{n}", f"t{n}")) for n in range(200)))


async def test_a_reader_can_not_write(tenants: tuple[Scope, Scope]) -> None:
    with pytest.raises(Unavailable):
        await tenants[0].read(two_tools("a", "b"))


async def test_every_commit_reaches_the_disk(database: SqliteDatabase) -> None:
    for lane in (database._writer, *database._readers):
        for pragma, value in {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}.items():
            assert list(await lane.connection.execute_fetchall(f"pragma {pragma}")) == [(value,)]


async def test_a_full_disk_fails_the_batch_and_the_next_write_works(
    tenants: tuple[Scope, Scope], database: SqliteDatabase
) -> None:
    a, _ = tenants
    (pages,) = list(await database._writer.connection.execute_fetchall("pragma page_count"))
    await database._writer.connection.execute_fetchall(f"pragma max_page_count = {pages[0]}")
    big = [ask("create_tool", name=f"big {n}", description="x" * 2000, now=NOW) for n in range(200)]

    def fills() -> Any:
        for each in big:
            _ = yield each

    answers = await asyncio.gather(a.write(fills()), a.write(two_tools("c", "d")), return_exceptions=True)
    assert [type(answer) for answer in answers] == [Unavailable, Unavailable]
    await database._writer.connection.execute_fetchall("pragma max_page_count = 1000000")
    await a.write(two_tools("e", "f"))
    assert await names(a) == ["e", "f"]


async def test_another_process_that_writes_is_waited_for(tenants: tuple[Scope, Scope], path: Path) -> None:
    other = writer_lock(path)
    other.acquire()
    task = asyncio.create_task(tenants[0].write(two_tools("a", "b")))
    await asyncio.sleep(0.05)
    assert not task.done()
    other.close()
    await task


async def test_another_process_that_never_stops_writing_is_a_503(
    tenants: tuple[Scope, Scope], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.storage.sqlite._PATIENCE", 0.05)
    with closing(writer_lock(path)) as other:
        other.acquire()
        with pytest.raises(Unavailable):
            await tenants[0].write(two_tools("a", "b"))
    await tenants[0].write(two_tools("a", "b"))


async def test_a_closed_database_refuses_and_finishes_what_was_queued(path: Path) -> None:
    database = await SqliteDatabase.open(path, load_queries(resource("sql")))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("insert into tenants values ('a', ?)", (NOW,))
        connection.commit()
    a = Scope(database, "a", None)
    queued = [asyncio.create_task(a.write(two_tools(f"a{n}", f"b{n}"))) for n in range(20)]
    await asyncio.sleep(0)
    await database.close()
    assert [tool["name"] for tool in await asyncio.gather(*queued)] == [f"b{n}" for n in range(20)]
    for call in (a.write(two_tools("x", "y")), a.value("count_tools", name=None)):
        with pytest.raises(Unavailable):
            await call
    await database.close()


async def test_a_query_is_given_exactly_its_parameters(tenants: tuple[Scope, Scope]) -> None:
    a, _ = tenants
    for wrong in ({}, {"tool_id": 1, "extra": 2}):
        with pytest.raises(TypeError, match="get_tool takes"):
            await a.one("get_tool", **wrong)
    with pytest.raises(TypeError, match="answers with ONE, not MANY"):
        await a.many("get_tool", tool_id=1)
    with pytest.raises(LookupError):
        await a.one("get_nothing")


def test_the_private_method_of_aiosqlite_that_we_reach_is_there() -> None:
    assert inspect.iscoroutinefunction(aiosqlite.Connection._execute)
    assert isinstance(inspect.getattr_static(aiosqlite.Connection, "_conn"), property)
