"""Agents: who does the work, and with which tools."""

from typing import Any

import orjson

from service.audit import noted
from service.errors import Conflict, Invalid, not_found, quote
from service.handlers import Answer
from service.paging import Listing, page
from service.preconditions import has_changed, lets_through, tagged, versions
from service.storage.scope import Scope
from service.storage.units import Row, UniqueViolation, Unit, ask
from service.times import utc_now


async def list_agents(
    tenant: Scope, limit: int, offset: int | None, cursor: str | None, name: str | None, tool_name: str | None
) -> Answer:
    if tool_name is None:
        listing = Listing("/agents", "list_agents", "count_agents", {"name": name})
    else:
        listing = Listing(
            "/agents",
            "list_agents_with_tool",
            "count_agents_with_tool",
            {"name": name, "tool_name": tool_name},
        )
    return await page(tenant, listing, limit, offset, cursor)


async def get_agent(tenant: Scope, agent_id: int) -> Answer:
    return tagged(await tenant.one("get_agent", agent_id=agent_id) or not_found("agent"))


async def create_agent(tenant: Scope, body: dict[str, Any]) -> Answer:
    return await tenant.write(_create({"tool_ids": []} | body))


async def replace_agent(tenant: Scope, agent_id: int, body: dict[str, Any], if_match: str | None) -> Answer:
    return await change_agent(tenant, agent_id, {"tool_ids": []} | body, if_match)


async def change_agent(tenant: Scope, agent_id: int, body: dict[str, Any], if_match: str | None) -> Answer:
    if not body:
        return tagged(await tenant.read(_to_be_written(agent_id, versions(if_match))))
    return tagged(await tenant.write(_change(agent_id, body, versions(if_match))))


async def delete_agent(tenant: Scope, agent_id: int, if_unused: bool, if_match: str | None) -> Answer:
    await tenant.write(_delete(agent_id, if_unused, versions(if_match)))
    return None, 204


def _create(body: dict[str, Any]) -> Unit[Answer]:
    agent_id = yield ask("create_agent_id")
    texts = {field: body[field] for field in ("name", "role", "description")}
    try:
        yield ask("create_agent", agent_id=agent_id, **texts, now=utc_now())
    except UniqueViolation:
        raise _taken(body["name"]) from None
    yield from _link(agent_id, body["tool_ids"])
    agent = yield ask("get_agent", agent_id=agent_id)
    yield noted("create", "agent", None, agent)
    return tagged(agent, 201, {"Location": f"/agents/{agent_id}"})


def _to_be_written(agent_id: int, wanted: str | None) -> Unit[Row]:
    """The agent as it is: no other unit of its tenant writes meanwhile. Raises NotFound and PreconditionFailed."""
    agent: Row = (yield ask("get_agent", agent_id=agent_id)) or not_found("agent")
    return agent if lets_through(wanted, agent) else has_changed("agent")


def _change(agent_id: int, body: dict[str, Any], wanted: str | None) -> Unit[Row]:
    """Changes what `body` holds; a field that it lacks stays. `tool_ids` replaces the whole list, None empties it."""
    before = yield from _to_be_written(agent_id, wanted)
    texts = {field: body.get(field) for field in ("name", "role", "description")}
    try:
        yield ask("change_agent", agent_id=agent_id, versions=wanted, **texts, now=utc_now())
    except UniqueViolation:
        raise _taken(body["name"]) from None
    if "tool_ids" in body:
        yield ask("drop_agent_tools", agent_id=agent_id)
        yield from _link(agent_id, body["tool_ids"] or [])
    agent: Row = yield ask("get_agent", agent_id=agent_id)
    yield noted("change", "agent", before, agent)
    return agent


def _link(agent_id: int, tool_ids: list[int]) -> Unit[None]:
    if not tool_ids:
        return
    ids = orjson.dumps(tool_ids).decode()
    if unknown := (yield ask("unknown_tools", tool_ids=ids)):
        errors = [
            {
                "pointer": f"#/tool_ids/{row['position']}",
                "detail": f"There is no tool with the id {row['tool_id']}.",
            }
            for row in unknown
        ]
        raise Invalid("Every id in tool_ids must be a tool of the tenant.", errors=errors)
    yield ask("add_agent_tools", agent_id=agent_id, tool_ids=ids)


def _delete(agent_id: int, if_unused: bool, wanted: str | None) -> Unit[None]:
    # an agent that is gone has runs still: is it there comes first, so that the answer is the same 404 as ever
    before = (yield ask("get_agent", agent_id=agent_id)) or not_found("agent")
    if if_unused and (yield ask("agent_has_runs", agent_id=agent_id)):
        raise Conflict("The agent has runs.")
    if not (yield ask("delete_agent", agent_id=agent_id, versions=wanted)):
        has_changed("agent")
    yield noted("delete", "agent", before, None)


def _taken(name: str) -> Conflict:
    return Conflict(f"An agent named {quote(name)} already exists.")
