"""Units of work, on both engines: whole or not at all, and stored when they are answered."""

import asyncio
from typing import Any

import pytest

from service.errors import Conflict, Unavailable
from service.storage.scope import Database, Scope
from service.storage.units import UniqueViolation, ask
from service.times import utc_now
from tests.support.direct import names, two_tools

NOW = utc_now()


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


async def test_a_unit_may_say_what_a_violation_means_and_ends_with_that(tenants: tuple[Scope, Scope]) -> None:
    a, _ = tenants
    await a.write(two_tools("one", "two"))

    def catches() -> Any:
        yield ask("create_tool", name="three", description="d", now=NOW)
        try:
            yield ask("create_tool", name="one", description="d", now=NOW)
        except UniqueViolation:
            raise Conflict("taken") from None

    answers = await asyncio.gather(a.write(catches()), a.write(two_tools("four", "five")), return_exceptions=True)
    assert isinstance(answers[0], Conflict)
    assert await names(a) == ["one", "two", "four", "five"]


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

    async def write() -> None:
        for number in range(150):
            await a.write(two_tools(f"s{number}", f"t{number}"))

    async def read() -> None:
        while not writing.done():
            total, listed = await a.read(count_and_list())
            assert total == listed

    writing = asyncio.create_task(write())
    await asyncio.gather(writing, read(), read())


async def test_a_reader_can_not_write(tenants: tuple[Scope, Scope]) -> None:
    with pytest.raises(Unavailable):
        await tenants[0].read(two_tools("a", "b"))


async def test_a_closed_database_refuses_and_finishes_what_was_queued(
    tenants: tuple[Scope, Scope], storage: Database
) -> None:
    a, _ = tenants
    queued = [asyncio.create_task(a.write(two_tools(f"a{n}", f"b{n}"))) for n in range(20)]
    await asyncio.sleep(0)
    await storage.close()
    assert [tool["name"] for tool in await asyncio.gather(*queued)] == [f"b{n}" for n in range(20)]
    for call in (a.write(two_tools("x", "y")), a.value("count_tools", name=None)):
        with pytest.raises(Unavailable):
            await call
    await storage.close()


async def test_a_query_is_given_exactly_its_parameters(tenants: tuple[Scope, Scope]) -> None:
    a, _ = tenants
    for wrong in ({}, {"tool_id": 1, "extra": 2}):
        with pytest.raises(TypeError, match="get_tool takes"):
            await a.one("get_tool", **wrong)
    with pytest.raises(TypeError, match="answers with ONE, not MANY"):
        await a.many("get_tool", tool_id=1)
    with pytest.raises(LookupError):
        await a.one("get_nothing")
