"""Clients that are slow, or say nothing, or never listen: they are cut off in time, and nobody else waits for them."""

import asyncio
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace

import pytest
from aiohttp import web

from service.app import make_app
from service.config import Config
from service.protocol import Protocol
from service.server import Runner
from service.state import STATE
from service.storage.scope import Scope
from service.storage.units import Unit, ask
from service.times import utc_now
from tests.conftest import KEY_A, Client, Serve
from tests.support.contract import Contract
from tests.support.http import PROBLEM, TOOL, Answer, Wire, make_agent, make_tool
from tests.support.pace import slowness

# how long this service waits for a request's head, for its body, and for a client that takes nothing, in seconds
PATIENCE = 0.4
LINGER = 0.3
# it looks at its connections ten times in its patience; the rest is for a busy machine
LATE = PATIENCE / 10 + 0.5
# an answer that is no 408 has waited for no deadline: how long it takes is the machine's
AT_ONCE = PATIENCE + LATE
# what would linger has not
UNLINGERING = 0.9 * LINGER
KEY = "X-API-Key: key_tenant_a"
TYPE = "Content-Type: application/json"
LONG, CHUNKED = "Content-Length: 100000", "Transfer-Encoding: chunked"
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
BODY = json.dumps({**TOOL, "name": "slow"}).encode()


def head(method: str, path: str, *lines: str) -> bytes:
    """The head of a request on the wire."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def make_a_tool(name: str) -> tuple[bytes, bytes]:
    """The head and the body of a request that makes one."""
    body = json.dumps({**TOOL, "name": name}).encode()
    return head("POST", "/tools", KEY, TYPE, f"Content-Length: {len(body)}"), body


class Line(Wire):
    """A connection that sends as slowly as a test wants, and sees when the service ends it."""

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()

    async def trickle(self, data: bytes, pause: float = 0.03) -> None:
        """Sends byte by byte, until the service has had enough of it."""
        for byte in data:
            try:
                await self.send(bytes([byte]))
            except ConnectionError:
                return
            await asyncio.sleep(pause)

    async def rest(self) -> bytes:
        """What still comes until the service ends the connection."""
        received = b""
        async with asyncio.timeout(5):
            try:
                while data := await self._reader.read(2**16):
                    received += data
            except ConnectionError:
                # it ended while this side was still sending
                pass
        return received


@dataclass
class House:
    """The service of a test, and who looks at it from inside and from outside."""

    app: web.Application
    client: Client
    contract: Contract
    # what a quick client's turns took, in seconds
    turns: list[float] = field(default_factory=list)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self.protocols)

    @property
    def protocols(self) -> list[Protocol]:
        """Their servers' sides."""
        runner = self.client.server.runner
        assert isinstance(runner, Runner)
        return [each for each in runner._connections() if isinstance(each, Protocol)]

    @property
    def inside(self) -> int:
        """How many requests hold a place."""
        return self.app[STATE].gate.inside

    def line(self) -> Line:
        return Line(self.client)

    async def operations_with_a_body(self) -> list[tuple[str, str]]:
        """(method, path) of each, on a tool and an agent that are there."""
        await make_tool(self.client)
        await make_agent(self.client)
        await self.client.json("POST", "/keys", json={})
        operations = [
            (method.upper(), re.sub(r"\{\w+\}", "1", path))
            for method, path, operation in self.contract.operations()
            if "requestBody" in operation
        ]
        assert len(operations) == 9
        return operations

    @asynccontextmanager
    async def quick_client(self) -> AsyncIterator[None]:
        """Somebody who meanwhile reads on one connection and writes on new ones, and must not notice anything."""
        task = asyncio.create_task(self._take_turns())
        try:
            yield
            async with asyncio.timeout(1):
                while len(self.turns) < 5 and not task.done():  # noqa: ASYNC110  # nothing announces it
                    await asyncio.sleep(0.01)
        finally:
            task.cancel()
            (end,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(end, asyncio.CancelledError), end
        # most of them: the crowd of a test, which connects at once, shares the loop with the service
        assert sorted(self.turns)[len(self.turns) // 2] < 0.1, self.turns

    async def _take_turns(self) -> None:
        async with self.line() as kept:
            while True:
                began = time.perf_counter()
                assert (await kept.ask(head("GET", "/tools?limit=1", KEY))).status == 200
                async with self.line() as fresh:
                    assert (await fresh.ask(b"".join(make_a_tool(f"quick {len(self.turns)}")))).status == 201
                self.turns.append(time.perf_counter() - began)
                await asyncio.sleep(0.02)

    async def emptied(self) -> None:
        """Returns when the last connection has ended, which must be soon."""
        async with asyncio.timeout(PATIENCE + 2 * LATE):
            while self.connections:  # noqa: ASYNC110  # nothing announces it
                await asyncio.sleep(0.01)


@pytest.fixture
async def house(serve: Serve, config: Config, contract: Contract, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    """An impatient service, which after each test has no connection, no task and no place in use."""
    monkeypatch.setattr("service.server._LINGER", LINGER)
    app = make_app(replace(config, request_timeout=PATIENCE, rate_limit=1_000))
    house = House(app, await serve(app=app), contract)
    before = asyncio.all_tasks()
    yield house
    await house.client.session.close()
    await house.emptied()
    assert house.inside == 0
    # whoever read has its answer a moment before its transaction ends
    deadline = time.monotonic() + 2
    while (left := asyncio.all_tasks() - before - {asyncio.current_task()}) and time.monotonic() < deadline:  # noqa: ASYNC110  # nothing announces it
        await asyncio.sleep(0.01)
    assert not left


@contextmanager
def takes(least: float, most: float) -> Iterator[None]:
    """What is done within takes so long, in seconds of a quick machine."""
    began = time.perf_counter()
    yield
    took = time.perf_counter() - began
    assert took >= least - 0.02
    assert took <= most or took <= most * slowness()


def assert_timed_out(answer: Answer) -> None:
    assert (answer.status, answer.headers["Content-Type"]) == (408, PROBLEM), answer
    assert answer.json()["type"] == "urn:agent-platform:problem:request-timeout"
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]
    assert f"within {PATIENCE} seconds" in answer.json()["detail"]


async def test_a_head_that_stops_is_408_and_the_end(house: House) -> None:
    async def ask(sent: bytes) -> None:
        async with house.line() as line:
            with takes(PATIENCE, PATIENCE + LATE):
                answer = await line.ask(sent)
            assert_timed_out(answer)
            with takes(0, UNLINGERING):
                assert await line.rest() == b""

    whole = head("POST", "/tools", KEY, TYPE)
    async with house.quick_client():
        await asyncio.gather(*map(ask, (b"G", b"\r\n", b"GET /tools HTTP/1.1\r\n", whole[:-1], whole[:40])))


async def test_a_head_that_trickles_is_408_however_steadily_it_comes(house: House) -> None:
    async with house.line() as line, house.quick_client():
        task = asyncio.create_task(line.trickle(head("GET", "/tools", KEY, "X-Filler: " + "x" * 1_000)))
        with takes(PATIENCE, PATIENCE + LATE):
            answer = await line.receive()
        assert_timed_out(answer)
        assert await line.rest() == b""
        # who goes on sending finds the connection gone
        await asyncio.wait_for(task, 2)


@pytest.mark.embedded
async def test_who_says_nothing_is_cut_off_without_a_word(house: House) -> None:
    async with house.line() as line:
        with takes(PATIENCE, PATIENCE + LATE):
            assert await line.rest() == b""


@pytest.mark.embedded
async def test_a_kept_connection_may_rest_longer_than_a_head_may_take(house: House) -> None:
    async with house.line() as line:
        for pause in (0.0, 2.2 * PATIENCE, 0.0):
            await asyncio.sleep(pause)
            assert (await line.ask(HEALTH)).status == 200
        # the time of the next head begins with its first byte
        await asyncio.sleep(1.2 * PATIENCE)
        with takes(PATIENCE, PATIENCE + LATE):
            answer = await line.ask(HEALTH[:10])
        assert_timed_out(answer)
        assert await line.rest() == b""


@pytest.mark.embedded
async def test_a_kept_connection_that_rests_too_long_ends_without_a_word(
    serve: Serve, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.server._KEPT_ALIVE", 0.6)
    async with Line(await serve(replace(config, request_timeout=0.2))) as line:
        assert (await line.ask(HEALTH)).status == 200
        with takes(0.6, 1.2):
            assert await line.rest() == b""


@pytest.mark.embedded
async def test_half_a_request_behind_a_whole_one_is_408_too(house: House) -> None:
    async with house.line() as line:
        with takes(PATIENCE, PATIENCE + LATE):
            assert (await line.ask(HEALTH + HEALTH[:-5])).status == 200
            assert_timed_out(await line.receive())


async def test_a_head_that_begins_while_the_last_answer_is_on_its_way_has_no_more_time_than_others(house: House) -> None:
    async with house.line() as line:
        await line.send(head("GET", "/tools", KEY))
        # a request that asks the storage is still being answered then
        await asyncio.sleep(0)
        await line.send(HEALTH[:10])
        with takes(PATIENCE, PATIENCE + LATE):
            assert (await line.receive()).status == 200
            assert_timed_out(await line.receive())


async def test_a_head_that_trickles_behind_a_whole_request_is_408_too(house: House) -> None:
    async with house.line() as line:
        more = head("GET", "/tools", "X-Filler: " + "x" * 1_000)
        await line.send(HEALTH + more[:2])
        task = asyncio.create_task(line.trickle(more[2:]))
        with takes(PATIENCE, PATIENCE + LATE):
            assert (await line.receive()).status == 200
            assert_timed_out(await line.receive())
        assert await line.rest() == b""
        await asyncio.wait_for(task, 2)


async def test_a_head_and_a_body_that_come_just_in_time_are_served_again_and_again(house: House) -> None:
    async with house.line() as line:
        for name in ("late", "late again"):
            start, body = make_a_tool(name)
            await line.send(start[:-2])
            await asyncio.sleep(0.7 * PATIENCE)
            await line.send(start[-2:] + body[:-1])
            await asyncio.sleep(0.7 * PATIENCE)
            assert (await line.ask(body[-1:])).status == 201


SLOW_BODIES = {
    "never begins": (LONG, b"", False),
    "stops": (LONG, b'{"name": ', False),
    "trickles": (LONG, b'{"name": ', True),
    "never begins, chunked": (CHUNKED, b"", False),
    "stops after a chunk": (CHUNKED, chunk(b'{"name": '), False),
    "stops before its end": (CHUNKED, chunk(BODY), False),
    "stops within a chunk": (CHUNKED, b'ff\r\n{"name": ', False),
    "stops within a size": (CHUNKED, chunk(b'{"name": ') + b"f", False),
    "trickles, chunked": (CHUNKED, b"fff\r\n ", True),
}


async def test_a_body_that_does_not_come_in_time_is_408_and_changes_nothing(house: House) -> None:
    operations = await house.operations_with_a_body()
    before = [await house.client.json("GET", path) for path in ("/tools/1", "/agents/1", "/agents", "/runs")]
    answered = 0

    async def ask(method: str, path: str, framing: str, begun: bytes, trickles: bool) -> None:
        nonlocal answered
        async with house.line() as line:
            await line.send(head(method, path, KEY, TYPE, framing) + begun)
            task = asyncio.create_task(line.trickle(b" " * 900 if trickles else b""))
            with takes(PATIENCE, PATIENCE + LATE):
                answer = await line.receive()
            house.contract.check(method, path, answer.status, answer.headers, answer.body)
            assert_timed_out(answer)
            with takes(0, LINGER + LATE):
                assert await line.rest() == b""
            await asyncio.wait_for(task, 1)
            answered += 1

    asked = [asyncio.create_task(ask(*operation, *kind)) for operation in operations for kind in SLOW_BODIES.values()]
    async with house.quick_client():
        await asyncio.sleep(PATIENCE / 2)
        assert house.connections > len(asked)
        # who makes the service wait holds no place meanwhile; the quick client may
        assert house.inside <= 1
        await asyncio.gather(*asked)
    assert answered == 9 * 9
    assert [await house.client.json("GET", path) for path in ("/tools/1", "/agents/1", "/agents", "/runs")] == before
    names = [tool["name"] for tool in (await house.client.json("GET", "/tools?limit=100"))["items"]]
    assert "slow" not in names


@pytest.mark.embedded
async def test_a_408_says_that_the_connection_ends(house: House) -> None:
    """RFC 9110 section 15.5.9; an answer of HTTP/1.0 says it without words."""
    async with house.line() as line:
        await line.send(head("POST", "/tools", KEY, TYPE, LONG))
        answer = (await line.rest()).decode()
    assert answer.startswith(("HTTP/1.1 408 ", "HTTP/1.0 408 "))
    assert answer.startswith("HTTP/1.0") or "\r\nConnection: close\r\n" in answer


async def test_an_announced_body_that_does_not_come_in_time_is_408(house: House) -> None:
    announced = head("POST", "/tools", KEY, TYPE, "Expect: 100-continue", f"Content-Length: {len(BODY)}")
    async with house.line() as silent, house.line() as slow, house.line() as good, house.quick_client():
        assert [(await each.ask(announced)).status for each in (silent, slow, good)] == [100] * 3
        task = asyncio.create_task(slow.trickle(BODY))
        with takes(PATIENCE, PATIENCE + LATE):
            await asyncio.sleep(0.7 * PATIENCE)
            assert (await good.ask(BODY)).status == 201
            for each in (silent, slow):
                assert_timed_out(await each.receive())
        for each in (silent, slow):
            with takes(0, LINGER + LATE):
                assert await each.rest() == b""
        await task


BROKEN = {"no size": b"zz\r\n", "a size below zero": b"-1\r\n", "more than was said": b"2\r\nabcd\r\n"}


@pytest.mark.embedded
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
async def test_a_chunked_body_that_breaks_is_400_at_once_whenever_it_breaks(house: House, broken: bytes) -> None:
    request = head("POST", "/tools", KEY, TYPE, CHUNKED) + chunk(b'{"name": ')

    async def ask(together: bool, turns: int, pause: float) -> None:
        async with house.line() as line:
            if not together:
                await line.send(request)
                # the service runs on the same loop: with each turn it has got further with the request
                for _ in range(turns):
                    await asyncio.sleep(0)
                await asyncio.sleep(pause)
            with takes(0, AT_ONCE):
                answer = await line.ask(request + broken if together else broken)
            assert (answer.status, answer.headers["Content-Type"]) == (400, PROBLEM), (turns, answer)
            with takes(0, UNLINGERING):
                # one answer, and none to what broke it
                assert await line.rest() == b""

    await ask(True, 0, 0.0)
    for turns in range(25):
        await ask(False, turns, 0.0)
    await ask(False, 0, 0.1)


async def test_who_has_no_right_key_is_refused_before_the_body_and_held_no_longer_than_the_linger(house: House) -> None:
    operations = await house.operations_with_a_body()

    async def ask(keys: tuple[str, ...], method: str, path: str, framing: str, trickles: bool) -> None:
        async with house.line() as line:
            with takes(0, AT_ONCE):
                answer = await line.ask(head(method, path, *keys, TYPE, framing))
            house.contract.check(method, path, answer.status, answer.headers, answer.body)
            assert answer.status == 401
            size = b"fff\r\n" if framing == CHUNKED else b""
            task = asyncio.create_task(line.trickle(size + b" " * 500 if trickles else b""))
            with takes(0, LINGER + LATE):
                assert await line.rest() == b""
            await asyncio.wait_for(task, 2)

    wrong = ((), ("X-API-Key: wrong",), (KEY, KEY))
    async with house.quick_client():
        asked = [(keys, *each, framing) for keys in wrong for each in operations for framing in (LONG, CHUNKED)]
        await asyncio.gather(*(ask(*each, number % 2 == 0) for number, each in enumerate(asked)))


async def test_a_body_for_what_takes_none_is_not_waited_for(house: House) -> None:
    async def ask(path: str, status: int) -> None:
        async with house.line() as line:
            with takes(0, AT_ONCE):
                assert (await line.ask(head("GET", path, KEY, LONG))).status == status
            task = asyncio.create_task(line.trickle(b" " * 500))
            with takes(0, LINGER + LATE):
                assert await line.rest() == b""
            await task

    await asyncio.gather(*(ask(*each) for each in (("/health", 200), ("/tools", 200), ("/nowhere", 404), ("/docs", 200))))


async def test_who_hangs_up_halfway_leaves_nothing_behind(house: House) -> None:
    start, body = make_a_tool("gone")
    for sent in (b"", start[:20], start, start + body[:9], head("POST", "/tools", KEY, TYPE, CHUNKED) + chunk(b"{")):
        for resets in (False, True):
            async with house.line() as line:
                await line.send(sent)
                await asyncio.sleep(0.01)
                if not resets:
                    line._writer.write_eof()
                    await line.rest()
    with takes(0, 0.9 * PATIENCE):
        await house.client.session.close()
        await house.emptied()


def big_runs(count: int) -> Unit[None]:
    """An agent with so many runs, each about as big as one can be."""
    now = utc_now()
    agent_id = yield ask("create_agent_id")
    yield ask("create_agent", agent_id=agent_id, name="big", role="r", description="d", now=now)
    for _ in range(count):
        yield ask(
            "create_run",
            agent_id=agent_id,
            agent_name="big",
            task="🔎" * 20_000,
            model="gpt-4o",
            status="completed",
            prompt="🔎" * 20_000,
            response="r",
            error=None,
            steps="[]",
            prompt_tokens=1,
            completion_tokens=1,
            created_at=now,
            duration_ms=0,
        )


@asynccontextmanager
async def deaf(house: House, request: bytes) -> AsyncIterator[socket.socket]:
    """A connection with hardly any room for answers, which has sent a request; nobody reads from it."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, (house.client.host, house.client.port))
        await loop.sock_sendall(connection, request)
        yield connection


@pytest.fixture
async def page(house: House) -> str:
    """The path of a page with 8 MB, more than the system holds for a client."""
    await Scope(house.app[STATE].authenticator._database, "tenant_a", None).write(big_runs(50))
    return "/runs?limit=100"


async def test_who_never_takes_an_answer_is_cut_off(house: House, page: str) -> None:
    requests = (
        head("GET", page, KEY),
        head("GET", page, KEY) * 20,
        head("GET", page, KEY, "Connection: close"),
        head("GET", page, KEY) + HEALTH[:-5],
        head("GET", "/docs/swagger-ui-bundle.js") * 10,
        # each answer is small, but all together fill every buffer
        HEALTH * 20_000,
    )
    async with AsyncExitStack() as stack:
        for request in requests[:-1]:
            await stack.enter_async_context(deaf(house, request))
        small = await stack.enter_async_context(deaf(house, HEALTH))
        flood = asyncio.create_task(asyncio.get_running_loop().sock_sendall(small, requests[-1]))
        most = 0
        async with asyncio.timeout(3):
            # pages that large are work; the places are free again as soon as they are made
            while house.inside or most < len(requests):
                most = max(most, house.connections)
                await asyncio.sleep(0)
        async with house.quick_client():
            await asyncio.sleep(PATIENCE / 2)
        await house.emptied()
        await asyncio.wait([flood], timeout=1)
        assert flood.done()
        assert flood.exception() is None or isinstance(flood.exception(), ConnectionError)


@pytest.mark.parametrize("seen", ["by the watch", "before a large answer"])
async def test_who_takes_an_answer_in_small_sips_does_not_hold_all_the_memory(
    house: House, page: str, monkeypatch: pytest.MonkeyPatch, seen: str
) -> None:
    async def sip(connection: socket.socket) -> None:
        with suppress(ConnectionError):
            while await asyncio.get_running_loop().sock_recv(connection, 4096):  # noqa: ASYNC110  # the sips are small and far between
                await asyncio.sleep(0.005)

    def unsent() -> int:
        return sum(each.unsent for each in house.protocols)

    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        sippers = [
            group.create_task(sip(await stack.enter_async_context(deaf(house, head("GET", page, KEY))))) for _ in range(4)
        ]
        async with asyncio.timeout(3):
            while house.connections < 4 or not all(each.unsent for each in house.protocols):  # noqa: ASYNC110  # nothing announces it
                await asyncio.sleep(0.01)
        await asyncio.sleep(2 * PATIENCE)
        # each took something in its time, so that all of it is still waiting for them
        assert house.connections == 4
        large = max(each.unsent for each in house.protocols)
        if seen == "before a large answer":
            house.client.server.runner._watch.cancel()
        monkeypatch.setattr("service.protocol._MOST_UNSENT", int(2.5 * large))
        async with house.quick_client():
            if seen == "by the watch":
                await asyncio.sleep(PATIENCE / 10 + 0.1)
            else:
                assert (await house.client.get(page, headers=KEY_A)).status == 200
        assert large < unsent() <= 2.5 * large
        assert sum(each.unsent > 0 for each in house.protocols) == 2
        for each in sippers:
            each.cancel()
    for each in house.protocols:
        each.cut_off()


async def test_hundreds_of_slow_clients_hold_nobody_up(house: House) -> None:
    most = 0

    async def be_slow(number: int) -> tuple[int, bytes]:
        nonlocal most
        kind = number % 4
        start = head("POST", "/tools", KEY, TYPE, LONG)
        async with house.line() as line:
            await line.send((b"", start[:-2], start, start + b"{")[kind])
            most = max(most, house.connections)
            return kind, (await line.rest()).partition(b"\r\n")[0][8:]

    crowd = []
    async with house.quick_client():
        for number in range(300):
            crowd.append(asyncio.create_task(be_slow(number)))
            if number % 20 == 19:
                # no more at once than the system lets wait for the service
                await asyncio.sleep(0.01)
        assert house.inside <= 1
        ends = await asyncio.gather(*crowd)
    assert most > 150
    timed_out = b" 408 Request Timeout"
    assert set(ends) == {(0, b""), (1, timed_out), (2, timed_out), (3, timed_out)}
