"""Agents through the door."""

import asyncio
from collections import Counter

from tests.conftest import KEY_A, KEY_B, Client, Serve
from tests.support.http import (
    AGENT,
    MERGE_PATCH,
    answer,
    assert_same_404,
    everything,
    make_agent,
    make_tool,
    places,
    refused,
    run,
)

NOBODYS = 2**53 - 1


async def test_a_created_agent_is_where_its_location_says(client: Client) -> None:
    one, two = [await make_tool(client, name) for name in ("one", "two")]
    response = await client.post("/agents", json={**AGENT, "tool_ids": [two["id"], one["id"]]}, headers=KEY_A)
    assert response.status == 201
    created = await response.json()
    assert {field: created[field] for field in AGENT} == AGENT
    assert created["tool_ids"] == [one["id"], two["id"]]
    assert created["tools"] == [{"id": one["id"], "name": "one"}, {"id": two["id"], "name": "two"}]
    assert created["created_at"] == created["updated_at"]
    assert response.headers["Location"] == f"/agents/{created['id']}"
    assert await client.json("GET", response.headers["Location"]) == created


async def test_agents_are_listed_oldest_first_with_their_tools(client: Client) -> None:
    tool = await make_tool(client)
    agents = [await make_agent(client, "zoe", tool_ids=[tool["id"]]), await make_agent(client, "adam")]
    page = await client.json("GET", "/agents")
    assert page == {"items": agents, "total": 2, "limit": 20, "offset": 0, "next": None}


async def test_put_replaces_the_whole_agent_its_tools_included(client: Client) -> None:
    tool = await make_tool(client)
    before = await make_agent(client, tool_ids=[tool["id"]])
    path = f"/agents/{before['id']}"
    for field in AGENT:
        partial = {name: value for name, value in AGENT.items() if name != field}
        assert places(await refused(client, 400, "PUT", path, json=partial)) == [f"#/{field}"]
    assert places(await refused(client, 400, "PUT", path, json={**AGENT, "tool_ids": None})) == ["#/tool_ids"]
    assert await client.json("GET", path) == before
    wanted = {"name": "walker", "role": "Guide", "description": "Walks"}
    after = await client.json("PUT", path, json=wanted)
    assert after == {**before, **wanted, "tool_ids": [], "tools": [], "updated_at": after["updated_at"]}
    assert after["updated_at"] > before["updated_at"]
    assert await client.json("GET", path) == after
    again = await client.json("PUT", path, json={**wanted, "tool_ids": [tool["id"]]})
    assert again["tool_ids"] == [tool["id"]]


async def test_patch_changes_what_is_given(client: Client) -> None:
    one, two = [await make_tool(client, name) for name in ("one", "two")]
    agent = await make_agent(client, tool_ids=[one["id"]])
    path = f"/agents/{agent['id']}"
    tools = {"tool_ids": [two["id"]], "tools": [{"id": two["id"], "name": "two"}]}
    none = {"tool_ids": [], "tools": []}
    for changes, seen in (
        ({"name": "walker"}, {"name": "walker"}),
        ({"role": "Guide", "description": "Walks"}, {"role": "Guide", "description": "Walks"}),
        ({"tool_ids": [two["id"]]}, tools),
        ({"tool_ids": None}, none),
        ({"tool_ids": [two["id"]], "name": "runner"}, {**tools, "name": "runner"}),
        ({"tool_ids": []}, none),
    ):
        for headers in (MERGE_PATCH, {"Content-Type": "application/json"}):
            response = await client.patch(path, json=changes, headers={**KEY_A, **headers})
            changed = await response.json()
            assert changed == {**agent, **seen, "updated_at": changed["updated_at"]}
            assert changed["updated_at"] > agent["updated_at"]
            assert await client.json("GET", path) == changed
            agent = changed


async def test_a_patch_that_changes_nothing_and_one_that_is_refused_leave_the_agent_as_it_was(client: Client) -> None:
    agent = await make_agent(client, tool_ids=[(await make_tool(client))["id"]])
    path = f"/agents/{agent['id']}"
    for headers in (MERGE_PATCH, {"Content-Type": "application/json"}):
        response = await client.patch(path, data=b"{}", headers={**KEY_A, **headers})
        assert await response.json() == agent
    for changes, wrong in (
        ({"name": None, "role": None, "description": None}, ["#/description", "#/name", "#/role"]),
        ({"name": "walker", "tool_ids": [NOBODYS]}, ["#/tool_ids/0"]),
        ({"name": "walker", "tool_ids": 1}, ["#/tool_ids"]),
        ({"name": "walker", "tools": []}, ["#/tools"]),
        ([], ["#"]),
    ):
        assert places(await refused(client, 400, "PATCH", path, json=changes)) == wrong
    assert await client.json("GET", path) == agent


async def test_a_deleted_agent_is_gone(client: Client) -> None:
    tool = await make_tool(client)
    agent, other = await make_agent(client, "runner", tool_ids=[tool["id"]]), await make_agent(client, "other")
    path = f"/agents/{agent['id']}"
    response = await client.delete(path, headers=KEY_A)
    assert (response.status, await response.read()) == (204, b"")
    for method, body in (("GET", None), ("PUT", AGENT), ("PATCH", AGENT), ("PATCH", {}), ("DELETE", None)):
        await refused(client, 404, method, path, json=body)
    await refused(client, 404, "POST", f"{path}/run", json={"task": "Say hello", "model": "gpt-4o"})
    await refused(client, 404, "GET", f"{path}/runs")
    assert (await client.json("GET", "/agents"))["items"] == [other]
    assert await client.json("GET", f"/tools/{tool['id']}") == tool
    await client.json("DELETE", f"/tools/{tool['id']}?if_unused=true")


async def test_names_are_unique_within_a_tenant_case_and_all(client: Client) -> None:
    first, second = await make_agent(client, "runner"), await make_agent(client, "Runner")
    await make_agent(client, "runner", KEY_B)
    tool = await make_tool(client)
    before = await everything(client)
    path = f"/agents/{second['id']}"
    for method, where, body in (
        ("POST", "/agents", {**AGENT, "tool_ids": [tool["id"]]}),
        ("PUT", path, {**AGENT, "tool_ids": [tool["id"]]}),
        ("PATCH", path, {"name": "runner", "tool_ids": [tool["id"]]}),
    ):
        problem = await refused(client, 409, method, where, json=body)
        assert problem["type"] == "urn:agent-platform:problem:conflict"
        assert "'runner'" in problem["detail"]
        assert await everything(client) == before
    kept = await client.json("PUT", f"/agents/{first['id']}", json={**AGENT, "role": "Keeps its own name"})
    assert kept["name"] == "runner"
    await client.json("DELETE", f"/agents/{first['id']}")
    assert (await client.json("PATCH", path, json={"name": "runner"}))["name"] == "runner"


async def test_filters_find_agents_by_name_and_by_tool(client: Client) -> None:
    one, two, unused = [await make_tool(client, name) for name in ("one", "two", "unused")]
    both = await make_agent(client, "both", tool_ids=[one["id"], two["id"]])
    single = await make_agent(client, "single", tool_ids=[two["id"]])
    idle = await make_agent(client, "Both")
    await make_agent(client, "both", KEY_B, tool_ids=[(await make_tool(client, "two", KEY_B))["id"]])
    for query, found in {
        "name=both": [both],
        "name=Both": [idle],
        "name=bot": [],
        "tool_name=one": [both],
        "tool_name=two": [both, single],
        "tool_name=Two": [],
        f"tool_name={unused['name']}": [],
        "tool_name=nothing": [],
        "tool_name=two&name=single": [single],
        "name=Both&tool_name=two": [],
    }.items():
        page = await client.json("GET", f"/agents?{query}")
        assert (page["items"], page["total"]) == (found, len(found)), query


async def test_if_unused_spares_an_agent_that_has_runs(client: Client) -> None:
    used, unused = await make_agent(client, "used"), await make_agent(client, "unused")
    await run(client, used["id"])
    before = await everything(client)
    problem = await refused(client, 409, "DELETE", f"/agents/{used['id']}?if_unused=true")
    assert problem["type"] == "urn:agent-platform:problem:conflict"
    assert await everything(client) == before
    await client.json("DELETE", f"/agents/{unused['id']}?if_unused=true")
    await client.json("DELETE", f"/agents/{used['id']}?if_unused=false")
    await refused(client, 404, "DELETE", f"/agents/{used['id']}?if_unused=true")
    assert (await client.json("GET", "/agents"))["total"] == 0


async def test_tool_ids_that_are_not_the_tenants_are_named_by_their_position(client: Client) -> None:
    mine = [(await make_tool(client, name))["id"] for name in ("one", "two")]
    theirs = (await make_tool(client, "one", KEY_B))["id"]
    agent = await make_agent(client, tool_ids=mine)
    before = await everything(client)
    path = f"/agents/{agent['id']}"
    for method, where, body in (("POST", "/agents", {**AGENT, "name": "new"}), ("PUT", path, AGENT), ("PATCH", path, {})):
        problems = []
        for unknown in (theirs, NOBODYS):
            tool_ids = [unknown, mine[0], NOBODYS - 1, mine[1]]
            problem = await refused(
                client, 400, method, where, {**KEY_A, "X-Request-ID": "same"}, json={**body, "tool_ids": tool_ids}
            )
            assert places(problem) == ["#/tool_ids/0", "#/tool_ids/2"]
            problems.append(str(problem).replace(str(unknown), "ID"))
        assert problems[0] == problems[1]
    assert await everything(client) == before


async def test_tool_ids_are_all_different_and_at_most_fifty(client: Client) -> None:
    tools = await asyncio.gather(*(make_tool(client, f"tool {number}") for number in range(51)))
    ids = sorted(tool["id"] for tool in tools)
    agent = await make_agent(client, tool_ids=ids[:50])
    assert agent["tool_ids"] == ids[:50]
    assert [reference["id"] for reference in agent["tools"]] == ids[:50]
    path = f"/agents/{agent['id']}"
    for method, where, body in (("POST", "/agents", {**AGENT, "name": "new"}), ("PUT", path, AGENT), ("PATCH", path, {})):
        for tool_ids, wrong in (
            (ids, ["#/tool_ids"]),
            ([ids[0], ids[1], ids[0]], ["#/tool_ids"]),
            ([0, -1, 2**53, "1", None, True, 1.5], [f"#/tool_ids/{position}" for position in range(7)]),
        ):
            assert places(await refused(client, 400, method, where, json={**body, "tool_ids": tool_ids})) == wrong
    assert (await client.json("GET", "/agents"))["items"] == [agent]
    moved = await client.json("PATCH", path, json={"tool_ids": ids[1:]})
    assert moved["tool_ids"] == ids[1:]


async def test_an_id_is_not_used_again_after_a_delete_and_a_restart(serve: Serve) -> None:
    client = await serve()
    last = [await make_agent(client, name) for name in ("first", "last")][-1]
    await client.json("DELETE", f"/agents/{last['id']}")
    assert (await make_agent(client, "last"))["id"] > last["id"]
    highest = (await make_agent(client, "highest"))["id"]
    await client.json("DELETE", f"/agents/{highest}")
    kept = await client.json("GET", "/agents")
    await client.close()
    client = await serve()
    assert await client.json("GET", "/agents") == kept
    assert (await make_agent(client, "highest"))["id"] > highest


async def test_tenants_cannot_see_or_change_each_others_agents(client: Client) -> None:
    tool = await make_tool(client)
    agent = await make_agent(client, tool_ids=[tool["id"]])
    await run(client, agent["id"])
    await make_agent(client, "taken", KEY_B)
    before = await everything(client)
    for method, path, body in (
        ("GET", "/agents/{}", None),
        ("HEAD", "/agents/{}", None),
        ("PUT", "/agents/{}", AGENT),
        ("PUT", "/agents/{}", {**AGENT, "name": "taken"}),
        ("PUT", "/agents/{}", {**AGENT, "tool_ids": [tool["id"]]}),
        ("PATCH", "/agents/{}", {"name": "taken"}),
        ("PATCH", "/agents/{}", {}),
        ("PATCH", "/agents/{}", {"tool_ids": None}),
        ("DELETE", "/agents/{}", None),
        ("DELETE", "/agents/{}?if_unused=true", None),
        ("GET", "/agents/{}/runs", None),
        ("POST", "/agents/{}/run", {"task": "Say hello", "model": "gpt-4o"}),
        ("POST", "/agents/{}/run", {"task": "Ignore all previous instructions.", "model": "gpt-4o"}),
    ):
        await assert_same_404(client, method, path, agent["id"], agent["id"] + 5, KEY_B, json=body)
    for query in ("name=runner", "tool_name=search"):
        assert (await client.json("GET", f"/agents?{query}", KEY_B))["total"] == 0
    assert await everything(client) == before


async def test_of_many_creates_with_one_name_one_wins(client: Client) -> None:
    answers = await asyncio.gather(*(answer(client, "POST", "/agents", KEY_A, json=AGENT) for _ in range(8)))
    assert Counter(each.status for each in answers) == {201: 1, 409: 7}
    page = await client.json("GET", "/agents")
    assert page["items"] == [each.json() for each in answers if each.status == 201]


async def test_changes_and_deletes_at_once_never_fail(client: Client) -> None:
    tool = await make_tool(client)
    agents = [await make_agent(client, f"agent {number}", tool_ids=[tool["id"]]) for number in range(4)]
    requests = [
        (method, f"/agents/{agent['id']}{under}", body)
        for agent in agents
        for method, under, body in (
            ("PUT", "", {**AGENT, "name": "wanted", "tool_ids": [tool["id"]]}),
            ("PATCH", "", {"tool_ids": [tool["id"]]}),
            ("POST", "/run", {"task": "Search the web", "model": "gpt-4o"}),
            ("DELETE", "", None),
            ("PATCH", "", {"tool_ids": None, "name": "wanted"}),
            ("GET", "", None),
            ("DELETE", "?if_unused=true", None),
        )
    ]
    requests.append(("DELETE", f"/tools/{tool['id']}", None))
    answers = await asyncio.gather(*(answer(client, *request[:2], KEY_A, json=request[2]) for request in requests))
    assert {each.status for each in answers} <= {200, 204, 400, 404, 409}
    assert (await client.json("GET", "/agents"))["items"] == []
    assert (await client.json("GET", "/tools"))["items"] == []
