"""A request that is cancelled, wherever that is, has done all it was to do or nothing, and holds up nobody."""

import asyncio
import itertools
import json
import re
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request

from service.app import make_app
from service.auth import new_key
from service.config import Config
from service.execution.models import Conversation, MockModel, ModelRegistry, ToolCall
from service.execution.prompt import Tool
from service.execution.tools import MockTools
from service.server import Runner
from service.state import STATE
from tests.conftest import KEY_A, Client, Server
from tests.support.contract import Contract
from tests.support.http import AGENT, MERGE_PATCH, TOOL, make_agent, make_tool, run
from tests.support.keys import store
from tests.support.storage import Database, execute, made, paused_until, rest, rows, traced
from tests.support.tables import put_back, restart_ids, tables

Dump = dict[str, list[tuple[Any, ...]]]
JSON = {"Content-Type": "application/json"}
TASK = {"task": "Search the web, then mail it", "model": "gpt-4o"}
# a room is made once, and set back: its tests share a loop with it
in_the_room = pytest.mark.asyncio(loop_scope="module")
# times, and the ids of requests, wherever they stand
_NEW = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z|\b[0-9a-f]{32}\b", re.ASCII)


@dataclass(frozen=True)
class Sent:
    """A request on the service that `room` prepares, which has the tools 1 to 3 and the agents 1 and 2."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] | None = None


REQUESTS = {
    "create a tool": Sent("POST", "/tools", {**TOOL, "name": "new"}),
    "replace a tool": Sent("PUT", "/tools/1", {"name": "found", "description": "Find it"}),
    "delete a tool that agents have": Sent("DELETE", "/tools/1"),
    "create an agent": Sent("POST", "/agents", {**AGENT, "name": "new", "tool_ids": [1, 2, 3]}),
    "replace an agent": Sent("PUT", "/agents/1", {**AGENT, "name": "other", "tool_ids": [3]}),
    "change an agent": Sent("PATCH", "/agents/1", {"role": "Clerk", "tool_ids": [2, 3]}, MERGE_PATCH),
    "delete an agent": Sent("DELETE", "/agents/1"),
    "run an agent": Sent("POST", "/agents/1/run", TASK),
}


class Thinking(MockModel):
    """The mock, but it suspends the request as a model elsewhere would."""

    async def answer(self, conversation: Conversation) -> str | ToolCall:
        await asyncio.sleep(0)
        return await super().answer(conversation)


class Working(MockTools):
    """The mock, but it suspends the request as a tool elsewhere would."""

    async def execute(self, tool: Tool, arguments: Mapping[str, str]) -> str:
        await asyncio.sleep(0)
        return await super().execute(tool, arguments)


class Never(MockModel):
    """A model that does not come to an end."""

    def __init__(self, most: int) -> None:
        self._awaited = most
        self.asked_by_all = asyncio.Event()

    async def answer(self, conversation: Conversation) -> str | ToolCall:
        self._awaited -= 1
        if not self._awaited:
            self.asked_by_all.set()
        await asyncio.Event().wait()
        raise AssertionError


class Arriving(StreamReader):
    """A request's body that comes in two parts, each awaited."""

    def __init__(self, body: bytes) -> None:
        super().__init__(BaseProtocol(asyncio.get_running_loop()), limit=2**16)
        self._parts = [body[:5], body[5:], b""]

    async def readany(self) -> bytes:
        await asyncio.sleep(0)
        return self._parts.pop(0)


class Stepped:
    """Awaits `coroutine`, and tells `suspended` of each of its suspensions: the how manieth, and what it waits for."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], suspended: Callable[[int, Any], None]) -> None:
        self._coroutine = coroutine
        self._suspended = suspended

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._coroutine.__await__()
        thrown: BaseException | None = None
        for number in itertools.count():
            try:
                awaited = steps.send(None) if thrown is None else steps.throw(thrown)
            except StopIteration as stop:
                return stop.value
            self._suspended(number, awaited)
            thrown = None
            try:
                yield awaited
            except BaseException as error:
                thrown = error


class Moment(Enum):
    """When in a suspension the cancellation comes."""

    AT_ONCE = "as it begins to wait"
    TOO_LATE = "as what it waits for is there"


async def cancelled_at(number: int, moment: Moment, coroutine: Coroutine[Any, Any, Any]) -> web.Response | None:
    """Runs a request and cancels it at its suspension `number`, from 0; the response of one that has fewer."""

    def suspended(at: int, awaited: Any) -> None:
        if at == number and (moment is Moment.AT_ONCE or awaited is None):
            task.cancel()
        elif at == number:
            # in front of the task's own callback: the result is there, and the task does not know yet
            awaited.add_done_callback(lambda _: task.cancel())

    async def whole() -> Any:
        return await Stepped(coroutine, suspended)

    task = asyncio.create_task(whole())
    async with asyncio.timeout(10):
        await asyncio.wait([task])
    return None if task.cancelled() else task.result()


class Trace:
    """Cancels the task as its statement `number` begins, from 0, and holds the statement until that is done."""

    task: asyncio.Task[web.Response]

    def __init__(self, number: int) -> None:
        self.seen: list[str] = []
        self._number = number
        self._loop = asyncio.get_running_loop()
        self._cancelled = threading.Event()

    def __call__(self, statement: str) -> Any:
        self.seen.append(statement)
        if len(self.seen) == self._number + 1 and not self.task.done():
            self._loop.call_soon_threadsafe(self._cancel)
            return paused_until(self._cancelled)
        return None

    def _cancel(self) -> None:
        self.task.cancel()
        self._cancelled.set()


def dump(database: Database) -> Dump:
    """All rows of all tables, as a connection of its own sees them; how long a run took is left out."""
    return {
        table: [tuple(value for name, value in row.items() if name != "duration_ms") for row in found]
        for table, found in tables(database).items()
    }


class Room:
    """A service with some things in it, to which it can be set back."""

    def __init__(self, app: web.Application, client: Client, database: Database) -> None:
        self.app = app
        self.client = client
        self.database = database
        self._key = new_key()

    async def prepare(self) -> None:
        for name in ("search", "mail", "idle"):
            await make_tool(self.client, name)
        await make_agent(self.client, "first", tool_ids=[1, 2])
        await make_agent(self.client, "second", tool_ids=[1, 3])
        await run(self.client, 1)
        # a look at the storage for the key is a place to be cut off at, too
        await store(self.app[STATE].authenticator._database, "tenant_a", self._key)
        # its use is noted by now, and no more in between
        execute(self.database, "update api_keys set last_used_at = '9999-12-31T23:59:59.999999Z'")
        self._spare = tables(self.database)
        self._times = {value for rows in dump(self.database).values() for row in rows for value in row}

    def set_back(self) -> None:
        self.app[STATE].authenticator._found.clear()
        put_back(self.database, self._spare)

    async def request(self, sent: Sent) -> web.Response:
        """What the server does with a request between its head and its answer."""
        body = b"" if sent.body is None else json.dumps(sent.body).encode()
        headers = {"X-API-Key": self._key}
        more: dict[str, Any] = {}
        if sent.body is not None:
            headers |= {"Content-Length": str(len(body)), **(sent.headers or JSON)}
            more["payload"] = Arriving(body)
        request = make_mocked_request(sent.method, sent.path, headers, app=self.app, **more)
        match = await self.app.router.resolve(request)
        match.add_app(self.app)
        request._match_info = match
        response = await match.handler(request)
        assert isinstance(response, web.Response)
        return response

    async def states(self) -> tuple[Dump, Dump]:
        """What is stored now, and after one more request. Times that were not there before are all alike."""
        await rest(self.app, self.database)
        now = dump(self.database)
        # what was undone may have used up ids
        restart_ids(self.database)
        await make_tool(self.client, "one more")
        return self._timeless(now), self._timeless(dump(self.database))

    def _timeless(self, found: Dump) -> Dump:
        def old(value: Any) -> Any:
            if not isinstance(value, str) or value in self._times:
                return value
            return _NEW.sub(lambda found: found[0] if found[0] in self._times else "later", value)

        return {table: [tuple(map(old, row)) for row in rows] for table, rows in found.items()}

    async def outcomes(self, sent: Sent) -> list[tuple[Dump, Dump]]:
        """The states that a request may leave: those of one that never came, and those of one that was answered."""
        self.set_back()
        never = await self.states()
        self.set_back()
        assert (await self.request(sent)).status < 300
        answered = await self.states()
        assert never[0] != answered[0]
        return [never, answered]


@asynccontextmanager
async def opened(database: Database, contract: Contract) -> AsyncIterator[Room]:
    config = Config(database=database, rate_limit=10_000)
    app = make_app(config, models=ModelRegistry({"gpt-4o": Thinking()}), tool_executor=Working())
    async with Client(Server(app), contract) as client:
        room = Room(app, client, database)
        await room.prepare()
        yield room


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def room_on_sqlite(contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Room]:
    async with opened(made("sqlite", tmp_path_factory.mktemp("room") / "room.db"), contract) as room:
        yield room


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def room_on_postgresql(contract: Contract) -> AsyncIterator[Room]:
    async with opened(made("postgresql", Path("room")), contract) as room:
        yield room


@pytest.fixture
def room(engine: str, request: pytest.FixtureRequest) -> Room:
    found: Room = request.getfixturevalue(f"room_on_{engine}")
    return found


@in_the_room
@pytest.mark.parametrize("moment", Moment, ids=lambda moment: moment.name.lower())
@pytest.mark.parametrize("sent", REQUESTS.values(), ids=list(REQUESTS))
async def test_a_request_that_is_cancelled_at_any_await_has_done_all_or_nothing(
    room: Room, sent: Sent, moment: Moment
) -> None:
    outcomes = await room.outcomes(sent)
    left: list[int] = []
    for number in itertools.count():
        room.set_back()
        answered = await cancelled_at(number, moment, room.request(sent))
        states = await room.states()
        assert states in outcomes, f"half of it is there, cancelled at the suspension {number}"
        left.append(outcomes.index(states))
        if answered is not None:
            break
    # the key, the three parts of the body, the write
    assert len(left) > (2 if sent.body is None else 5)
    assert left[0] == 0
    assert left[-1] == 1
    # who is cancelled as the answer comes has written already: what the harness counts goes up to there
    assert moment is Moment.AT_ONCE or left[-2] == 1


@in_the_room
@pytest.mark.parametrize("sent", REQUESTS.values(), ids=list(REQUESTS))
async def test_a_request_that_is_cancelled_at_any_of_its_statements_has_done_all_or_nothing(room: Room, sent: Sent) -> None:
    outcomes = await room.outcomes(sent)
    left: list[int] = []
    for number in itertools.count():
        room.set_back()
        trace = Trace(number)
        async with traced(room.app, trace):
            trace.task = asyncio.create_task(room.request(sent))
            async with asyncio.timeout(10):
                await asyncio.wait([trace.task])
            await rest(room.app, room.database)
        states = await room.states()
        assert states in outcomes, f"half of it is there, cancelled at {trace.seen[number]}"
        left.append(outcomes.index(states))
        if not trace.task.cancelled():
            break
    # the look-up of the key, and the beginning, one statement or more, and the end of a write; all in one where a run is
    # all that is stored, and PostgreSQL stores it
    is_one = sent.path.endswith("/run") and isinstance(room.database, str)
    assert len(left) > (5 if is_one else 6)
    assert left[0] == 0
    assert left[-2:] == [1, 1]


def links(database: Database) -> dict[str, int]:
    """How many tools each agent has, by its name. An identity without its agent would be half of a creation."""
    assert rows(database, "select id from agent_ids where id not in (select id from agents)") == []
    linked = "(select count(*) from agent_tools where agent_id = agents.id)"
    return dict(rows(database, f"select name, {linked} from agents"))


@in_the_room
async def test_of_many_requests_at_once_the_cancelled_ones_take_no_other_with_them(room: Room) -> None:
    def create(at: int) -> Sent:
        return Sent("POST", "/agents", {**AGENT, "name": f"agent {at}", "tool_ids": [1, 2, 3]})

    room.set_back()
    moments = list(Moment)
    answers = await asyncio.gather(
        *(cancelled_at(at % 8, moments[at // 8 % 2], room.request(create(at))) for at in range(96))
    )
    await rest(room.app, room.database)
    found = links(room.database)
    for at, response in enumerate(answers):
        assert found.get(f"agent {at}", 3) == 3
        if response is not None:
            assert response.status == 201
            assert isinstance(response.body, bytes)
            assert await room.client.json("GET", response.headers["Location"]) == json.loads(response.body)
    # six suspensions: two of eight are not cancelled at all
    assert sum(response is not None for response in answers) >= 24
    assert any(f"agent {at}" not in found for at in range(96))


class Steadfast(Server):
    """The server as shipped: it lets a request finish whose client has gone."""

    async def _make_runner(self, **kwargs: Any) -> Runner:
        return await super()._make_runner(**kwargs | {"handler_cancellation": False})


@pytest.mark.parametrize("server", [Server, Steadfast], ids=["cancels", "finishes"])
async def test_clients_that_hang_up_in_the_middle_leave_nothing_half_done(
    config: Config, contract: Contract, server: type[Server]
) -> None:
    app = make_app(config)
    async with Client(server(app), contract) as client:
        for name in ("search", "mail", "idle"):
            await make_tool(client, name)

        def request(at: int) -> tuple[bytes, int]:
            body = json.dumps({**AGENT, "name": f"agent {at}", "tool_ids": [1, 2, 3]}).encode()
            head = (
                f"POST /agents HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY_A['X-API-Key']}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            return head.encode() + body, len(head)

        async def hang_up(at: int) -> bytes:
            """Four kinds of clients: gone within the head, within the body, behind it, and one that stays."""
            data, head = request(at)
            reader, writer = await asyncio.open_connection(client.host, client.port)
            cuts = (at * head // 100, head + (len(data) - head) * at // 100, len(data), len(data))
            writer.write(data[: cuts[at % 4]])
            status = b""
            if at % 4 == 3:
                status = (await reader.readline())[9:12]
            for _ in range(at // 4):
                await asyncio.sleep(0)
            if at % 8 < 4:
                writer.close()
            else:
                writer.transport.abort()
            await asyncio.wait([asyncio.create_task(writer.wait_closed())])
            return status

        idle = asyncio.all_tasks()
        kept = await asyncio.gather(*map(hang_up, range(100)))
        async with asyncio.timeout(10):
            await make_agent(client, "one more", tool_ids=[1, 2, 3])
            while under_way := asyncio.all_tasks() - idle:
                await asyncio.wait(under_way)
        found = links(config.database)
        assert set(found.values()) == {3}
        for at, status in enumerate(kept):
            if at % 4 == 3:
                assert status == b"201"
                assert f"agent {at}" in found
            elif at % 4 < 2:
                assert f"agent {at}" not in found
        assert "one more" in found
        await rest(app, config.database)


class Hasty(Server):
    """A server that cancels what is under way as soon as it is to end."""

    async def _make_runner(self, **kwargs: Any) -> Runner:
        return await super()._make_runner(**kwargs, shutdown_timeout=0.05)


async def test_requests_that_the_end_of_the_service_cancels_leave_nothing_half_done(
    config: Config, contract: Contract
) -> None:
    model = Never(20)
    app = make_app(replace(config, rate_limit=100), models=ModelRegistry({"gpt-4o": model}))
    async with Client(Hasty(app), contract) as client:
        await make_agent(client, tool_ids=[(await make_tool(client))["id"]])
        before = dump(config.database)
        runs = [asyncio.create_task(run(client, 1)) for _ in range(20)]
        async with asyncio.timeout(5):
            await model.asked_by_all.wait()
    assert all(isinstance(each, Exception) for each in await asyncio.gather(*runs, return_exceptions=True))
    assert dump(config.database) == before
