"""A light load while something is broken: clients that write and read, what they were told, and whether it is true."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector

from tests.conftest import KEY_A
from tests.support.contract import Contract
from tests.support.http import AGENT, PROBLEM, TOOL
from tests.support.storage import Database, rows

UNDER_WAY = "urn:agent-platform:problem:request-under-way"
# so many clients write; every second one has a key for each request, and sends it again until it is done
_WRITERS = 8
_READERS = 2
_PAUSE = 0.005
# a client gives up on an answer, in seconds: nothing may hang
_PATIENCE = 15.0
# what a client does whose request is not answered with success
_ONCE_MORE = 0.05
# no answer at all is what a kill, of a process, leaves of its requests
_CUT = 0


@dataclass
class Load:
    """What the clients of one service have seen. Made by `load`."""

    origin: str
    contract: Contract
    # the answers by what was written, and what may have been written or not
    acknowledged: dict[str, bytes] = field(default_factory=dict)
    unsure: set[str] = field(default_factory=set)
    # when each was sent for the first time, and when it was acknowledged
    sent: dict[str, float] = field(default_factory=dict)
    answered: dict[str, float] = field(default_factory=dict)
    # when, whose and what each answer was; 0 for none
    seen: list[tuple[float, int, int]] = field(default_factory=list)
    # the processes that have answered, by the beginning of their request ids
    processes: set[str] = field(default_factory=set)
    request_ids: list[str] = field(default_factory=list)
    agent_id: int = 0
    tool_ids: list[int] = field(default_factory=list)
    is_ending: bool = False
    # it is not to come back: who has no answer by now gets none
    is_gone: bool = False

    @property
    def statuses(self) -> Counter[int]:
        return Counter(status for _, _, status in self.seen)

    async def has_written(self, count: int) -> None:
        """Waits until so many more writes are acknowledged."""
        goal = len(self.acknowledged) + count
        async with asyncio.timeout(_PATIENCE):
            while len(self.acknowledged) < goal:  # noqa: ASYNC110  # nothing announces it
                await asyncio.sleep(0.01)

    async def has_seen(self, status: int, since: float) -> None:
        """Waits until some client has got such an answer."""
        async with asyncio.timeout(_PATIENCE):
            while not any(when > since and found == status for when, _, found in self.seen):  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.01)

    async def is_well(self, since: float, within: float = 5.0) -> None:
        """Waits until everyone is served again. Raises AssertionError where anyone is not, `within` seconds from `since`."""
        everyone = set(range(_WRITERS + _READERS))
        while everyone - {who for when, who, status in self.seen if when > since and 200 <= status < 300}:
            assert time.monotonic() < since + within, (everyone, self.statuses)
            await asyncio.sleep(0.01)
        after = [status for when, _, status in self.seen if when > since + within]
        assert all(200 <= status < 300 for status in after), after

    def check(self, database: Database) -> None:
        """All that was acknowledged is stored, once; nothing else is but what may be; and nothing is half."""
        for kind, name in (("runs", "task"), ("tools", "name"), ("agents", "name")):
            found = Counter(text for (text,) in rows(database, f"select {name} from {kind}"))
            acknowledged = {name for name in self.acknowledged if name.startswith(kind)}
            unsure = {name for name in self.unsure if name.startswith(kind)}
            assert not acknowledged - found.keys(), f"acknowledged and not there: {sorted(acknowledged - found.keys())}"
            assert found.keys() <= acknowledged | unsure, f"not asked for: {sorted(found.keys() - acknowledged - unsure)}"
            assert set(found.values()) <= {1}, f"twice: {found.most_common(5)}"
        assert rows(database, "select id from agent_ids where id not in (select id from agents)") == []
        linked = "(select count(*) from agent_tools where agent_id = agents.id)"
        assert set(rows(database, f"select {linked} from agents")) <= {(len(self.tool_ids),)}
        counted = (
            "select agent_id, status, count(*) from runs group by 1, 2 "
            "union all select 0, status, count(*) from runs group by 2"
        )
        assert sorted(rows(database, "select agent_id, status, runs from run_counts")) == sorted(rows(database, counted))
        kept = {key for (key,) in rows(database, "select idempotency_key from kept_answers")}
        keyed = {name for name in self.acknowledged if name.endswith("keyed")}
        assert keyed <= kept <= keyed | self.unsure
        # an id is no other request's, of whatever process
        assert len(self.request_ids) == len(set(self.request_ids))

    async def ask(
        self, session: ClientSession, who: int, method: str, path: str, body: Any = None, key: str | None = None
    ) -> tuple[int, bytes]:
        """The status and body of an answer, 0 where the connection broke; it is one that a client may get."""
        data = None if body is None else json.dumps(body).encode()
        headers = KEY_A | ({} if key is None else {"Idempotency-Key": key})
        if data is not None:
            headers |= {"Content-Type": "application/json"}
        try:
            async with session.request(method, self.origin + path, data=data, headers=headers) as response:
                status, text = response.status, await response.read()
        except (ClientError, ConnectionError):
            self.seen.append((time.monotonic(), who, _CUT))
            return _CUT, b""
        self.contract.check(method, urlsplit(path).path, status, response.headers, text)
        self.request_ids.append(response.headers["X-Request-ID"])
        self.processes.add(response.headers["X-Request-ID"][:20])
        if status == 503:
            assert int(response.headers["Retry-After"]) >= 1
            assert response.headers["Content-Type"] == PROBLEM
        elif status == 409:
            assert key is not None
            assert json.loads(text)["type"] == UNDER_WAY, text
        else:
            assert 200 <= status < 300, (status, text)
        self.seen.append((time.monotonic(), who, status))
        return status, text

    async def replays(self, session: ClientSession) -> None:
        """Sends some of the keyed requests once more: each gets its first answer."""
        for name in [name for name in self.acknowledged if name.endswith("keyed")][-30:]:
            path, body = self._request(name)
            assert (await self.ask(session, 1, "POST", path, body, name))[1] == self.acknowledged[name]

    def _request(self, name: str) -> tuple[str, Any]:
        if name.startswith("runs"):
            return f"/agents/{self.agent_id}/run", {"task": name, "model": "gpt-4o"}
        if name.startswith("tools"):
            return "/tools", {**TOOL, "name": name}
        return "/agents", {**AGENT, "name": name, "tool_ids": self.tool_ids}

    async def _make(self, session: ClientSession) -> None:
        """What the others use."""
        for name in ("tools 1", "tools 2", "agents 1"):
            self.sent[name] = time.monotonic()
        for name in ("tools 1", "tools 2"):
            status, text = await self.ask(session, 0, "POST", "/tools", {**TOOL, "name": name})
            assert status == 201
            self.acknowledged[name] = text
            self.tool_ids.append(json.loads(text)["id"])
        status, text = await self.ask(session, 0, "POST", *self._request("agents 1"))
        assert status == 201
        self.acknowledged["agents 1"] = text
        self.agent_id = json.loads(text)["id"]

    async def _write(self, session: ClientSession, who: int) -> None:
        number = 0
        while not self.is_ending:
            number += 1
            kind = ("runs", "agents", "runs", "tools")[number % 4]
            name = f"{kind}-{who}-{number}-{'keyed' if who % 2 else 'plain'}"
            status = await self._make_one(session, who, name)
            while who % 2 and not 200 <= status < 300 and not self.is_gone:
                await asyncio.sleep(_ONCE_MORE)
                status = await self._make_one(session, who, name)
            await asyncio.sleep(_PAUSE)

    async def _make_one(self, session: ClientSession, who: int, name: str) -> int:
        path, body = self._request(name)
        self.sent.setdefault(name, time.monotonic())
        status, text = await self.ask(session, who, "POST", path, body, name if who % 2 else None)
        if 200 <= status < 300:
            self.acknowledged[name] = text
            self.answered[name] = time.monotonic()
        elif who % 2 == 0 or self.is_gone:
            self.unsure.add(name)
        return status

    async def _read(self, session: ClientSession, who: int) -> None:
        while not self.is_ending:
            await self.ask(session, who, "GET", "/runs?limit=5" if who % 2 else "/agents?limit=5")
            await asyncio.sleep(_PAUSE)


@asynccontextmanager
async def load(origin: str, contract: Contract) -> AsyncIterator[Load]:
    """Clients at work while the block lasts, half of them with a new connection for each request.

    Behind it, what had a key is done and is answered with the same again.
    """
    found = Load(origin, contract)
    patience = ClientTimeout(total=_PATIENCE)
    async with AsyncExitStack() as stack:
        kept, fresh = [
            await stack.enter_async_context(
                ClientSession(connector=TCPConnector(limit=0, force_close=force_close), timeout=patience)
            )
            for force_close in (False, True)
        ]
        await found._make(kept)
        async with asyncio.TaskGroup() as group:
            for who in range(_WRITERS + _READERS):
                live = found._write if who < _WRITERS else found._read
                group.create_task(live(kept if who % 4 < 2 else fresh, who))
            try:
                yield found
            finally:
                found.is_ending = True
        if not found.is_gone:
            await found.replays(kept)
