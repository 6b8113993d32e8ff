"""The audit log: every change notes itself, in its own transaction, and nobody can alter what stands there."""

import sqlite3
from typing import Any

import psycopg
import pytest

from service.config import Config
from service.times import utc_now
from tests.conftest import KEY_A, KEY_B, Client
from tests.support.command import done
from tests.support.direct import direct
from tests.support.http import AGENT, TOOL, make_agent, make_tool, refused
from tests.support.storage import disk_full, execute, rows, watch
from tests.test_keys import made


async def log(client: Client, query: str = "", key: dict[str, str] = KEY_A) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await client.json("GET", f"/audit{query}", key))["items"]
    return items


def what(entries: list[dict[str, Any]]) -> list[tuple[str, str, int | None]]:
    return [(each["action"], each["resource"], each["resource_id"]) for each in entries]


async def test_each_change_says_who_what_when_and_how_it_was_before(client: Client) -> None:
    key, shown = await made(client)
    tool = await make_tool(client, "search")
    changed = await client.json("PATCH", "/tools/1", key | {"X-Request-ID": "mine-1"}, json={"name": "find"})
    agent = await client.json("POST", "/agents", key, json={**AGENT, "tool_ids": [1]})
    replaced = await client.json("PUT", "/agents/1", key, json={**AGENT, "role": "Other"})
    await client.json("DELETE", "/agents/1", key)
    await client.json("DELETE", "/tools/1", key)
    await client.json("DELETE", f"/keys/{shown['id']}")
    entries = await log(client)
    assert what(entries) == [
        ("revoke", "key", 1),
        ("delete", "tool", 1),
        ("delete", "agent", 1),
        ("change", "agent", 1),
        ("create", "agent", 1),
        ("change", "tool", 1),
        ("create", "tool", 1),
        ("create", "key", 1),
    ]
    demo, with_key = ("demo", None), ("key", 1)
    assert [(each["actor"], each["key_id"]) for each in entries] == [demo, *[with_key] * 5, demo, demo]
    states = [(each["before"], each["after"]) for each in entries]
    assert states[1:4] == [(changed, None), (replaced, None), (agent, replaced)]
    assert states[4:8] == [(None, agent), (tool, changed), (None, tool), (None, shown)]
    before, after = states[0]
    assert before | {"last_used_at": None} == shown
    assert after | {"revoked_at": None} == before
    assert entries[5]["request_id"] == "mine-1"
    assert len({each["request_id"] for each in entries}) == 8
    times = [each["created_at"] for each in entries]
    assert times == sorted(times, reverse=True)
    assert times[0] <= utc_now()


async def test_what_changes_nothing_is_not_noted(client: Client) -> None:
    await make_tool(client, "search")
    await make_agent(client, tool_ids=[1])
    before = await log(client)
    await client.json("POST", "/agents/1/run", json={"task": "Say hello", "model": "gpt-4o"})
    await client.json("PATCH", "/tools/1", json={})
    for method, path, body in (
        ("POST", "/tools", {**TOOL, "name": "search"}),
        ("POST", "/agents", {**AGENT, "name": "new", "tool_ids": [99]}),
        ("PATCH", "/tools/99", {"name": "x"}),
        ("PUT", "/agents/99", AGENT),
        ("DELETE", "/tools/1?if_unused=true", None),
        ("DELETE", "/keys/99", None),
        ("POST", "/keys", {"scopes": []}),
    ):
        assert (await client.request(method, path, headers=KEY_A, json=body)).status >= 400
    assert (await client.delete("/tools/1", headers=KEY_A | {"If-Match": '"9"'})).status == 412
    assert await log(client) == before


@pytest.mark.parametrize("point", ["write_audit", "commit"])
async def test_a_change_and_its_note_are_one(
    client: Client, config: Config, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    def fail(name: str) -> None:
        if name == point:
            raise disk_full(config.database)

    await make_tool(client, "search")
    before = stored(config)
    changes = (("POST", "/tools", {**TOOL, "name": "x"}), ("PATCH", "/tools/1", {"name": "y"}), ("DELETE", "/tools/1", None))
    with monkeypatch.context() as patch:
        watch(patch.setattr, fail)
        for method, path, body in changes:
            await refused(client, 503, method, path, json=body)
    assert stored(config) == before


def stored(config: Config) -> list[Any]:
    return [rows(config.database, f"select * from {table} order by id") for table in ("tools", "audit_log")]


async def test_a_repeated_request_is_noted_once(client: Client) -> None:
    for _ in range(3):
        await client.json("POST", "/tools", KEY_A | {"Idempotency-Key": "once"}, json=TOOL)
    assert what(await log(client)) == [("create", "tool", 1)]


async def test_what_an_operator_does_is_noted_too(client: Client, config: Config) -> None:
    options = ("--database", str(config.database))
    done("tenants", "limit", "tenant_a", "--runs", "50", *options)
    done("tenants", "disable", "tenant_a", *options)
    done("tenants", "disable", "tenant_a", *options)
    done("tenants", "enable", "tenant_a", *options)
    done("tenants", "create", "acme", *options)
    entries = await log(client)
    assert what(entries) == [("enable", "tenant", None), ("disable", "tenant", None), ("limit", "tenant", None)]
    assert {(each["actor"], each["key_id"], each["request_id"]) for each in entries} == {("operator", None, None)}
    assert entries[2]["before"]["run_limit"] is None
    assert (entries[2]["after"]["run_limit"], entries[2]["after"]["run_window"]) == (50, 60)
    assert entries[1]["after"]["disabled_at"] is not None
    assert rows(config.database, "select action, resource from audit_log where tenant_id = 'acme'") == [("create", "tenant")]


async def test_it_is_paged_and_filtered_and_each_tenants_own(client: Client) -> None:
    key, _ = await made(client)
    for number in range(5):
        await make_tool(client, f"tool {number}", key if number % 2 else KEY_A)
    await make_agent(client)
    await client.json("DELETE", "/tools/2")
    everything = await log(client)
    assert len(everything) == 8
    assert await log(client, key=KEY_B) == []
    seen, query = [], "?limit=3"
    while True:
        page = await client.json("GET", f"/audit{query}")
        assert page["total"] == 8
        seen += page["items"]
        if page["next"] is None:
            break
        query = f"?limit=3&cursor={page['next']}"
        await make_tool(client, f"later {len(seen)}", KEY_B)
    assert seen == everything
    for query, expected in {
        "action=delete": [everything[0]],
        "resource=agent": [everything[1]],
        "resource=tool&resource_id=2": [everything[0], everything[5]],
        "key_id=1": [each for each in everything if each["key_id"] == 1],
        f"created_before={everything[6]['created_at']}": [everything[7]],
        f"created_after={everything[1]['created_at']}": [everything[0]],
        "action=create&resource=tool&key_id=1&limit=1": [everything[3]],
    }.items():
        assert await log(client, f"?{query}") == expected, query
    for wrong in ("action=made", "resource=run", "resource_id=0", "key_id=x", "created_after=yesterday"):
        await refused(client, 400, "GET", f"/audit?{wrong}")


async def test_it_is_append_only_for_everyone(client: Client, config: Config) -> None:
    await make_tool(client, "search")
    before = stored(config)
    statements = ["update audit_log set action = 'create'", "delete from audit_log", "update audit_log set before = null"]
    statements += ["truncate audit_log"] if isinstance(config.database, str) else []
    with direct(config.database) as owner:
        for statement in statements:
            with pytest.raises((sqlite3.IntegrityError, psycopg.errors.InsufficientPrivilege), match="append-only"):
                owner.run(statement)
    assert stored(config) == before
    # but for a tenant that is about to be deleted with all that it has
    execute(config.database, f"update tenants set deleted_at = '{utc_now()}' where id = 'tenant_a'")
    execute(config.database, "delete from audit_log")
    assert rows(config.database, "select * from audit_log") == []
