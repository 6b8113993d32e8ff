"""Bursts of retries and of changes at once: fifty requests that must have one effect, whichever server takes them."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

from service.app import make_app
from service.config import Config
from service.execution.models import Conversation, MockModel, ModelRegistry, ToolCall
from service.server import Runner
from tests.attacks import databases
from tests.attacks.bursts import BETWEEN_SERVERS, BURSTS, LIMIT, Tenant
from tests.attacks.databases_base import Store

_COUNTS = (
    *("bursts", "elsewhere", "requests", "effects", "replays", "over_limit"),
    *("under_way", "reused", "hung_up", "changed"),
)


class _Thinking(MockModel):
    """The mock, but it takes a moment, as a model elsewhere would."""

    async def answer(self, conversation: Conversation) -> str | ToolCall:
        await asyncio.sleep(0.005)
        return await super().answer(conversation)


@asynccontextmanager
async def _served(store: Store, *, cancels: bool) -> AsyncIterator[str]:
    """A server on a database; where it listens. `cancels`: it cancels the handler of a client that is gone."""
    config = Config(database=store.database, rate_limit=LIMIT, rate_window=3600)
    app = make_app(config, models=ModelRegistry({"gpt-4o": _Thinking()}))
    runner = Runner(app, access_log=None, handler_cancellation=cancels)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def attack(seed: int, amount: int, folder: Path, engine: str = "sqlite") -> dict[str, int]:
    """Sends `amount` bursts of 50; raises AssertionError where one has another effect than a single request has.

    Counts: `bursts`, `requests`, `effects` (requests that did something), `replays`, `over_limit` (replays to a tenant over
    its limit), `under_way` (409), `reused` (422), `hung_up` (clients that went in mid-request), `changed` (412), and
    `elsewhere`, bursts that two servers of one database shared.
    """
    return asyncio.run(_attack(seed, amount, folder, engine))


async def _attack(seed: int, amount: int, folder: Path, engine: str) -> dict[str, int]:
    counts: Counter[str] = Counter(dict.fromkeys(_COUNTS, 0))
    choice = random.Random(seed)
    for cancels in (False, True):
        store = databases.new(engine, folder, f"retries-{cancels}")
        bursts = [*BURSTS, *BETWEEN_SERVERS] if store.is_shared else BURSTS
        async with _served(store, cancels=cancels) as origin, AsyncExitStack() as others:
            elsewhere = await others.enter_async_context(_served(store, cancels=cancels)) if store.is_shared else origin
            for number in range(cancels, amount, 2):
                burst = bursts[number // 2 % len(bursts)]
                async with ClientSession(connector=TCPConnector(limit=0), timeout=ClientTimeout(total=20)) as session:
                    one, other = [store.add_tenant(f"t{number}-{at}") for at in range(2)]
                    places = [(origin, one), (elsewhere, one) if burst in BETWEEN_SERVERS else (origin, other)]
                    tenants = [Tenant(session, *place, counts, cancels=cancels) for place in places]
                    try:
                        await burst(tenants, choice)
                    except AssertionError as error:
                        what = f"seed {seed}, burst {number} ({burst.__name__.strip('_')}, cancels: {cancels})"
                        raise AssertionError(f"{what}: {error}") from None
                counts["bursts"] += 1
                counts["elsewhere"] += burst in BETWEEN_SERVERS
    return dict(counts)
