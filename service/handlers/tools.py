"""Tools: what agents can call."""

from typing import Any

from service.errors import Conflict, not_found, quote
from service.handlers import Answer
from service.paging import Listing, page
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
    return await tenant.one("get_tool", tool_id=tool_id) or not_found("tool")


async def create_tool(tenant: Scope, body: dict[str, Any]) -> Answer:
    tool = await tenant.write(_create(body))
    return tool, 201, {"Location": f"/tools/{tool['id']}"}


async def replace_tool(tenant: Scope, tool_id: int, body: dict[str, Any]) -> Answer:
    return await change_tool(tenant, tool_id, body)


async def change_tool(tenant: Scope, tool_id: int, body: dict[str, Any]) -> Answer:
    if not body:
        return await get_tool(tenant, tool_id)
    changes = {"name": None, "description": None} | body
    try:
        return await tenant.one("change_tool", tool_id=tool_id, **changes, now=utc_now()) or not_found("tool")
    except UniqueViolation:
        raise _taken(body["name"]) from None


async def delete_tool(tenant: Scope, tool_id: int, if_unused: bool) -> Answer:
    await tenant.write(_delete(tool_id, if_unused))
    return None, 204


def _create(body: dict[str, Any]) -> Unit[Row]:
    try:
        tool: Row = yield ask("create_tool", **body, now=utc_now())
    except UniqueViolation:
        raise _taken(body["name"]) from None
    return tool


def _delete(tool_id: int, if_unused: bool) -> Unit[Row]:
    if if_unused and (yield ask("tool_is_used", tool_id=tool_id)):
        raise Conflict("An agent has this tool.")
    yield ask("touch_agents_with_tool", tool_id=tool_id, now=utc_now())
    deleted: Row | None = yield ask("delete_tool", tool_id=tool_id)
    return deleted or not_found("tool")


def _taken(name: str) -> Conflict:
    return Conflict(f"A tool named {quote(name)} already exists.")
