"""The service under test, and everything that is sent to it: one event loop, one application, one database.

The application is whole, aiohttp's protocol and a loopback connection included. Three things in it are not as in `serve`:
the limiter looks at a clock that the machine turns, found keys are remembered for no time instead of a second, so that a
revoked one must be refused at once, and the limit of wrong keys is out of reach, for the stranger has no other address.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import uvloop
from aiohttp.test_utils import TestClient
from multidict import CIMultiDict
from yarl import URL

from service.app import make_app
from service.auth import new_key
from service.config import Config
from service.limiter import LocalLimiter
from service.resources import resource
from service.state import STATE
from service.storage.queries import load_queries
from service.storage.scope import Unscoped
from service.storage.units import Unit, ask
from service.times import utc_now
from tests.attacks import databases
from tests.attacks.databases_base import Store
from tests.attacks.model import RATE_LIMIT, RATE_WINDOW
from tests.attacks.tenants_texts import API_KEY, MARKER
from tests.conftest import Client, Server
from tests.support.contract import Contract
from tests.support.http import Answer
from tests.support.keys import revoke, store

T = TypeVar("T")

REQUEST_ID = "the-same-for-all"


@cache
def contract() -> Contract:
    """The spec, read once: that takes longer than a sequence."""
    return Contract()


class Clock:
    """Seconds, which go on when the machine says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class World:
    """A running service with its clients. To be used in a `with`, where no event loop runs."""

    def __init__(self, folder: Path, seed: int, counts: Counter[str], engine: str) -> None:
        self.seed = seed
        self.counts = counts
        self.clock = Clock()
        self.contract = contract()
        # ids that were given out, by kind: none may come again, in whatever tenant
        self.given: dict[str, set[int]] = {"tools": set(), "agents": set(), "runs": set()}
        # what is the same for everybody, as it was first answered
        self.first_answers: dict[str, Answer] = {}
        self.tenants = 0
        self.operations = {
            operation["operationId"].rpartition(".")[2]: (method.upper(), path, bool(operation["security"]))
            for method, path, operation in self.contract.operations()
        }
        # the first failure, for it may not come again in a database where more tenants are
        self.failure = ""
        # the last requests: method, URL, body, answer
        self.sent: deque[tuple[str, str, bytes | None, Answer]] = deque(maxlen=30)
        self._store = _with_large_ids(databases.new(engine, folder, "tenants"))
        self._loop = uvloop.new_event_loop()

    def __enter__(self) -> "World":
        self._loop.run_until_complete(self._start())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._loop.run_until_complete(self._stop())
        finally:
            self._loop.close()

    async def _start(self) -> None:
        app = make_app(Config(database=self._store.database, demo=False, rate_limit=RATE_LIMIT, wrong_key_limit=10**9))

        async def arranged(app: Any) -> Any:
            state = app[STATE]
            state.authenticator._memory = 0.0
            app[STATE] = replace(state, limiter=LocalLimiter(RATE_LIMIT, RATE_WINDOW, self.clock))
            yield

        app.cleanup_ctx.append(arranged)
        self._client = Client(Server(app), self.contract)
        await self._client.start_server()
        # for what is compared byte by byte with an answer that was held against the spec, or value by value with the model
        self._plain: TestClient[Any, Any] = TestClient(self._client.server)
        # as the command line opens the database beside a running server, to make and revoke keys
        engine = self._store.engine
        self._beside = await engine.open(load_queries(resource("sql"), engine.name))

    async def _stop(self) -> None:
        await self._beside.close()
        await self._plain.session.close()
        await self._client.close()

    def new_tenant(self) -> int:
        """The number of a tenant that there has not been yet."""
        self.tenants += 1
        return self.tenants

    def create_tenant(self, tenant_id: str) -> None:
        """A new tenant, as `tenants create` makes it."""

        def unit() -> Unit[None]:
            yield ask("create_tenant", id=tenant_id, now=utc_now())

        self._run(Unscoped(self._beside).write(unit()))

    def create_key(self, tenant_id: str) -> tuple[int, str]:
        """A new key of the tenant, (id, key), as `keys create` makes it."""
        key = new_key()
        return self._run(store(self._beside, tenant_id, key))["id"], key

    def revoke_key(self, tenant_id: str, key_id: int) -> None:
        """Revokes a key as `keys revoke` does."""
        self._run(revoke(self._beside, tenant_id, key_id))

    def send(
        self,
        operation: str,
        headers: Mapping[str, str],
        thing_id: int | None = None,
        *,
        query: Mapping[str, Any] | Sequence[tuple[str, str]] | None = None,
        body: bytes | None = None,
        head: bool = False,
    ) -> tuple[str, Answer]:
        """Sends a request of the operation called so in the spec; (path without its query, answer).

        Fails where openapi.yaml does not describe the answer.
        """
        method, template, _ = self.operations[operation]
        path = template if thing_id is None else f"{template.partition('{')[0]}{thing_id}{template.partition('}')[2]}"
        url = path + ("?" + urlencode(query, quote_via=quote) if query else "")
        answer = self._run(self._ask(self._client, "HEAD" if head else method, url, headers, body))
        self.counts[f"operation {operation}"] += 1
        if answer.status < 300:
            self.counts[f"succeeded {operation}"] += 1
        return path, answer

    def look(self, path: str, key: str, method: str = "GET") -> Answer:
        """The answer to a request without a body, not held against the spec: for who compares it byte by byte."""
        return self._run(self._ask(self._plain, method, path, {"X-API-Key": key}, None))

    def look_at_all(self, requests: Sequence[tuple[str, str]]) -> list[Answer]:
        """The answers to GET on each (path, key), all asked at once, which is faster than one after the other."""

        async def asked() -> list[Answer]:
            return await asyncio.gather(
                *(self._ask(self._plain, "GET", path, {"X-API-Key": key}, None) for path, key in requests)
            )

        return self._run(asked())

    async def _ask(
        self, client: TestClient[Any, Any], method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> Answer:
        sent = {"X-Request-ID": REQUEST_ID} | headers
        response = await client.request(method, URL(url, encoded=True), headers=sent, data=body, allow_redirects=False)
        kept = CIMultiDict((name, value) for name, value in response.headers.items() if name != "Date")
        answer = Answer(response.status, kept, await response.read())
        self.sent.append((method, url, body, answer))
        self.counts["requests"] += 1
        self.counts[f"status {answer.status}"] += 1
        return answer

    def _run(self, work: Awaitable[T]) -> T:
        return self._loop.run_until_complete(work)


def _with_large_ids(store: Store) -> Store:
    """Lets each kind count its ids from a place of its own: none is taken for another kind's, and all are equally long."""
    for place, table in enumerate(("tools", "agent_ids", "runs"), 1):
        store.begin_ids_at(table, place * 1_000_000)
    return store


def traces(answer: Answer, own: str | None) -> list[str]:
    """What in an answer is not for its reader, whose marker is `own`: others' markers and tenant ids, and anybody's key."""
    text = "\n".join(
        [*(f"{name}: {value}" for name, value in answer.headers.items()), answer.body.decode("utf-8", "replace")]
    )
    return [found for found in MARKER.findall(text) if found != own] + API_KEY.findall(text)
