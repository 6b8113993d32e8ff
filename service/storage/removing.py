"""A tenant out of the database, with all that it has, while a server may go on for the others.

It is shut out and its keys go first, so that nobody comes in any more; then the rows, a few at a time; at last the tenant.
What was interrupted is done by another try: until the tenant itself is gone, there is one to delete.
"""

import asyncio
import time
from collections.abc import Callable

from service.storage.portable import TransferError
from service.storage.scope import Database, Scope, Unscoped
from service.storage.units import ForeignKeyViolation, Unit, ask
from service.times import utc_now

# in an order in which nothing that goes is still referred to; what agents have of tools goes with the agents
TABLES = ("runs", "run_counts", "kept_answers", "usage", "agents", "agent_ids", "tools", "audit_log")
# seconds that a batch may hold the database for itself, about; and its rows, at first and at the most
_SHARE = 0.02
_FIRST = 50
_MOST = 1_000
# seconds after which no server remembers a key any more (service/auth.py)
_FORGOTTEN = 1.5
# a tenant that is written to goes on having something
_TRIES = 5


class Turns:
    """How many rows a batch takes, and a pause behind each as long as it took: a server waits for the database, too."""

    def __init__(self) -> None:
        self.rows = _FIRST
        self._began = 0.0

    def begin(self) -> None:
        self._began = time.monotonic()

    async def end(self) -> None:
        took = time.monotonic() - self._began
        self.rows = max(1, min(_MOST, 4 * self.rows, round(self.rows * _SHARE / max(took, 1e-4))))
        await asyncio.sleep(took)


async def remove_tenant(
    database: Database, tenant_id: str, removed: Callable[[int], None] = lambda _: None, *, has_callers: bool = True
) -> None:
    """Deletes the tenant; `removed` is told of each batch of runs. Raises TransferError where it is still written to."""
    view, unscoped = Scope(database, tenant_id, None), Unscoped(database)
    await unscoped.write(_write("begin_deletion", id=tenant_id, now=utc_now()))
    closed = time.monotonic()
    for _ in range(_TRIES):
        # with those that a key has made which a server remembers
        await unscoped.write(_write("delete_api_keys", tenant=tenant_id))
        for table in TABLES:
            turns = Turns()
            while count := await _batch(view, table, turns):
                if table == "runs":
                    removed(count)
        if has_callers:
            # who came in before may be at work yet
            await asyncio.sleep(max(0.0, closed + _FORGOTTEN - time.monotonic()))
        try:
            await unscoped.write(_write("delete_tenant", id=tenant_id))
        except ForeignKeyViolation:
            continue
        return
    raise TransferError(f"The tenant {tenant_id} is still written to. Most of it is deleted: try again.")


async def _batch(view: Scope, table: str, turns: Turns) -> int:
    turns.begin()
    count = await view.write(_write(f"empty_{table}", limit=turns.rows))
    await turns.end()
    return count


def _write(query: str, **parameters: object) -> Unit[int]:
    count: int = yield ask(query, **parameters)
    return count
