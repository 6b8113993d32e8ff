"""Requests that are cut off at random moments, many at once: each has done all it was to do, or nothing.

A client closes its connection, within the request or behind it, or the handler's task is cancelled at one of its awaits.
"""

import asyncio
import json
import random
from collections import Counter
from pathlib import Path

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web
from aiohttp.test_utils import make_mocked_request
from yarl import URL

from service.app import make_app
from service.config import Config
from service.execution.models import ModelRegistry
from service.server import Runner
from service.state import STATE
from tests.attacks import databases
from tests.attacks.crowd import Crowd
from tests.attacks.databases_base import Store
from tests.attacks.stored import send, together
from tests.attacks.writers import Write, Writer
from tests.faults.test_cancellation import Arriving, Moment, Thinking, Working, cancelled_at
from tests.support.storage import rest

# suspensions and turns of the loop behind which most requests are done
_SUSPENSIONS = 14
_TURNS = 60


def attack(seed: int, amount: int, folder: Path, engine: str = "sqlite") -> dict[str, int]:
    """Cuts off at least `amount` requests; raises AssertionError where one is done in part, or anything is left open.

    Counts: `cancellations`, of which `done` and `not_done`; `acknowledged`, requests beside them that were answered, and
    `found`, those whose effect is there; `replays` of what was cut off or answered.
    """
    return asyncio.run(_attack(seed, amount, folder, engine))


async def _attack(seed: int, amount: int, folder: Path, engine: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for cancels in (False, True):
        # the second half with a server that cancels the handler of a client that is gone
        store = databases.new(engine, folder, f"hangups-{cancels}")
        room = _Room(store, random.Random(f"{seed} {cancels}"), cancels=cancels)
        await room.runner.setup()
        try:
            await web.TCPSite(room.runner, "127.0.0.1", 0).start()
            least = amount - counts["done"] - counts["not done"] if cancels else amount // 2
            await room.cut_off(least)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, cancels: {cancels}, {dict(room.crowd.counts)}: {error}") from None
        finally:
            await room.runner.cleanup()
        store.check(room.crowd.agent_ids)
        counts += room.crowd.counts
    return {
        "cancellations": counts["done"] + counts["not done"],
        **{name.replace(" ", "_"): counts[name] for name in ("done", "not done", "acknowledged", "found", "replays")},
    }


class _Room:
    """A served application and its clients."""

    def __init__(self, store: Store, choice: random.Random, *, cancels: bool) -> None:
        self.store = store
        self.choice = choice
        self.crowd = Crowd([store.add_tenant(f"tenant-{at}") for at in range(3)], writers=10, holders=0, choice=choice)
        config = Config(database=store.database, rate_limit=1_000_000)
        self.app = make_app(config, models=ModelRegistry({"gpt-4o": Thinking()}), tool_executor=Working())
        self.runner = Runner(self.app, access_log=None, handler_cancellation=cancels)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def cut_off(self, least: int) -> None:
        """Sends waves of requests, one of each client, until so many have been cut off."""
        counts = self.crowd.counts
        idle = asyncio.all_tasks()
        while counts["done"] + counts["not done"] < least:
            async with self._session() as session:
                await together(*(self._one(session, writer) for writer in self.crowd.writers))
            await self._rest(idle)
            async with self._session() as session:
                await self.crowd.settle(session, self.origin)
            await self._rest(idle)
        async with self._session() as session:
            await self.crowd.check_all_runs(session, self.origin)
        await self._rest(idle)

    async def _one(self, session: ClientSession, writer: Writer) -> None:
        """One request of a client: one of five is let alone, the others are cut off, if there is time."""
        write = writer.pending = writer.next()
        answer: tuple[int, bytes] | None
        match self.choice.randrange(5):
            case 0:
                status, _, body = await send(session, self.origin, write)
                answer = status, body
            case 1:
                answer = await self._given_up(session, write)
            case 2:
                answer = await self._disconnected(write)
            case _:
                answer = await self._cancelled(write)
        if answer is not None:
            writer.take(write, *answer)

    async def _given_up(self, session: ClientSession, write: Write) -> tuple[int, bytes] | None:
        """A client that waits for a while, then closes the connection."""
        try:
            async with asyncio.timeout(self.choice.uniform(0, 0.03)):
                status, _, body = await send(session, self.origin, write)
        except (TimeoutError, ClientError):
            return None
        return status, body

    async def _disconnected(self, write: Write) -> None:
        """A client that is gone within its request, or soon after it; it reads no answer."""
        body = b"" if write.body is None else json.dumps(write.body).encode()
        headers = {"Host": "x", "Content-Length": str(len(body)), **write.headers}
        lines = [f"{write.method} {write.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        data = "\r\n".join(lines).encode() + body
        _, stream = await asyncio.open_connection("127.0.0.1", URL(self.origin).port)
        stream.write(data if self.choice.random() < 0.7 else data[: self.choice.randrange(len(data))])
        for _ in range(self.choice.randrange(_TURNS)):
            await asyncio.sleep(0)
        if self.choice.random() < 0.5:
            stream.transport.abort()
        else:
            stream.close()
        await asyncio.wait([asyncio.create_task(stream.wait_closed())])

    async def _cancelled(self, write: Write) -> tuple[int, bytes] | None:
        """A request whose handler is cancelled at one of its awaits."""
        number, moment = self.choice.randrange(_SUSPENSIONS), self.choice.choice(list(Moment))
        response = await cancelled_at(number, moment, self._handled(write))
        if response is None:
            return None
        assert isinstance(response.body, bytes | None)
        return response.status, response.body or b""

    async def _handled(self, write: Write) -> web.StreamResponse:
        """What the server does with a request between its head and its answer."""
        body = b"" if write.body is None else json.dumps(write.body).encode()
        headers = {**write.headers, "Content-Length": str(len(body))}
        more = {"payload": Arriving(body)} if body else {}
        request = make_mocked_request(write.method, write.path, headers, app=self.app, **more)
        match = await self.app.router.resolve(request)
        match.add_app(self.app)
        request._match_info = match
        return await match.handler(request)

    def _session(self) -> ClientSession:
        return ClientSession(connector=TCPConnector(limit=0), timeout=ClientTimeout(total=20))

    async def _rest(self, idle: set["asyncio.Task[object]"]) -> None:
        """Waits until the server has nothing to do; then nothing may be left open, counted or locked."""
        async with asyncio.timeout(10):
            # the server accepts in the order of arrival: behind this one, nobody is waiting for it
            async with self._session() as session, session.get(f"{self.origin}/health") as answer:
                assert answer.status == 200
            while under_way := asyncio.all_tasks() - idle:
                await asyncio.wait(under_way)
        # no connection is in a transaction, none has a lock
        await rest(self.app, self.store.database)
        assert self.store.at_work() == []
        state = self.app[STATE]
        assert state.gate.inside == 0, f"{state.gate.inside} requests are inside still"
        assert not state.retries._here, f"retries are under way still: {state.retries._here}"
        assert not self.runner.server or not self.runner.server.connections, "a connection is open still"
