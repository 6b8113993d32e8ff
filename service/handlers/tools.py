"""Tools: what agents can call."""

from typing import Any

from service.audit import noted
from service.errors import Conflict, not_found, quote
from service.handlers import Answer
from service.paging import Listing, page
from service.preconditions import has_changed, lets_through, tagged, versions
from service.storage.scope import Scope
from service.storage.units import Row, UniqueViolation, Unit, ask
from service.times import utc_now


async def list_tools(
    tenant: Scope,
    limit: int,
    offset: int | None,
    cursor: str | None,
    name: str | None,
    agent_name: str | None,
) -> Answer:
    if agent_name is None:
        listing = Listing("/tools", "list_tools", "count_tools", {"name": name})
    else:
        listing = Listing("/tools", "list_tools_of_agent", "count_tools_of_agent", {"name": name, "agent_name": agent_name})
    return await page(tenant, listing, limit, offset, cursor)


async def get_tool(tenant: Scope, tool_id: int) -> Answer:
    return tagged(await tenant.one("get_tool", tool_id=tool_id) or not_found("tool"))


async def create_tool(tenant: Scope, body: dict[str, Any]) -> Answer:
    return await tenant.write(_create(body))


async def replace_tool(tenant: Scope, tool_id: int, body: dict[str, Any], if_match: str | None) -> Answer:
    return await change_tool(tenant, tool_id, body, if_match)


async def change_tool(tenant: Scope, tool_id: int, body: dict[str, Any], if_match: str | None) -> Answer:
    if not body:
        return tagged(await tenant.read(_to_be_written(tool_id, versions(if_match))))
    return tagged(await tenant.write(_change(tool_id, body, versions(if_match))))


async def delete_tool(tenant: Scope, tool_id: int, if_unused: bool, if_match: str | None) -> Answer:
    await tenant.write(_delete(tool_id, if_unused, versions(if_match)))
    return None, 204


def _create(body: dict[str, Any]) -> Unit[Answer]:
    try:
        tool = yield ask("create_tool", **body, now=utc_now())
    except UniqueViolation:
        raise _taken(body["name"]) from None
    yield noted("create", "tool", None, tool)
    return tagged(tool, 201, {"Location": f"/tools/{tool['id']}"})


def _to_be_written(tool_id: int, wanted: str | None) -> Unit[Row]:
    """The tool as it is: no other unit of its tenant writes meanwhile. Raises NotFound and PreconditionFailed."""
    tool: Row = (yield ask("get_tool", tool_id=tool_id)) or not_found("tool")
    return tool if lets_through(wanted, tool) else has_changed("tool")


def _change(tool_id: int, body: dict[str, Any], wanted: str | None) -> Unit[Row]:
    before = yield from _to_be_written(tool_id, wanted)
    changes = {"name": None, "description": None} | body
    if "name" in body:
        yield ask("tool_is_renamed", tool_id=tool_id, name=body["name"])
    try:
        tool: Row = yield ask("change_tool", tool_id=tool_id, versions=wanted, **changes, now=utc_now())
    except UniqueViolation:
        raise _taken(body["name"]) from None
    yield noted("change", "tool", before, tool)
    return tool


def _delete(tool_id: int, if_unused: bool, wanted: str | None) -> Unit[None]:
    if if_unused and (yield ask("tool_is_used", tool_id=tool_id)):
        raise Conflict("An agent has this tool.")
    before = yield from _to_be_written(tool_id, wanted)
    yield ask("tool_is_taken", tool_id=tool_id, now=utc_now())
    yield ask("delete_tool", tool_id=tool_id, versions=wanted)
    yield noted("delete", "tool", before, None)


def _taken(name: str) -> Conflict:
    return Conflict(f"A tool named {quote(name)} already exists.")
