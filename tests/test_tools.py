"""Tools through the door."""

import asyncio
from collections import Counter

from tests.conftest import KEY_A, KEY_B, Client, Serve
from tests.support.http import (
    MERGE_PATCH,
    TOOL,
    answer,
    assert_same_404,
    everything,
    make_agent,
    make_tool,
    places,
    refused,
)


async def test_a_created_tool_is_where_its_location_says(client: Client) -> None:
    response = await client.post("/tools", json=TOOL, headers=KEY_A)
    assert response.status == 201
    created = await response.json()
    assert {field: created[field] for field in TOOL} == TOOL
    assert created["created_at"] == created["updated_at"]
    assert response.headers["Location"] == f"/tools/{created['id']}"
    assert await client.json("GET", response.headers["Location"]) == created


async def test_tools_are_listed_oldest_first(client: Client) -> None:
    tools = [await make_tool(client, name) for name in ("zebra", "ant", "Ant")]
    page = await client.json("GET", "/tools")
    assert page == {"items": tools, "total": 3, "limit": 20, "offset": 0, "next": None}


async def test_put_replaces_the_whole_tool(client: Client) -> None:
    before = await make_tool(client)
    path = f"/tools/{before['id']}"
    for partial, missing in (
        ({}, ["#/description", "#/name"]),
        ({"name": "n"}, ["#/description"]),
        (TOOL | {"id": 7}, ["#/id"]),
    ):
        assert places(await refused(client, 400, "PUT", path, json=partial)) == missing
    after = await client.json("PUT", path, json={"name": "find", "description": "Find things"})
    assert after == {**before, "name": "find", "description": "Find things", "updated_at": after["updated_at"]}
    assert after["updated_at"] > before["updated_at"]
    assert await client.json("GET", path) == after


async def test_patch_changes_what_is_given(client: Client) -> None:
    tool = await make_tool(client)
    path = f"/tools/{tool['id']}"
    for headers, changes in (
        (MERGE_PATCH, {"name": "find"}),
        ({"Content-Type": "application/json"}, {"description": "Find things"}),
        (MERGE_PATCH, {"name": "seek", "description": "Seek things"}),
    ):
        response = await client.patch(path, json=changes, headers={**KEY_A, **headers})
        changed = await response.json()
        assert changed == {**tool, **changes, "updated_at": changed["updated_at"]}
        assert changed["updated_at"] > tool["updated_at"]
        assert await client.json("GET", path) == changed
        tool = changed


async def test_a_patch_that_changes_nothing_and_one_that_is_refused_leave_the_tool_as_it_was(client: Client) -> None:
    tool = await make_tool(client)
    path = f"/tools/{tool['id']}"
    for headers in (MERGE_PATCH, {"Content-Type": "application/json"}):
        response = await client.patch(path, data=b"{}", headers={**KEY_A, **headers})
        assert await response.json() == tool
    for changes, wrong in (
        ({"name": None}, ["#/name"]),
        ({"name": "find", "description": None}, ["#/description"]),
        ({"name": "find", "id": 7, "created_at": "now"}, ["#/created_at", "#/id"]),
        ([], ["#"]),
    ):
        assert places(await refused(client, 400, "PATCH", path, json=changes)) == wrong
    assert await client.json("GET", path) == tool


async def test_a_deleted_tool_is_gone(client: Client) -> None:
    tool, other = await make_tool(client, "search"), await make_tool(client, "other")
    path = f"/tools/{tool['id']}"
    response = await client.delete(path, headers=KEY_A)
    assert (response.status, await response.read()) == (204, b"")
    for method, body in (("GET", None), ("PUT", TOOL), ("PATCH", TOOL), ("PATCH", {}), ("DELETE", None)):
        await refused(client, 404, method, path, json=body)
    await refused(client, 404, "DELETE", f"{path}?if_unused=true")
    assert (await client.json("GET", "/tools"))["items"] == [other]


async def test_names_are_unique_within_a_tenant_case_and_all(client: Client) -> None:
    first, second = await make_tool(client, "search"), await make_tool(client, "Search")
    theirs = await make_tool(client, "search", KEY_B)
    before = await everything(client)
    path = f"/tools/{second['id']}"
    for method, where, body in (
        ("POST", "/tools", {"name": "search", "description": "Again"}),
        ("PUT", path, {"name": "search", "description": "Again"}),
        ("PATCH", path, {"name": "search"}),
    ):
        problem = await refused(client, 409, method, where, json=body)
        assert problem["type"] == "urn:agent-platform:problem:conflict"
        assert "'search'" in problem["detail"]
        assert await everything(client) == before
    kept = await client.json("PUT", f"/tools/{first['id']}", json={"name": "search", "description": "Keeps its own name"})
    assert kept["name"] == "search"
    assert (await client.json("GET", f"/tools/{theirs['id']}", KEY_B)) == theirs
    await client.json("DELETE", f"/tools/{first['id']}")
    assert (await client.json("PATCH", path, json={"name": "search"}))["name"] == "search"


async def test_filters_find_tools_by_name_and_by_agent(client: Client) -> None:
    one, two, loose = [await make_tool(client, name) for name in ("one", "two", "One")]
    await make_agent(client, "worker", tool_ids=[two["id"], one["id"]])
    await make_agent(client, "idler")
    await make_agent(client, "worker", KEY_B, tool_ids=[(await make_tool(client, "one", KEY_B))["id"]])
    for query, found in {
        "name=one": [one],
        "name=One": [loose],
        "name=ONE": [],
        "name=on": [],
        "agent_name=worker": [one, two],
        "agent_name=Worker": [],
        "agent_name=idler": [],
        "agent_name=nobody": [],
        "agent_name=worker&name=two": [two],
        "name=One&agent_name=worker": [],
    }.items():
        page = await client.json("GET", f"/tools?{query}")
        assert (page["items"], page["total"]) == (found, len(found)), query


async def test_if_unused_spares_a_tool_that_an_agent_has(client: Client) -> None:
    used, unused = await make_tool(client, "used"), await make_tool(client, "unused")
    await make_agent(client, tool_ids=[used["id"]])
    before = await everything(client)
    problem = await refused(client, 409, "DELETE", f"/tools/{used['id']}?if_unused=true")
    assert problem["type"] == "urn:agent-platform:problem:conflict"
    for odd in ("True", "1", "yes", "", "true&if_unused=true"):
        assert places(await refused(client, 400, "DELETE", f"/tools/{unused['id']}?if_unused={odd}")) == ["if_unused"]
    assert await everything(client) == before
    await client.json("DELETE", f"/tools/{unused['id']}?if_unused=true")
    await client.json("DELETE", f"/tools/{used['id']}?if_unused=false")
    assert (await client.json("GET", "/tools"))["total"] == 0


async def test_deleting_a_tool_takes_it_from_the_agents_that_had_it(client: Client) -> None:
    tool, other = await make_tool(client, "tool"), await make_tool(client, "other")
    both = await make_agent(client, "both", tool_ids=[tool["id"], other["id"]])
    alone = await make_agent(client, "alone", tool_ids=[tool["id"]])
    apart = await make_agent(client, "apart", tool_ids=[other["id"]])
    await client.json("DELETE", f"/tools/{tool['id']}")
    both_now, alone_now, apart_now = (await client.json("GET", "/agents"))["items"]
    assert apart_now == apart
    assert (both_now["tool_ids"], both_now["tools"]) == ([other["id"]], [{"id": other["id"], "name": "other"}])
    assert (alone_now["tool_ids"], alone_now["tools"]) == ([], [])
    for before, now in ((both, both_now), (alone, alone_now)):
        assert now["updated_at"] > before["updated_at"]
        assert now["created_at"] == before["created_at"]


async def test_agents_keep_a_renamed_tool_under_its_new_name(client: Client) -> None:
    tool = await make_tool(client)
    agent = await make_agent(client, tool_ids=[tool["id"]])
    await client.json("PATCH", f"/tools/{tool['id']}", json={"name": "find"})
    assert (await client.json("GET", f"/agents/{agent['id']}"))["tools"] == [{"id": tool["id"], "name": "find"}]
    assert (await client.json("GET", "/agents?tool_name=find"))["total"] == 1
    assert (await client.json("GET", "/agents?tool_name=search"))["total"] == 0


async def test_an_id_is_not_used_again_after_a_delete_and_a_restart(serve: Serve) -> None:
    client = await serve()
    last = [await make_tool(client, name) for name in ("first", "last")][-1]
    await client.json("DELETE", f"/tools/{last['id']}")
    assert (await make_tool(client, "last"))["id"] > last["id"]
    highest = (await make_tool(client, "highest"))["id"]
    await client.json("DELETE", f"/tools/{highest}")
    kept = await client.json("GET", "/tools")
    await client.close()
    client = await serve()
    assert await client.json("GET", "/tools") == kept
    assert (await make_tool(client, "highest"))["id"] > highest


async def test_tenants_cannot_see_or_change_each_others_tools(client: Client) -> None:
    tool = await make_tool(client)
    await make_agent(client, tool_ids=[tool["id"]])
    await make_tool(client, "taken", KEY_B)
    before = await everything(client)
    for method, path, body in (
        ("GET", "/tools/{}", None),
        ("HEAD", "/tools/{}", None),
        ("PUT", "/tools/{}", TOOL),
        ("PUT", "/tools/{}", {**TOOL, "name": "taken"}),
        ("PATCH", "/tools/{}", {"name": "taken"}),
        ("PATCH", "/tools/{}", {}),
        ("DELETE", "/tools/{}", None),
        ("DELETE", "/tools/{}?if_unused=true", None),
    ):
        await assert_same_404(client, method, path, tool["id"], tool["id"] + 5, KEY_B, json=body)
    for query in ("name=search", "agent_name=runner"):
        assert (await client.json("GET", f"/tools?{query}", KEY_B))["total"] == 0
    assert await everything(client) == before


async def test_of_many_creates_with_one_name_one_wins(client: Client) -> None:
    answers = await asyncio.gather(*(answer(client, "POST", "/tools", KEY_A, json=TOOL) for _ in range(8)))
    assert Counter(each.status for each in answers) == {201: 1, 409: 7}
    page = await client.json("GET", "/tools")
    assert page["items"] == [each.json() for each in answers if each.status == 201]


async def test_changes_and_deletes_at_once_never_fail(client: Client) -> None:
    tools = [await make_tool(client, f"tool {number}") for number in range(4)]
    ids = [tool["id"] for tool in tools]
    agents = [await make_agent(client, f"agent {number}", tool_ids=ids) for number in range(2)]
    requests = [
        (method, f"/tools/{tool_id}", body)
        for tool_id in ids
        for method, body in (
            ("PUT", {**TOOL, "name": "wanted"}),
            ("PATCH", {"name": "wanted"}),
            ("DELETE", None),
            ("PATCH", {"description": "Late"}),
            ("DELETE", None),
        )
    ]
    requests += [("PATCH", f"/agents/{agent['id']}", {"tool_ids": ids}) for agent in agents]
    answers = await asyncio.gather(*(answer(client, *request[:2], KEY_A, json=request[2]) for request in requests))
    assert {each.status for each in answers} <= {200, 204, 400, 404, 409}
    assert Counter(each.status for each in answers)[204] == len(tools)
    assert (await client.json("GET", "/tools"))["items"] == []
    assert [agent["tool_ids"] for agent in (await client.json("GET", "/agents"))["items"]] == [[], []]
