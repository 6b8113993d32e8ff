"""Bursts of retries and of changes at once: fifty requests that must have one effect."""

import asyncio
import random
from collections import Counter
from pathlib import Path

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

from service.app import make_app
from service.config import Config
from service.execution.models import Conversation, MockModel, ModelRegistry, ToolCall
from service.server import Runner
from tests.attacks.bursts import BURSTS, LIMIT, Tenant
from tests.attacks.crowd import add_tenant
from tests.support.database import migrated


class _Thinking(MockModel):
    """The mock, but it takes a moment, as a model elsewhere would."""

    async def answer(self, conversation: Conversation) -> str | ToolCall:
        await asyncio.sleep(0.005)
        return await super().answer(conversation)


def attack(seed: int, amount: int, folder: Path) -> dict[str, int]:
    """Sends `amount` bursts of 50; raises AssertionError where one has another effect than a single request has.

    Counts: `bursts`, `requests`, `effects` (requests that did something), `replays`, `over_limit` (replays to a tenant over
    its limit), `under_way` (409), `reused` (422), `hung_up` (clients that went in mid-request), `changed` (412).
    """
    return asyncio.run(_attack(seed, amount, folder))


async def _attack(seed: int, amount: int, folder: Path) -> dict[str, int]:
    counts: Counter[str] = Counter(
        dict.fromkeys(
            ("bursts", "requests", "effects", "replays", "over_limit", "under_way", "reused", "hung_up", "changed"), 0
        )
    )
    choice = random.Random(seed)
    for cancels in (False, True):
        # the second half with a server that cancels the handler of a client that is gone
        database = migrated(folder / f"retries-{cancels}.db")
        config = Config(database=database, rate_limit=LIMIT, rate_window=3600)
        runner = Runner(
            make_app(config, models=ModelRegistry({"gpt-4o": _Thinking()})), access_log=None, handler_cancellation=cancels
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
            for number in range(cancels, amount, 2):
                burst = BURSTS[number // 2 % len(BURSTS)]
                async with ClientSession(connector=TCPConnector(limit=0), timeout=ClientTimeout(total=20)) as session:
                    tenants = [
                        Tenant(session, origin, add_tenant(database, f"t{number}-{at}"), counts, cancels=cancels)
                        for at in range(2)
                    ]
                    try:
                        await burst(tenants, choice)
                    except AssertionError as error:
                        what = f"seed {seed}, burst {number} ({burst.__name__.strip('_')}, cancels: {cancels})"
                        raise AssertionError(f"{what}: {error}") from None
                counts["bursts"] += 1
        finally:
            await runner.cleanup()
    return dict(counts)
