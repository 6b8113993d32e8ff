"""What units share: a hop or a round trip, and a transaction; never an answer, an error or a tenant."""

import asyncio
from typing import Any

import pytest

from service.errors import Unavailable
from service.storage.scope import Database, Scope
from service.storage.units import ForeignKeyViolation, UniqueViolation, ask, ask_last, ask_together
from service.times import utc_now

NOW = utc_now()


def tool(name: str) -> Any:
    return (yield ask_last("create_tool", name=name, description="d", now=NOW))


def longer(first: str, second: str) -> Any:
    yield ask("create_tool", name=first, description="d", now=NOW)
    return (yield ask("create_tool", name=second, description="d", now=NOW))


def run(agent_id: int, task: str) -> Any:
    texts = {"agent_name": "a", "task": task, "model": "gpt-4o", "status": "completed", "prompt": "p", "response": "r"}
    rest = {"error": None, "steps": "[]", "prompt_tokens": 1, "completion_tokens": 1, "created_at": NOW, "duration_ms": 1}
    return (yield ask_last("create_run", agent_id=agent_id, **texts, **rest))


async def names(tenant: Scope) -> list[str]:
    return [row["name"] for row in await tenant.many("list_tools", after=0, name=None, limit=100, offset=0)]


async def test_reads_at_once_are_each_answered_with_their_own(tenants: tuple[Scope, Scope]) -> None:
    a, b = tenants
    made = [await tenant.write(tool(name)) for tenant, name in ((a, "one"), (b, "two"), (a, "three"))]
    ids = [row["id"] for row in made]
    asked = [(tenant, tool_id) for tool_id in [*ids, 999] for tenant in (a, b)] * 3
    found = await asyncio.gather(*(tenant.one("get_tool", tool_id=tool_id) for tenant, tool_id in asked))
    assert [row and row["name"] for row in found] == ["one", None, None, "two", "three", None, None, None] * 3
    exists = await asyncio.gather(*(tenant.value("tool_exists", tool_id=tool_id) for tenant, tool_id in asked))
    assert [bool(each) for each in exists] == [row is not None for row in found]


async def test_lists_at_once_are_each_answered_with_their_own(tenants: tuple[Scope, Scope]) -> None:
    a, b = tenants
    for name in ("z", "y", "x"):
        await a.write(tool(name))
    await b.write(tool("b"))
    assert await asyncio.gather(*map(names, (a, b, a, b))) == [["z", "y", "x"], ["b"]] * 2


async def test_one_that_fails_among_last_queries_fails_alone(tenants: tuple[Scope, Scope]) -> None:
    a, _ = tenants
    agent_id = await a.value("create_agent_id")
    units = [run(agent_id if n != 3 else 999, f"task {n}") for n in range(6)]
    answers = await asyncio.gather(*map(a.write, units), return_exceptions=True)
    assert isinstance(answers[3], ForeignKeyViolation)
    stored = [answer["id"] for n, answer in enumerate(answers) if n != 3 and not isinstance(answer, BaseException)]
    filters = dict.fromkeys(("model", "created_after", "created_before"))
    rows = await a.many("list_runs", before=2**53, limit=10, offset=0, **filters)
    assert [(row["id"], row["task"]) for row in rows][::-1] == list(
        zip(stored, ["task 0", "task 1", "task 2", "task 4", "task 5"], strict=True)
    )


async def test_last_queries_of_several_kinds_stand_beside_longer_units(tenants: tuple[Scope, Scope]) -> None:
    a, _ = tenants
    agent_id = await a.value("create_agent_id")
    units = [tool("one"), run(agent_id, "task"), longer("two", "three"), tool("four"), run(agent_id, "other")]
    answers = await asyncio.gather(*map(a.write, units))
    assert [sorted(each) for each in (answers[1], answers[4])] == [["created_at", "id"]] * 2
    assert [answers[number]["name"] for number in (0, 2, 3)] == ["one", "three", "four"]
    assert sorted(await names(a)) == ["four", "one", "three", "two"]


async def test_last_queries_that_fail_stand_beside_longer_units(tenants: tuple[Scope, Scope]) -> None:
    a, _ = tenants
    units = [tool("one"), longer("two", "three"), tool("four"), longer("five", "one"), tool("six"), tool("six")]
    answers = await asyncio.gather(*map(a.write, units), return_exceptions=True)
    assert [type(each) is UniqueViolation for each in answers] == [False, False, False, True, False, True]
    assert sorted(await names(a)) == ["four", "one", "six", "three", "two"]


def page_of_tools() -> Any:
    listing = ask("list_tools", after=0, name=None, limit=10, offset=0)
    return (yield ask_together(ask("tool_exists", tool_id=1), ask("count_tools", name=None), listing))


async def test_several_things_at_once_are_answered_alike_whoever_runs_them(tenants: tuple[Scope, Scope]) -> None:
    a, b = tenants
    await a.write(tool("one"))
    await a.write(tool("two"))
    for run_unit in (a.read, a.write):
        is_there, count, found = await run_unit(page_of_tools())
        assert (bool(is_there), count, [row["name"] for row in found]) == (True, 2, ["one", "two"])
    for run_unit in (b.read, b.write):
        is_there, count, found = await run_unit(page_of_tools())
        assert (bool(is_there), count, found) == (False, 0, [])


async def test_what_is_no_reader_s_is_not_read_alone(tenants: tuple[Scope, Scope]) -> None:
    a, _ = tenants
    with pytest.raises(Unavailable):
        await a.read(tool("one"))
    assert await names(a) == []


async def test_nothing_is_seen_where_nothing_says_for_whom(tenants: tuple[Scope, Scope], storage: Database) -> None:
    """What one tenant's reads leave on a connection is nothing to the next one's."""
    a, b = tenants
    await a.write(tool("one"))
    for _ in range(20):
        rows = await asyncio.gather(a.one("get_tool", tool_id=1), b.one("get_tool", tool_id=1), a.one("get_tool", tool_id=1))
        assert [row and row["name"] for row in rows] == ["one", None, "one"]
