"""What is stored, through the API."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Mapping
from typing import TypeVar

from aiohttp import ClientSession

from tests.attacks.writers import Item, State, Write

T = TypeVar("T")


async def together(*requests: Awaitable[T]) -> list[T]:
    """Awaits all, the others too where one fails: none goes on when its attack has ended. Raises the first error."""
    done = await asyncio.gather(*requests, return_exceptions=True)
    results: list[T] = []
    for each in done:
        if isinstance(each, BaseException):
            raise each
        results.append(each)
    return results


async def send(session: ClientSession, origin: str, write: Write) -> tuple[int, Mapping[str, str], bytes]:
    """Sends the request; status, headers and body of its answer."""
    data = None if write.body is None else json.dumps(write.body).encode()
    async with session.request(write.method, origin + write.path, data=data, headers=write.headers) as response:
        return response.status, response.headers, await response.read()


async def listed(session: ClientSession, origin: str, key: str, path: str, beyond: int = 0) -> list[Item]:
    """All items of a list; of runs, which come newest first, those with an id `beyond` that one."""
    items: list[Item] = []
    more: str | None = ""
    totals = set()
    while more is not None:
        query = f"?limit=100{more and f'&cursor={more}'}"
        async with session.get(f"{origin}{path}{query}", headers={"X-API-Key": key}) as response:
            assert response.status == 200, f"GET {path}{query} -> {response.status} {await response.text()}"
            page = await response.json()
        items += page["items"]
        totals.add(page["total"])
        more = page["next"]
        if beyond and items and items[-1]["id"] <= beyond:
            return [item for item in items if item["id"] > beyond]
    assert totals == {len(items)}, f"{path}: {len(items)} items, and the totals {totals}"
    return items


async def states(session: ClientSession, origin: str, key: str, latest_run: int) -> tuple[dict[str, State], list[Item]]:
    """What each client of a tenant has, by its sign, and the tenant's runs that are newer than `latest_run`."""
    found: dict[str, tuple[dict[str, Item], ...]] = defaultdict(lambda: ({}, {}, {}))
    runs = await listed(session, origin, key, "/runs", latest_run)
    for at, items in enumerate(
        (await listed(session, origin, key, "/tools"), await listed(session, origin, key, "/agents"), runs)
    ):
        for item in items:
            name = item["task"] if at == 2 else item["name"]
            same = found[name[1]][at]
            assert name not in same, f"twice: {same[name]} and {item}"
            same[name] = item
    return {sign: State(*parts) for sign, parts in found.items()}, runs
