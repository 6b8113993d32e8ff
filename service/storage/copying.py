"""The move from one database to another, of whatever engine: every tenant with all that it owns, ids and times kept.

It goes through the tenants' own views, in batches that are committed whole and in the order of the keys. So what stands in
the target says how far an interrupted move has come, and it goes on from there.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import orjson

from service.storage.scope import Database, Scope, Unscoped
from service.storage.units import ForeignKeyViolation, Row, UniqueViolation, Unit, ask
from service.times import utc_now

# the tables in an order in which nothing refers to what is not there yet, each with what comes before its first key
_TABLES: dict[str, Row] = {
    "api_keys": {"id": 0},
    "tools": {"id": 0},
    "agent_ids": {"id": 0},
    "agents": {"id": 0},
    "agent_tools": {"agent_id": 0, "tool_id": 0},
    "runs": {"id": 0},
    "usage": {"day": "", "agent_id": 0, "model": ""},
    "kept_answers": {"idempotency_key": ""},
    "audit_log": {"id": 0},
}
# what triggers have filled by then with what they know, and is written over from its beginning
_WRITTEN_OVER = {"usage"}
# rows of a batch, which is one commit: so many at the most, and fewer where they are large, in bytes of JSON
_BATCH = 500
_LARGE = 2**21
# the first batch, of which nobody knows how large its rows are
_FIRST = 100


class CopyError(Exception):
    """A move that can't be made, or did not arrive whole; the sentence says why."""


@dataclass(frozen=True)
class Copied:
    """What was moved, and found equal at the end."""

    tenants: int
    rows: int
    checksum: str


async def total_rows(source: Database) -> int:
    """How many rows there are to move."""
    return sum([await _view(source, tenant["id"]).value("count_rows") for tenant in await _tenants(source)])


async def copy(source: Database, target: Database, *, resume: bool, moved: Callable[[int], None]) -> Copied:
    """Moves everything, and compares it; `moved` is told of each row twice: when it is in the target, and found equal.

    Raises CopyError for a target that isn't empty, unless a move is resumed; for one that is not what an interrupted move
    left, before anything is changed; and where the two differ at the end.
    """
    if resume:
        await _compare_what_is_there(source, target, moved)
    elif await _tenants(target):
        raise CopyError(
            "The target isn't empty. Choose an empty database, or go on with a move that was interrupted: --resume."
        )
    for tenant in await _tenants(source):
        await Unscoped(target).write(_tenant(tenant))
        for table, before in _TABLES.items():
            await _copy(_view(source, tenant["id"]), _view(target, tenant["id"]), table, before, moved)
    await Unscoped(target).write(_last_ids(await Unscoped(source).many("list_last_ids")))
    return await _compare(source, target, moved)


async def _copy(source: Scope, target: Scope, table: str, before: Row, moved: Callable[[int], None]) -> None:
    last = None if table in _WRITTEN_OVER else await target.one(f"last_{table}")
    async for rows in batches(source, table, before, last):
        try:
            await target.write(_rows(table, rows))
        except (UniqueViolation, ForeignKeyViolation):
            raise CopyError(
                f"Rows of {table} of the tenant {source.tenant_id} don't fit in the target: it is written to by others."
            ) from None
        moved(len(rows))


async def batches(view: Scope, table: str, before: Row, last: Row | None = None) -> AsyncIterator[list[Row]]:
    """The rows behind `last` in the order of their keys; after a large batch come fewer rows, after a small one more."""
    at, limit = last or before, _FIRST
    while rows := await view.many(f"read_{table}", **at, limit=limit):
        yield rows
        at = {name: rows[-1][name] for name in before}
        bytes_a_row = len(orjson.dumps(rows)) // len(rows) + 1
        limit = max(1, min(_BATCH, 4 * limit, _LARGE // bytes_a_row))


async def _compare_what_is_there(source: Database, target: Database, moved: Callable[[int], None]) -> None:
    """Raises CopyError unless all that the target has is the beginning of what the source has, table by table."""
    tenants = {tenant["id"]: tenant["created_at"] for tenant in await _tenants(source)}
    for tenant in await _tenants(target):
        if tenants.get(tenant["id"]) != tenant["created_at"]:
            raise _other_move(tenant["id"])
        views = _view(target, tenant["id"]), _view(source, tenant["id"])
        for table, before in _TABLES.items():
            if table in _WRITTEN_OVER:
                continue
            last = before
            async for rows in batches(views[0], table, before):
                if rows != await views[1].many(f"read_{table}", **last, limit=len(rows)):
                    raise _other_move(tenant["id"])
                last = {name: rows[-1][name] for name in before}
                moved(len(rows))


def _other_move(tenant_id: str) -> CopyError:
    return CopyError(
        f"The target isn't what an interrupted move from this source has left: its tenant {tenant_id} differs. "
        "Nothing was changed. Choose an empty database."
    )


async def _compare(source: Database, target: Database, moved: Callable[[int], None]) -> Copied:
    """Reads both whole, tenant by tenant. Raises CopyError for the first one that differs."""
    tenants, rows, checksum = await _tenants(source), 0, sha256()
    if await _tenants(target) != tenants:
        raise CopyError("The target has other tenants than the source.")
    for tenant in tenants:
        for table, before in _TABLES.items():
            count, sum_ = await _checksum(_view(source, tenant["id"]), table, before, moved)
            if (count, sum_) != await _checksum(_view(target, tenant["id"]), table, before, lambda _: None):
                raise CopyError(f"The tenant {tenant['id']} has other rows in {table} of the target than of the source.")
            rows += count
            checksum.update(sum_)
    return Copied(len(tenants), rows, checksum.hexdigest())


async def _checksum(view: Scope, table: str, before: Row, moved: Callable[[int], None]) -> tuple[int, bytes]:
    """How many rows there are, and the SHA-256 of all of them in the order of their keys."""
    count, hashed = 0, sha256()
    async for rows in batches(view, table, before):
        for row in rows:
            hashed.update(orjson.dumps(row))
        count += len(rows)
        moved(len(rows))
    return count, hashed.digest()


def _view(database: Database, tenant_id: str) -> Scope:
    return Scope(database, tenant_id, None)


async def _tenants(database: Database) -> list[Row]:
    rows = await Unscoped(database).many("list_tenants", now=utc_now())
    return [{name: value for name, value in row.items() if name != "api_keys"} for row in rows]


def _tenant(tenant: Row) -> Unit[None]:
    yield ask("copy_tenant", **tenant)


def _rows(table: str, rows: list[Row]) -> Unit[Any]:
    yield ask(f"write_{table}", rows=orjson.dumps(rows).decode())


def _last_ids(lasts: list[Row]) -> Unit[None]:
    for last in lasts:
        yield ask("note_last_id", name=last["name"])
        yield ask("set_last_id", **last)
