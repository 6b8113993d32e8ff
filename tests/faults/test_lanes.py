"""The queues in front of PostgreSQL's connections: nobody is left waiting, and what breaks fails its own work alone."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from service.errors import Unavailable
from service.storage.postgresql_lanes import MOST_CHARACTERS, Job, Lanes
from tests.support.storage import nothing


class Connection:
    """What the pool lends: once it is broken, it has been taken back, and answers nothing any more."""

    is_broken = False

    def is_closed(self) -> bool:
        return self._answer()

    def is_in_transaction(self) -> bool:
        return self._answer()

    def terminate(self) -> None:
        self._answer()

    def _answer(self) -> bool:
        if self.is_broken:
            raise asyncpg.InterfaceError("connection has been released back to the pool")
        return False


class Pool:
    """Lends as many connections as are wanted; to take one back takes a moment."""

    def __init__(self) -> None:
        self.lent = 0

    @asynccontextmanager
    async def acquire(self, **_: float) -> AsyncIterator[Connection]:
        self.lent += 1
        yield Connection()
        for _ in range(3):
            await asyncio.sleep(0)


def lanes(pool: Any, most: int, work: Callable[[Any, list[Job]], Any], *, is_shared: bool = False) -> Lanes:
    return Lanes(pool, most, 5.0, work, None, is_shared=is_shared)


def bind(asked: Any) -> Any:
    raise AssertionError


def queued(served: Lanes, tenant_id: str, characters: int = 1) -> asyncio.Future[Any]:
    job = Job(nothing(), bind, tenant_id, asyncio.get_running_loop().create_future(), characters=characters)
    served.run(job)
    return job.answer


@pytest.mark.parametrize("moments", range(12))
async def test_what_comes_as_the_connections_are_given_back_is_served_too(moments: int) -> None:
    async def work(connection: Connection, jobs: list[Job]) -> None:
        await asyncio.sleep(0)
        for job in jobs:
            job.succeed(job.tenant_id)

    served = lanes(Pool(), 2, work)
    first = [queued(served, tenant) for tenant in ("a", "b")]
    for _ in range(moments):
        await asyncio.sleep(0)
    async with asyncio.timeout(1):
        assert await queued(served, "c") == "c"
        assert await asyncio.gather(*first) == ["a", "b"]
        await served.close()


async def test_a_connection_that_breaks_fails_its_own_work_and_the_next_one_does_the_rest() -> None:
    pool = Pool()

    async def work(connection: Connection, jobs: list[Job]) -> None:
        await asyncio.sleep(0)
        if jobs[0].tenant_id == "a":
            connection.is_broken = True
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
        for job in jobs:
            job.succeed(job.tenant_id)

    served = lanes(pool, 1, work)
    answers = [queued(served, tenant) for tenant in ("a", "b", "c")]
    async with asyncio.timeout(1):
        failed, *done = await asyncio.gather(*answers, return_exceptions=True)
        await served.close()
    assert isinstance(failed, Unavailable)
    assert done == ["b", "c"]
    assert pool.lent == 2


async def turns_of(jobs: list[tuple[str, int]]) -> list[list[str]]:
    """The turns in which one connection serves the jobs, each a tenant and how many characters it takes."""
    turns: list[list[str]] = []

    async def work(connection: Connection, jobs: list[Job]) -> None:
        turns.append([str(job.tenant_id) for job in jobs])
        await asyncio.sleep(0)
        for job in jobs:
            job.succeed(None)

    served = lanes(Pool(), 1, work, is_shared=True)
    answers = [queued(served, tenant, characters) for tenant, characters in jobs]
    async with asyncio.timeout(1):
        await asyncio.gather(*answers)
        await served.close()
    return turns


async def test_tenants_share_a_turn_up_to_its_size() -> None:
    assert await turns_of([("a", 1), ("b", 1), ("a", 1), ("c", MOST_CHARACTERS - 3)]) == [["a", "a", "b", "c"]]
    assert await turns_of([("a", 1), ("b", MOST_CHARACTERS), ("c", 1)]) == [["a"], ["b"], ["c"]]


async def test_what_is_larger_than_a_turn_has_one_of_its_own() -> None:
    assert await turns_of([("a", MOST_CHARACTERS + 1), ("b", MOST_CHARACTERS + 1)]) == [["a"], ["b"]]


async def test_a_tenant_that_asks_for_much_leaves_the_next_turn_to_others() -> None:
    assert await turns_of([("a", MOST_CHARACTERS // 2 - 3)] * 5 + [("b", 1), ("c", 1)]) == [
        ["a", "a"],
        ["b", "c", "a", "a"],
        ["a"],
    ]


async def test_who_had_no_part_of_a_turn_is_first_in_the_next_one() -> None:
    """Else it would be passed by for as long as there are small ones."""
    assert await turns_of([("a", 1), ("z", MOST_CHARACTERS), ("b", 1), ("b", 1)]) == [["a"], ["z"], ["b", "b"]]


async def test_a_turn_has_no_more_than_so_many_jobs() -> None:
    turns = await turns_of([(name, 0) for name in "ab" for _ in range(40)])
    assert [len(turn) for turn in turns] == [64, 16]


async def test_who_gave_up_has_nothing_done_and_no_part_of_a_turn() -> None:
    seen: list[list[str | None]] = []

    async def work(connection: Connection, jobs: list[Job]) -> None:
        seen.append([job.tenant_id for job in jobs])
        for job in jobs:
            job.succeed(None)

    served = lanes(Pool(), 1, work, is_shared=True)
    answers = [queued(served, tenant) for tenant in "abc"]
    answers[1].cancel()
    await asyncio.wait(answers)
    await served.close()
    assert seen == [["a", "c"]]
