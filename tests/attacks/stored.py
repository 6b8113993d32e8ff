"""What is stored: through the API, and in the file."""

import asyncio
import json
import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Awaitable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import ClientSession

from tests.attacks.writers import Item, State, Write

T = TypeVar("T")

# counts that the service keeps, beside what they count
_RUN_COUNTS = "select tenant_id, agent_id, status, model, runs from run_counts where runs > 0 order by 1, 2, 3, 4"
_COUNTED = (
    "select * from (select tenant_id, agent_id, status, model, count(*) from runs group by 1, 2, 3, 4 "
    "union all select tenant_id, 0, status, model, count(*) from runs group by 1, 3, 4) order by 1, 2, 3, 4"
)


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


def check_file(file: Path, agent_ids: Iterable[int] | None = None) -> None:
    """Raises AssertionError where the database is damaged, its totals are not its counts, or it has half an agent.

    `agent_ids` are those of all agents that ever were, deleted ones included.
    """
    with closing(sqlite3.connect(file)) as connection:

        def rows(query: str) -> list[Any]:
            return connection.execute(query).fetchall()

        assert rows("pragma integrity_check") == [("ok",)], f"{file}: {rows('pragma integrity_check')[:5]}"
        assert rows("pragma foreign_key_check") == [], f"{file}: {rows('pragma foreign_key_check')[:5]}"
        counted, kept = rows(_COUNTED), rows(_RUN_COUNTS)
        assert kept == counted, f"{file}: run_counts are {kept}, the runs {counted}"
        if agent_ids is not None:
            stored, known = {number for (number,) in rows("select id from agent_ids")}, set(agent_ids)
            assert stored == known, (
                f"{file}: half of an agent: {sorted(stored - known)} too many, {sorted(known - stored)} missing"
            )


def copied(file: Path, folder: Path) -> Path:
    """A copy of what a killed process left, so that the next one finds it as it was."""
    target = folder / file.name
    for suffix in ("", "-wal"):
        source, copy = file.with_name(file.name + suffix), target.with_name(target.name + suffix)
        if source.exists():
            shutil.copyfile(source, copy)
        else:
            copy.unlink(missing_ok=True)
    target.with_name(target.name + "-shm").unlink(missing_ok=True)
    return target
