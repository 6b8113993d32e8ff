"""How workers share the connections of one socket."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

import pytest
from aiohttp import web

from service import workers
from service.workers import InTurns


class Listening(socket.socket):
    """A socket that counts how often it is asked, and refuses what there is no room for."""

    asked = 0
    is_full = False

    def accept(self) -> Any:
        self.asked += 1
        if self.is_full:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


@contextmanager
def listening() -> Iterator[Listening]:
    with Listening() as made:
        made.bind(("127.0.0.1", 0))
        made.listen()
        yield made


@asynccontextmanager
async def taking(*listening: socket.socket) -> AsyncIterator[list[web.AppRunner]]:
    runners = [web.AppRunner(web.Application()) for _ in listening]
    for runner, each in zip(runners, listening, strict=True):
        await runner.setup()
        await InTurns(runner, each).start()
    yield runners
    for runner in runners:
        await runner.cleanup()


def taken(runners: list[web.AppRunner]) -> list[int]:
    return [len(runner.server.connections) for runner in runners if runner.server is not None]


async def test_connections_that_wait_together_are_shared() -> None:
    # each process has a descriptor of its own for it
    with listening() as shared, shared.dup() as other, ExitStack() as lines:
        async with taking(shared, other) as runners:
            for _ in range(10):
                lines.enter_context(socket.create_connection(shared.getsockname()))
            async with asyncio.timeout(5):
                while sum(taken(runners)) < 10:  # noqa: ASYNC110  # nothing announces it
                    await asyncio.sleep(0)
            assert taken(runners) == [5, 5]


async def test_a_process_without_room_for_a_connection_takes_it_later_and_does_not_spin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "_PAUSE", 0.1)
    with listening() as shared, ExitStack() as lines:
        async with taking(shared) as runners:
            shared.is_full = True
            lines.enter_context(socket.create_connection(shared.getsockname()))
            await asyncio.sleep(0.25)
            assert 1 <= shared.asked <= 3
            shared.is_full = False
            async with asyncio.timeout(5):
                while not sum(taken(runners)):  # noqa: ASYNC110  # nothing announces it
                    await asyncio.sleep(0.01)
            shared.is_full = True
            lines.enter_context(socket.create_connection(shared.getsockname()))
            await asyncio.sleep(0.05)
        # it ends while it waits, and asks no more
        asked = shared.asked
        await asyncio.sleep(0.2)
        assert shared.asked == asked
