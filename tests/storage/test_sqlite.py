"""The embedded engine: its file, its disk, and other processes that write to it."""

import asyncio
import inspect
from contextlib import closing
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from service.errors import Unavailable
from service.storage.lock import writer_lock
from service.storage.scope import Scope
from service.storage.sqlite import SqliteDatabase
from service.storage.units import ask
from service.times import utc_now
from tests.support.direct import names, two_tools

pytestmark = pytest.mark.embedded

NOW = utc_now()


async def test_every_commit_reaches_the_disk(storage: SqliteDatabase) -> None:
    for lane in (storage._writer, *storage._readers):
        for pragma, value in {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}.items():
            assert list(await lane.connection.execute_fetchall(f"pragma {pragma}")) == [(value,)]


async def test_a_full_disk_fails_the_batch_and_the_next_write_works(
    tenants: tuple[Scope, Scope], storage: SqliteDatabase
) -> None:
    a, _ = tenants
    (pages,) = list(await storage._writer.connection.execute_fetchall("pragma page_count"))
    await storage._writer.connection.execute_fetchall(f"pragma max_page_count = {pages[0]}")
    big = [ask("create_tool", name=f"big {n}", description="x" * 2000, now=NOW) for n in range(200)]

    def fills() -> Any:
        for each in big:
            _ = yield each

    answers = await asyncio.gather(a.write(fills()), a.write(two_tools("c", "d")), return_exceptions=True)
    assert [type(answer) for answer in answers] == [Unavailable, Unavailable]
    await storage._writer.connection.execute_fetchall("pragma max_page_count = 1000000")
    await a.write(two_tools("e", "f"))
    assert await names(a) == ["e", "f"]


async def test_another_process_that_writes_is_waited_for(tenants: tuple[Scope, Scope], database: Path) -> None:
    other = writer_lock(database)
    other.acquire()
    task = asyncio.create_task(tenants[0].write(two_tools("a", "b")))
    await asyncio.sleep(0.05)
    assert not task.done()
    other.close()
    await task


async def test_another_process_that_never_stops_writing_is_a_503(
    tenants: tuple[Scope, Scope], database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.storage.sqlite._PATIENCE", 0.05)
    with closing(writer_lock(database)) as other:
        other.acquire()
        with pytest.raises(Unavailable):
            await tenants[0].write(two_tools("a", "b"))
    await tenants[0].write(two_tools("a", "b"))


def test_the_private_method_of_aiosqlite_that_we_reach_is_there() -> None:
    assert inspect.iscoroutinefunction(aiosqlite.Connection._execute)
    assert isinstance(inspect.getattr_static(aiosqlite.Connection, "_conn"), property)
