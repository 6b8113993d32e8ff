"""Retention: runs go that are older than they are kept for, a few at a time, beside whatever else is asked of the database.

A step is one transaction, and what it holds up waits for it: so a step takes a few milliseconds, and the pause behind it is
longer than itself. How many runs that is, the last step has shown; but a part of what it takes is the same for one run and
ten, and longer where the machine is busy or the database far. What the runs have used stays in usage.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from service.errors import Unavailable
from service.paging import LARGEST_ID
from service.storage.engines import Engine
from service.storage.scope import Database, Scope, Unscoped
from service.storage.units import Row, Unit, ask
from service.times import utc_now

# seconds that a step is to take, how many times as long the pause behind it is, and how long it is at least
_STEP = 0.002
_PAUSE = 4.0
_SHORTEST_PAUSE = 0.005
# runs of a step: those of the first one, of which nobody knows what they take, and the most
_FIRST = 10
# seconds; in a step of so few that takes longer, it is the runs that take long, and there are fewer in the next one
_LONG = 0.025
_MOST = 200
# seconds from one round of a server to the next
_EVERY = 3600.0

_log = logging.getLogger(__name__)


async def tenants_of(database: Database) -> list[str]:
    """The ids of all tenants."""
    return [tenant["id"] for tenant in await Unscoped(database).many("list_tenants", now=utc_now())]


async def count(database: Database, tenant_id: str, created_before: str) -> int:
    """How many runs of the tenant were created before this time."""
    everything = {"agent_id": 0, "status": None, "model": None, "created_after": None}
    counted: int = await Scope(database, tenant_id, None).value(
        "count_runs_between", **everything, created_before=created_before
    )
    return counted


async def prune(
    database: Database, tenants: Sequence[str], created_before: str, gone: Callable[[int], None] = lambda _: None
) -> int:
    """Deletes the runs of these tenants that were created before this time; how many there were.

    `gone` is told of each step how many it has deleted. Cancelled, it leaves the rest for another time.
    """
    deleted, limit = 0, _FIRST
    for tenant_id in tenants:
        scope = Scope(database, tenant_id, None)
        last, after = await scope.value("get_last_run_before", created_before=created_before), 0
        while last is not None and after < last:
            rows, took = await scope.write(_step(after, last, created_before, limit))
            # ids that are not there any more are gone through with those behind them
            after = max((row["id"] for row in rows), default=LARGEST_ID)
            deleted += len(rows)
            gone(len(rows))
            fewest = _FIRST if took < _LONG else 1
            limit = max(fewest, min(_MOST, 2 * limit, int(limit * _STEP / max(took, 1e-6))))
            await asyncio.sleep(max(_SHORTEST_PAUSE, _PAUSE * took))
    return deleted


def _step(after: int, last: int, created_before: str, limit: int) -> Unit[tuple[list[Row], float]]:
    """The ids of those that are gone, and the seconds that it took once it had its turn: how long others wait for theirs."""
    began = time.monotonic()
    rows: list[Row] = yield ask("delete_runs", after=after, last=last, created_before=created_before, limit=limit)
    return rows, time.monotonic() - began


async def keep(engine: Engine, database: Database, long: timedelta) -> None:
    """Deletes what is older than `long`, now and every hour, until it is cancelled; of several processes one at a time."""
    while True:
        try:
            async with engine.turn() as is_ours:
                if is_ours and (deleted := await prune(database, await tenants_of(database), utc_now(-long))):
                    _log.info("Deleted %d runs that were older than they are kept for.", deleted)
        except Unavailable as error:
            _log.warning("Old runs were not deleted, and will be in the next round: %s", error)
        except Exception:
            _log.exception("Old runs were not deleted.")
        await asyncio.sleep(_EVERY)
