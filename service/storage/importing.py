"""A tenant from a file: checked whole before anything is done, then written in batches, and all of it or nothing in the end.

Ids are unique over all tenants of a database, so that it can be moved to either engine. Those of the file are kept where
nobody else has one of them; else each is moved by the same number, one for each kind of thing, to behind those that were
given last: so the order stays, and with it every list.

Until the import has ended, the tenant is one of the year 1 (UNFINISHED). It has no keys, so that nobody sees it meanwhile;
where the process is killed, `tenants delete` takes away what is there.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

import orjson

from service.errors import Unavailable
from service.storage.portable import COUNTED, LARGEST_ID, TABLES, Reader, TransferError, tool_ids
from service.storage.removing import Turns, remove_tenant
from service.storage.scope import Database, Scope, Unscoped
from service.storage.units import Ask, ForeignKeyViolation, Row, UniqueViolation, Unit, ask
from service.times import utc_now

UNFINISHED = "0001-01-01T00:00:00.000000Z"

# a batch is one commit: so many rows at the most, and fewer where they are large, in bytes of the file
_BATCH = 200
_LARGE = 2**20
# ids that are asked for at once
_IDS = 5_000
# ids of a sequence that servers may be giving at this moment, and are left out
_MARGIN = 100


@dataclass
class Contents:
    """What a checked file holds: how many rows, and the ids, ascending, of each kind of thing."""

    tenant: Row
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TABLES, 0))
    ids: dict[str, "array[int]"] = field(default_factory=lambda: {kind: array("q") for kind in COUNTED})
    # the least and the largest id that the file speaks of: steps and the audit log name what was deleted
    least: dict[str, int] = field(default_factory=dict)
    largest: dict[str, int] = field(default_factory=dict)
    # what was given last where the file comes from
    last_ids: dict[str, int] = field(default_factory=dict)

    def note(self, kind: str, each: int) -> None:
        self.least[kind] = min(each, self.least.get(kind, each))
        self.largest[kind] = max(each, self.largest.get(kind, each))

    def has(self, kind: str, each: int) -> bool:
        place = bisect_left(self.ids[kind], each)
        return place < len(self.ids[kind]) and self.ids[kind][place] == each


def check(file: BinaryIO) -> Contents:
    """Reads all of the file. Raises TransferError where it is not what was written, or does not fit together."""
    reader = Reader(file)
    contents = Contents(reader.tenant)
    newest = ""
    for table, row, _ in reader.rows():
        contents.counts[table] += 1
        if table == "last_ids":
            contents.last_ids[row["name"]] = row["last_id"]
            continue
        if table in COUNTED:
            contents.ids[table].append(row["id"])
            contents.note(table, row["id"])
        for each in tool_ids(row):
            contents.note("tools", each)
        if table == "audit_log":
            for kind, each in _spoken_of(row):
                contents.note(kind, each)
        if not all(contents.has(kind, row[column]) for column, kind in TABLES[table].ids.items() if kind != table):
            raise _made_up("a row refers to what is not there")
        if table == "runs":
            # what asks for a span of time relies on it
            if row["created_at"] < newest:
                raise _made_up("its runs are not in the order of their times")
            newest = row["created_at"]
    return contents


def _made_up(why: str) -> TransferError:
    return TransferError(f"The file was not written by an export: {why}.")


async def import_tenant(
    target: Database, file: BinaryIO, contents: Contents, tenant_id: str, *, keep_ids: bool, written: Callable[[int], None]
) -> Mapping[str, int]:
    """Makes the tenant with all that the checked file holds; by how much each kind of id was moved, nothing where none was.

    `written` is told of each batch. Raises TransferError where the tenant exists, where its ids are taken and are to be
    kept, and where the database refuses a row; nothing is there then.
    """
    unscoped = Unscoped(target)
    if there := await unscoped.one("get_tenant", id=tenant_id):
        if there["created_at"] == UNFINISHED:
            raise TransferError(
                f"An earlier import of the tenant {tenant_id} has not ended. If none is under way, it was interrupted: "
                f"`agent-platform tenants delete {tenant_id}` takes away what is there."
            )
        raise TransferError(f"The tenant {tenant_id} exists already.")
    keeps = await _are_free(target, contents, tenant_id)
    if keep_ids and not keeps:
        raise TransferError("Other tenants have some of the ids in the file. Nothing was changed.")
    shifts = await unscoped.write(_begin(contents, tenant_id, keeps))
    try:
        if keeps and not await _are_free(target, contents, tenant_id):
            raise TransferError("Other tenants were just given some of the ids in the file. Nothing was kept; try again.")
        await _write_all(Scope(target, tenant_id, None), file, shifts, written)
        finished = ask("finish_tenant", unfinished=UNFINISHED, **contents.tenant | {"id": tenant_id})
        if not await unscoped.write(_one(finished)):
            raise TransferError(f"The tenant {tenant_id} was deleted meanwhile.")
    except BaseException as error:
        await _take_back(target, tenant_id)
        if isinstance(error, (Unavailable, TransferError)) or not isinstance(error, Exception):
            raise
        # what a database says of a row may quote it
        raise TransferError("The database refuses a row of the file. Nothing was kept.") from error
    return shifts


async def _are_free(target: Database, contents: Contents, but_for: str) -> bool:
    """Has no other tenant an id of the file?"""
    for tenant in await Unscoped(target).many("list_tenants", now=utc_now()):
        for kind in COUNTED if tenant["id"] != but_for else ():
            if await _has_one(Scope(target, tenant["id"], None), contents, kind):
                return False
    return True


async def _has_one(view: Scope, contents: Contents, kind: str) -> bool:
    if kind not in contents.least:
        return False
    after, last = contents.least[kind] - 1, contents.largest[kind]
    while rows := await view.many(f"list_{kind}_ids", after=after, last=last, limit=_IDS):
        if any(contents.has(kind, row["id"]) for row in rows):
            return True
        after = rows[-1]["id"]
    return False


def _begin(contents: Contents, tenant_id: str, keeps: bool) -> Unit[Mapping[str, int]]:
    """Makes the tenant, and sees to it that nobody is given its ids from now on; by how much each kind of id is moved."""
    given = {row["name"]: row["last_id"] for row in (yield ask("list_last_ids"))}
    shifts: dict[str, int] = {}
    lasts = {kind: max(contents.largest.get(kind, 0), contents.last_ids.get(kind, 0)) for kind in COUNTED}
    if not keeps:
        shifts = {
            kind: given.get(kind, 0) + _MARGIN + 1 - least for kind, least in contents.least.items() if kind in COUNTED
        }
        lasts = {kind: contents.largest[kind] + shift for kind, shift in shifts.items()}
    # keys stay behind, and no other one gets the id that the audit log knows one by
    lasts["api_keys"] = contents.largest.get("api_keys", 0)
    if any(last > LARGEST_ID for last in lasts.values()):
        raise TransferError("The ids in the file would use up all that there are. Nothing was changed.")
    try:
        yield ask("create_tenant", id=tenant_id, now=UNFINISHED)
    except UniqueViolation:
        raise TransferError(f"The tenant {tenant_id} exists already.") from None
    for kind, last in lasts.items():
        if last:
            yield ask("note_last_id", name=kind)
            yield ask("set_last_id", name=kind, last_id=last)
    return shifts


async def _write_all(view: Scope, file: BinaryIO, shifts: Mapping[str, int], written: Callable[[int], None]) -> None:
    turns = Turns()
    for table, rows in _batches(Reader(file), shifts):
        turns.begin()
        try:
            await view.write(_one(ask(f"write_{table}", rows=orjson.dumps(rows).decode())))
        except ForeignKeyViolation:
            raise TransferError(f"The tenant {view.tenant_id} was deleted meanwhile.") from None
        await turns.end()
        written(len(rows))


def _batches(reader: Reader, shifts: Mapping[str, int]) -> Iterator[tuple[str, list[Row]]]:
    """The file's rows as the tables have them, with the ids that they get."""
    of, size = "", 0
    rows: list[Row] = []
    for table, row, length in reader.rows():
        if rows and (table != of or len(rows) == _BATCH or size + length > _LARGE):
            yield of, rows
            rows, size = [], 0
        if table != "last_ids":
            of, size = table, size + length
            rows.append(_stored(table, row, shifts))
    if rows:
        yield of, rows


def _stored(table: str, row: Row, shifts: Mapping[str, int]) -> Row:
    for step in row.get("steps", ()):
        step["tool_id"] += shifts.get("tools", 0)
    if table == "audit_log":
        _move_within(row, shifts)
    moved = {column: row[column] + shifts.get(kind, 0) for column, kind in TABLES[table].ids.items()}
    texts = {name: None if row[name] is None else orjson.dumps(row[name]).decode() for name in TABLES[table].json}
    return row | moved | texts


def _spoken_of(change: Row) -> Iterator[tuple[str, int]]:
    """The ids that a row of the audit log speaks of, each with the kind of thing."""
    kind = {"tool": "tools", "agent": "agent_ids", "key": "api_keys"}.get(change["resource"])
    if change["key_id"] is not None:
        yield "api_keys", change["key_id"]
    if kind is not None and change["resource_id"] is not None:
        yield kind, change["resource_id"]
    for state in (change["before"], change["after"]):
        tools = (state or {}).get("tool_ids")
        yield from (("tools", each) for each in (tools if isinstance(tools, list) else ()) if isinstance(each, int))


def _move_within(change: Row, shifts: Mapping[str, int]) -> None:
    """Moves the ids of tools and agents that a row of the audit log speaks of; keys stay behind, and keep theirs."""
    of_tools = shifts.get("tools", 0)
    own = {"tool": of_tools, "agent": shifts.get("agent_ids", 0)}.get(change["resource"], 0)
    if change["resource_id"] is not None:
        change["resource_id"] += own
    for state in (change["before"], change["after"]):
        if not state:
            continue
        if "id" in state:
            state["id"] += own
        state["tool_ids"] = [each + of_tools for each in state.get("tool_ids", [])]
        state["tools"] = [tool | {"id": tool["id"] + of_tools} for tool in state.get("tools", [])]
        if change["resource"] != "agent":
            del state["tool_ids"], state["tools"]


async def _take_back(target: Database, tenant_id: str) -> None:
    """Deletes what an import has left that did not end well."""
    try:
        tenant = await Unscoped(target).one("get_tenant", id=tenant_id)
        if tenant and tenant["created_at"] == UNFINISHED:
            # nobody has been able to call
            await remove_tenant(target, tenant_id, has_callers=False)
    except Unavailable:
        raise TransferError(
            "The database does not answer any more. "
            f"What was imported stays there until `agent-platform tenants delete {tenant_id}` takes it away."
        ) from None


def _one(asked: Ask) -> Unit[int]:
    count: int = yield asked
    return count
