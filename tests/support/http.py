"""What the HTTP tests share: making things, reading refusals, comparing answers, and speaking to the socket itself."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.conftest import KEY_A, KEY_B, Client
from tests.support.secrets import PLANTED

JSON = dict[str, Any]
Headers = Mapping[str, str] | Sequence[tuple[str, str]]

TOOL = {"name": "search", "description": "Search the web"}
AGENT = {"name": "runner", "role": "Assistant", "description": f"Runs errands {PLANTED}"}
MERGE_PATCH = {"Content-Type": "application/merge-patch+json"}
PROBLEM = "application/problem+json"


@dataclass(frozen=True)
class Answer:
    """An answer with everything that a client can compare; the date is left out."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> JSON:
        value: JSON = json.loads(self.body)
        return value


async def make_tool(client: Client, name: str = "search", key: dict[str, str] = KEY_A, **fields: Any) -> JSON:
    tool: JSON = await client.json("POST", "/tools", key, json={**TOOL, "name": name, **fields})
    return tool


async def make_agent(client: Client, name: str = "runner", key: dict[str, str] = KEY_A, **fields: Any) -> JSON:
    agent: JSON = await client.json("POST", "/agents", key, json={**AGENT, "name": name, **fields})
    return agent


async def run(client: Client, agent_id: int, task: str = "Say hello", key: dict[str, str] = KEY_A) -> JSON:
    done: JSON = await client.json("POST", f"/agents/{agent_id}/run", key, json={"task": task, "model": "gpt-4o"})
    return done


async def answer(client: Client, method: str, path: Any, headers: Headers = (), **kwargs: Any) -> Answer:
    """Sends a request under a request id that is always the same, so that equal answers are equal bytes."""
    pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
    response = await client.request(method, path, headers=[*pairs, ("X-Request-ID", "same")], **kwargs)
    kept = {name: value for name, value in response.headers.items() if name != "Date"}
    return Answer(response.status, kept, await response.read())


async def refused(client: Client, status: int, method: str, path: Any, headers: Headers = KEY_A, **kwargs: Any) -> JSON:
    """The problem of a request that must be refused with `status`."""
    response = await client.request(method, path, headers=headers, **kwargs)
    body = await response.read()
    assert response.status == status, f"{method} {path} -> {response.status} {body[:300]!r}"
    problem: JSON = json.loads(body)
    return problem


def places(problem: JSON) -> list[str]:
    """The pointers and parameters that a problem names, each once, in order."""
    return sorted({place.get("pointer") or place["parameter"] for place in problem["errors"]})


async def everything(client: Client) -> list[JSON]:
    """All that both tenants have."""
    lists = ("/tools", "/agents", "/runs")
    return [await client.json("GET", f"{path}?limit=100", key) for key in (KEY_A, KEY_B) for path in lists]


async def assert_same_404(
    client: Client, method: str, path: str, known: int, unknown: int, key: dict[str, str], **kwargs: Any
) -> None:
    """Another tenant's id and one that nobody has get the same bytes, but for the id; `path` holds a `{}` for it."""
    theirs, nobodys = [await answer(client, method, path.format(each), key, **kwargs) for each in (known, unknown)]
    assert theirs.status == 404, f"{method} {path} -> {theirs.status} {theirs.body!r}"
    assert theirs.headers == nobodys.headers
    there, nowhere = [path.partition("?")[0].format(each).encode() for each in (known, unknown)]
    assert theirs.body.replace(there, b"PATH") == nobodys.body.replace(nowhere, b"PATH")


class Wire:
    """A plain connection to the service, for what no HTTP client would send; what is awaited comes within five seconds."""

    def __init__(self, client: Client) -> None:
        self._address = (client.host, client.port)

    async def __aenter__(self) -> "Wire":
        self._reader, self._writer = await asyncio.open_connection(*self._address)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def receive(self) -> Answer:
        """One answer, with its body where it says its length."""
        async with asyncio.timeout(5):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
            status, *lines = head.strip().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            body = await self._reader.readexactly(int(headers.get("Content-Length", 0)))
        return Answer(int(status.split()[1]), headers, body)

    async def ask(self, data: bytes) -> Answer:
        await self.send(data)
        return await self.receive()
