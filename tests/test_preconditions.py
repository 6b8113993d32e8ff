"""No lost updates: the ETag of a tool or an agent, and what If-Match and If-None-Match make of it."""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from service.resources import resource
from service.storage import migrations
from service.storage.migrations import hold, migrate
from service.storage.sqlite import connect
from service.times import utc_now
from tests.conftest import KEY_A, KEY_B, Client, Serve
from tests.support.contract import Contract
from tests.support.http import (
    AGENT,
    TOOL,
    Answer,
    Wire,
    assert_same_404,
    everything,
    make_agent,
    make_tool,
    places,
    refused,
    run,
)

FAILED = "urn:agent-platform:problem:precondition-failed"
BODIES: dict[str, dict[str, Any]] = {"/tools": TOOL, "/agents": AGENT}
# what changes a tool or an agent, with a body that changes either
WRITES = [("PUT", None), ("PATCH", {"description": "Another"}), ("PATCH", {"name": "other"}), ("DELETE", None)]


async def send(client: Client, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    """A request of tenant_a's; a PUT without a body of its own replaces all texts."""
    if method == "PUT" and body is None:
        body = {name: f"new {name}" for name in BODIES["/" + path.split("/")[1]]}
    more = {} if body is None else {"json": body}
    response = await client.request(method, path, headers={**KEY_A, **headers}, **more)
    return Answer(response.status, response.headers, await response.read())


async def send_lines(client: Client, method: str, path: str, name: str, lines: list[str], body: Any = None) -> Answer:
    """The same with the header `name` in several lines."""
    headers = [*KEY_A.items(), *((name, line) for line in lines)]
    response = await client.request(method, path, headers=headers, **({} if body is None else {"json": body}))
    return Answer(response.status, response.headers, await response.read())


def if_match(tag: str) -> dict[str, str]:
    return {"If-Match": tag}


async def tag(client: Client, path: str, key: Mapping[str, str] = KEY_A) -> str:
    """The ETag of a GET, which is the one of a HEAD."""
    got, head = [await client.request(method, path, headers=key) for method in ("GET", "HEAD")]
    assert got.status == head.status == 200
    assert got.headers["ETag"] == head.headers["ETag"]
    return got.headers["ETag"]


@asynccontextmanager
async def nothing_changes(client: Client) -> AsyncIterator[None]:
    """Fails where something of either tenant is another in the end, or has another ETag."""
    paths = [f"{each}/{item['id']}" for each in BODIES for item in (await client.json("GET", each))["items"]]

    async def tags() -> list[str]:
        return [(await client.get(each, headers=KEY_A)).headers["ETag"] for each in paths]

    before = await everything(client), await tags()
    yield
    assert (await everything(client), await tags()) == before


async def assert_refused(client: Client, method: str, path: str, body: Any = None, *tags: str) -> None:
    """412 under each of the tags, and nothing has changed."""
    async with nothing_changes(client):
        for wrong in tags:
            found = await send(client, method, path, body, **if_match(wrong))
            assert (found.status, found.json()["type"]) == (412, FAILED), (method, path, wrong, found)
            assert "ETag" not in found.headers


async def prepare(client: Client) -> None:
    """Tool 1, which the agents 1 and 2 have; tool 2, which agent 1 has; tool 3 and agent 3 alone; the same of tenant_b."""
    for key in (KEY_A, KEY_B):
        ids = [(await make_tool(client, name, key))["id"] for name in ("search", "mail", "idle")]
        for name, tool_ids in (("runner", ids[:2]), ("clerk", ids[:1]), ("loner", [])):
            await make_agent(client, name, key, tool_ids=tool_ids)


# The ETag


def test_the_spec_gives_single_tools_and_agents_an_etag_and_nothing_else(contract: Contract) -> None:
    tagged, matched, compared = set(), set(), set()
    for method, path, operation in contract.operations():
        for code, response in operation["responses"].items():
            if "ETag" in contract.resolve(response).get("headers", {}):
                tagged.add((method, path, code))
        names = {each["name"] for each in contract.parameters(path, operation)}
        if "If-Match" in names:
            matched.add((method, path))
            assert "412" in operation["responses"]
        if "If-None-Match" in names:
            compared.add((method, path))
    items = ("/tools/{tool_id}", "/agents/{agent_id}")
    written = {(method, path, "200") for method in ("get", "put", "patch") for path in items}
    assert tagged == written | {("get", path, "304") for path in items} | {("post", path, "201") for path in BODIES}
    assert matched == {(method, path) for method in ("put", "patch", "delete") for path in items}
    # every write to a thing that is there, whatever comes to the spec; a key is never changed, only ended
    writes = {(method, path) for method, path, _ in contract.operations() if method in ("put", "patch", "delete")}
    assert matched == writes - {("delete", "/keys/{key_id}")}
    assert compared == {("get", path) for path in items}


async def test_nothing_but_a_tool_or_an_agent_has_an_etag(client: Client) -> None:
    await prepare(client)
    done = await run(client, 1)
    lists = ("/tools", "/agents", "/runs", "/agents/1/runs", "/tools?name=search")
    for path in (*lists, f"/runs/{done['id']}", "/whoami", "/models", "/", "/health", "/ready"):
        for headers in ({}, {"If-None-Match": "*"}, {"If-None-Match": '"1"'}, {"If-Match": '"7"'}):
            found = await send(client, "GET", path, **headers)
            assert (found.status, "ETag" in found.headers) == (200, False), (path, headers)
    ran = await send(client, "POST", "/agents/1/run", {"task": "Say hello", "model": "gpt-4o"})
    assert (ran.status, "ETag" in ran.headers) == (200, False)
    for method, path, body, status in (
        ("GET", "/tools/99", None, 404),
        ("GET", "/tools/x", None, 400),
        ("POST", "/tools", TOOL, 409),
        ("PATCH", "/tools/1", {"name": ""}, 400),
        ("PATCH", "/tools/1", {"name": "mail"}, 409),
        ("DELETE", "/tools/1", None, 204),
    ):
        found = await send(client, method, path, body)
        assert (found.status, "ETag" in found.headers) == (status, False), (method, path)


async def test_the_version_is_in_no_body(client: Client) -> None:
    for path, body in BODIES.items():
        made = await send(client, "POST", path, body)
        for method, change in (("GET", None), ("PUT", body), ("PATCH", {}), ("PATCH", {"description": "Another"})):
            found = await send(client, method, f"{path}/1", change)
            assert found.json().keys() == made.json().keys()
            assert "version" not in found.json()
        assert "version" not in (await client.json("GET", path))["items"][0]
        assert places(await refused(client, 400, "PATCH", f"{path}/1", json={"version": 1})) == ["#/version"]
        assert places(await refused(client, 400, "PUT", f"{path}/1", json=body | {"version": 1})) == ["#/version"]


@pytest.mark.parametrize("path", BODIES)
async def test_each_change_gives_a_new_etag_and_each_look_the_same(client: Client, path: str) -> None:
    made = await send(client, "POST", path, BODIES[path])
    seen = [made.headers["ETag"]]
    item = f"{path}/1"
    for method, body in (
        ("PUT", BODIES[path]),
        ("PATCH", {"name": "other"}),
        ("PATCH", {"description": "Another"}),
        ("PATCH", {"description": "Another"}),
        ("PUT", None),
    ):
        for _ in range(2):
            assert await tag(client, item) == seen[-1]
        await client.json("GET", path)
        # an empty change is none
        assert (await send(client, "PATCH", item, {})).headers["ETag"] == seen[-1]
        found = await send(client, method, item, body)
        assert found.status == 200
        seen.append(found.headers["ETag"])
        assert await tag(client, item) == seen[-1]
    assert len(set(seen)) == len(seen) == 6
    for method, body, status in (("PATCH", {"name": ""}, 400), ("PUT", {}, 400), ("DELETE", {}, 400)):
        target = f"{item}?if_unused=x" if method == "DELETE" else item
        assert (await send(client, method, target, body)).status == status
    assert await tag(client, item) == seen[-1]


@pytest.mark.parametrize("path", ["/tools/1", "/agents/1"])
async def test_what_is_in_use_is_spared_whatever_its_version(client: Client, path: str) -> None:
    await prepare(client)
    await client.json("POST", "/agents/1/run", json={"task": "Say hello", "model": "gpt-4o"})
    for version in ('"99"', "*"):
        assert (await send(client, "DELETE", f"{path}?if_unused=true", **if_match(version))).status == 409
    for query in ("", "?if_unused=false"):
        assert (await send(client, "DELETE", path + query, **if_match('"99"'))).status == 412
    assert (await send(client, "DELETE", path, **if_match(await tag(client, path)))).status == 204


async def test_an_etag_survives_a_restart(serve: Serve) -> None:
    client = await serve()
    await make_tool(client)
    before = (await send(client, "PATCH", "/tools/1", {"name": "find"})).headers["ETag"]
    await client.close()
    client = await serve()
    assert await tag(client, "/tools/1") == before
    assert (await send(client, "PATCH", "/tools/1", {"name": "seek"}, **if_match(before))).status == 200


# one after the other; which of the agents 1 to 3 have a new ETag after each
CHANGES = [
    # the agents don't show a tool's description, and not the time of its change
    ("PATCH", "/tools/1", {"description": "Another"}, ""),
    ("PATCH", "/tools/1", {"name": "search"}, ""),
    ("PUT", "/tools/1", {"name": "search", "description": "A third"}, ""),
    ("PATCH", "/tools/1", {}, ""),
    ("PATCH", "/tools/3", {"name": "asleep"}, ""),
    # refused
    ("PATCH", "/tools/1", {"name": "mail"}, ""),
    ("PATCH", "/tools/1", {"name": "find", "extra": 1}, ""),
    ("DELETE", "/tools/1?if_unused=true", None, ""),
    ("PATCH", "/agents/1", {"tool_ids": [1, 99]}, ""),
    ("PATCH", "/agents/1", {"role": "Clerk", "name": "clerk"}, ""),
    ("PUT", "/agents/1", {**AGENT, "tool_ids": [99]}, ""),
    # others
    ("POST", "/agents", {**AGENT, "name": "fourth", "tool_ids": [1, 2]}, ""),
    ("POST", "/tools", {**TOOL, "name": "fourth"}, ""),
    ("POST", "/agents/1/run", {"task": "Search and mail", "model": "gpt-4o"}, ""),
    # what they show
    ("PATCH", "/tools/1", {"name": "Search"}, "12"),
    ("PUT", "/tools/1", {**TOOL, "name": "find"}, "12"),
    ("PATCH", "/tools/2", {"name": "fax"}, "1"),
    ("PATCH", "/agents/3", {"tool_ids": [1]}, "3"),
    ("PATCH", "/tools/1", {"name": "seek"}, "123"),
    ("PUT", "/agents/2", {**AGENT, "name": "other"}, "2"),
    ("PATCH", "/tools/1", {"name": "look"}, "13"),
    ("PATCH", "/agents/2", {"role": "Clerk"}, "2"),
    ("PATCH", "/agents/1", {"tool_ids": [2]}, "1"),
    ("PATCH", "/agents/1", {"tool_ids": None}, "1"),
    ("PATCH", "/agents/1", {"tool_ids": [2, 1]}, "1"),
    ("DELETE", "/tools/2", None, "1"),
    ("DELETE", "/tools/3", None, ""),
    ("DELETE", "/tools/1", None, "13"),
    ("DELETE", "/agents/7", None, ""),
]


async def test_an_agents_etag_changes_with_what_it_shows_and_with_nothing_else(client: Client) -> None:
    await prepare(client)
    before, of_b = await agent_tags(client, KEY_A), await agent_tags(client, KEY_B)
    for method, path, body, changed in CHANGES:
        await send(client, method, path, body)
        after = await agent_tags(client, KEY_A)
        assert "".join(each for each in "123" if before[each] != after[each]) == changed, (method, path, body)
        before = after
    assert await agent_tags(client, KEY_B) == of_b


async def agent_tags(client: Client, key: dict[str, str]) -> dict[str, str]:
    """The ETag of each agent by its id."""
    ids = [str(agent["id"]) for agent in (await client.json("GET", "/agents", key))["items"]]
    return {each: (await client.get(f"/agents/{each}", headers=key)).headers["ETag"] for each in ids}


async def test_as_long_as_the_etag_is_the_same_so_is_the_body(client: Client) -> None:
    await prepare(client)
    seen: dict[tuple[str, str], bytes] = {}
    for at in range(30):
        changes = [
            ("PATCH", "/tools/1", {"name": f"search {at}"}),
            ("PATCH", "/tools/2", {"description": f"Mail {at}"}),
            ("PUT", "/agents/1", {**AGENT, "tool_ids": [1, 2][: at % 3]}),
            ("PATCH", "/agents/2", {"tool_ids": [3, 1][at % 2 :]}),
            ("DELETE", "/tools/3", None),
        ]
        await send(client, *changes[at % 4 if at < 27 else 4])
        for path in ("/agents/1", "/agents/2", "/agents/3", "/tools/1", "/tools/2"):
            found = await send(client, "GET", path)
            assert seen.setdefault((path, found.headers["ETag"]), found.body) == found.body, path
    assert len(seen) > 30


# If-Match


@pytest.mark.parametrize("path", BODIES)
async def test_a_change_is_made_where_nothing_has_changed_since(client: Client, path: str) -> None:
    for method, body in WRITES:
        item = (await send(client, "POST", path, BODIES[path])).headers["Location"]
        current = await tag(client, item)
        first = await send(client, method, item, body, **if_match(current))
        assert first.status == (204 if method == "DELETE" else 200)
        if method == "DELETE":
            assert (await send(client, "GET", item)).status == 404
            # gone is gone, whatever the condition says
            for condition in (current, "*", '"no"'):
                assert (await send(client, "DELETE", item, **if_match(condition))).status == 404
        else:
            assert first.headers["ETag"] == await tag(client, item) != current
            await assert_refused(client, method, item, body, current)
            assert (await send(client, "DELETE", item, **if_match(first.headers["ETag"]))).status == 204


# the version is 2: the old one, one to come, what was never given out, weak ones, what looks like JSON, lists of all that
WRONG = ['"1"', '"3"', '"02"', '"2.0"', '""', '"+2"', '"*"', 'W/"2"', 'W/"2", "1"', '"W/2"', '"]"', '"1,2"', '"2\'"']
WRONG += ['"9223372036854775808"', f'"{"9" * 300}"', '"1","3" , W/"2","4"']


@pytest.mark.parametrize("path", BODIES)
async def test_a_change_under_another_version_is_refused_and_nothing_done(client: Client, path: str) -> None:
    await prepare(client)
    await send(client, "PATCH", f"{path}/1", {"description": "Another"})
    for method, body in [*WRITES, ("PATCH", {})]:
        await assert_refused(client, method, f"{path}/1", body, *WRONG)
    for method, body in [("PATCH", {}), *WRITES]:
        current = await tag(client, f"{path}/1")
        assert (await send(client, method, f"{path}/1", body, **if_match(current))).status in (200, 204)


async def test_a_refused_change_of_a_tool_leaves_its_agents_as_they_were(client: Client) -> None:
    await prepare(client)
    # assert_refused compares the agents, their ETags and times
    for method, body in (("PATCH", {"name": "find"}), ("PUT", {**TOOL, "name": "find"}), ("DELETE", None)):
        await assert_refused(client, method, "/tools/1", body, '"7"')
    # the same while others commit, whose transaction it shares
    before = [await tag(client, f"/agents/{at}") for at in (1, 2)]
    others = asyncio.gather(*(make_tool(client, f"tool {at}") for at in range(10)))
    stale = [("PATCH", {"name": "find"}), ("DELETE", None)] * 5
    found = await asyncio.gather(*(send(client, method, "/tools/1", body, **if_match('"7"')) for method, body in stale))
    assert [each.status for each in found] == [412] * 10
    assert len(await others) == 10
    assert [await tag(client, f"/agents/{at}") for at in (1, 2)] == before
    assert (await client.json("GET", "/agents/1"))["tool_ids"] == [1, 2]


@pytest.mark.parametrize("path", BODIES)
async def test_a_star_a_list_and_several_lines_let_the_right_version_through(client: Client, path: str) -> None:
    await send(client, "POST", path, BODIES[path])
    version = 1
    for method, body in (("PATCH", {"description": "Another"}), ("PUT", BODIES[path]), ("PATCH", {})):
        for lines in (
            ["*"],
            ['"{}"'],
            [' \t"{}" \t'],
            ['"7","{}"'],
            ['"{}" ,\t"7"'],
            ['W/"7", "{}"'],
            ['W/"{}", "{}"'],
            ['"a,b", "{}"', '"x"'],
            ['"7"', '"{}"'],
            ['W/"8"', '"{}"', '"a"'],
            [", ".join(f'"{at}"' for at in range(200, 250)) + ', "{}"'],
        ):
            given = [line.replace("{}", str(version)) for line in lines]
            found = await send_lines(client, method, f"{path}/1", "If-Match", given, body)
            assert found.status == 200, (method, lines, found)
            version += bool(body)
            assert found.headers["ETag"] == f'"{version}"'
    given = ['"7777"', f'"{version}"']
    assert (await send_lines(client, "DELETE", f"{path}/1", "If-Match", given)).status == 204


MALFORMED = [
    "",
    "1",
    '"1',
    '1"',
    "'1'",
    '"1" "2"',
    "**",
    '*, "1"',
    '"1", *',
    'w/"1"',
    'W/ "1"',
    "W/1",
    'W/"1',
    '"1";',
    '"a b"',
]
MALFORMED += ['"\t"', '"é"', "null", '""1""', '"1"x', "x" * 1001, ", ".join(['"1"'] * 300)]


@pytest.mark.parametrize("path", BODIES)
async def test_what_is_no_list_of_etags_is_refused(client: Client, path: str) -> None:
    await send(client, "POST", path, BODIES[path])
    before = await everything(client)
    for value in MALFORMED:
        for method, body in [*WRITES, ("PATCH", {})]:
            found = await send(client, method, f"{path}/1", body, **if_match(value))
            assert (found.status, places(found.json())) == (400, ["If-Match"]), (method, value)
        for method in ("GET", "HEAD"):
            found = await send(client, method, f"{path}/1", **{"If-None-Match": value})
            assert found.status == 400, (method, value)
            assert method == "HEAD" or places(found.json()) == ["If-None-Match"]
    for name, method in (("If-Match", "DELETE"), ("If-None-Match", "GET")):
        for lines in (["*", "*"], ['"1"', "*"], ['"1', '2"'], ["", ","]):
            found = await send_lines(client, method, f"{path}/1", name, lines)
            assert (found.status, places(found.json())) == (400, [name]), lines
    assert await everything(client) == before


async def test_bytes_that_are_no_utf_8_are_no_etag(client: Client) -> None:
    await make_tool(client)
    for method, name in (("DELETE", b"If-Match"), ("GET", b"If-None-Match")):
        async with Wire(client) as wire:
            head = b"%s /tools/1 HTTP/1.1\r\nHost: x\r\nX-API-Key: key_tenant_a\r\n" % method.encode()
            found = await wire.ask(head + name + b': "\xff"\r\n\r\n')
        assert found.status == 400
        assert places(found.json()) == [name.decode()]


@pytest.mark.parametrize("path", BODIES)
async def test_what_is_not_there_or_anothers_is_404_whatever_the_condition(client: Client, path: str) -> None:
    theirs = int((await client.json("POST", path, KEY_A, json=BODIES[path]))["id"])
    before = await everything(client)
    for condition in ('"1"', '"2"', 'W/"1"', "*"):
        for method, body in [*WRITES, ("PATCH", {})]:
            sent = {} if method == "DELETE" else {"json": BODIES[path] if body is None else body}
            await assert_same_404(client, method, f"{path}/{{}}", theirs, 9, {**KEY_B, "If-Match": condition}, **sent)
        headers = {**KEY_B, "If-None-Match": condition}
        await assert_same_404(client, "GET", f"{path}/{{}}", theirs, 9, headers)
        assert (await client.head(f"{path}/{theirs}", headers=headers)).status == 404
    assert await everything(client) == before


async def test_a_broken_request_is_told_so_before_its_condition_is_looked_at(client: Client) -> None:
    await prepare(client)
    stale = if_match('"7"')
    for path, body, place in (
        ("/tools/1", {"name": ""}, "#/name"),
        ("/agents/1", {"tool_ids": [1, 1]}, "#/tool_ids"),
        ("/agents/1", {"role": 7}, "#/role"),
    ):
        found = await send(client, "PATCH", path, body, **stale)
        assert (found.status, places(found.json())) == (400, [place])
    found = await send(client, "PATCH", "/tools/1", {"name": ""}, **if_match("7"))
    assert places(found.json()) == ["#/name", "If-Match"]
    assert (await send(client, "PATCH", "/tools/1", {"name": "x"}, **stale, **{"Content-Type": "text/plain"})).status == 415
    for key in ({}, {"X-API-Key": "wrong"}):
        for condition in ('"1"', '"7"', "*", "no"):
            assert (await client.delete("/tools/1", headers={**key, "If-Match": condition})).status == 401
    # what is stored is looked at only under the right version
    for path, body in (("/tools/1", {"name": "mail"}), ("/agents/1", {"name": "clerk"}), ("/agents/1", {"tool_ids": [99]})):
        await assert_refused(client, "PATCH", path, body, '"7"')
        assert (await send(client, "PATCH", path, body, **if_match('"1"'))).status in (400, 409)


async def test_an_agent_can_not_be_changed_by_who_has_not_seen_its_tools_new_name(client: Client) -> None:
    await prepare(client)
    seen = await tag(client, "/agents/1")
    await send(client, "PATCH", "/tools/1", {"name": "find"})
    for method, body in WRITES:
        await assert_refused(client, method, "/agents/1", body, seen)
    seen = await tag(client, "/agents/1")
    await send(client, "DELETE", "/tools/2")
    await assert_refused(client, "PATCH", "/agents/1", {"tool_ids": None}, seen)
    assert (await client.json("GET", "/agents/1"))["tool_ids"] == [1]


@pytest.mark.parametrize("path", BODIES)
async def test_of_fifty_changes_of_one_version_exactly_one_is_made(client: Client, path: str) -> None:
    await send(client, "POST", path, BODIES[path])
    for turn in range(2):
        current = await tag(client, f"{path}/1")
        found = await asyncio.gather(
            *(
                send(client, "PATCH", f"{path}/1", {"description": f"turn {turn}, change {at}"}, **if_match(current))
                for at in range(50)
            )
        )
        assert Counter(each.status for each in found) == {200: 1, 412: 49}
        (made,) = [each for each in found if each.status == 200]
        assert await client.json("GET", f"{path}/1") == made.json()
        assert made.headers["ETag"] == await tag(client, f"{path}/1") == f'"{turn + 2}"'


async def test_of_fifty_writes_of_all_kinds_at_one_version_exactly_one_is_made(client: Client) -> None:
    await prepare(client)
    current = await tag(client, "/agents/1")
    # a tool's new name is a change of the agent, too, and needs no condition
    renamed = asyncio.create_task(send(client, "PATCH", "/tools/1", {"name": "find"}))
    writes = [WRITES[at % 4] for at in range(50)]
    found = await asyncio.gather(*(send(client, method, "/agents/1", body, **if_match(current)) for method, body in writes))
    made = [each for each in found if each.status in (200, 204)]
    assert len(made) <= 1
    assert {each.status for each in found} <= {200, 204, 404, 412}
    assert (await renamed).status == 200
    assert bool(made) or await tag(client, "/agents/1") != current


# If-None-Match


def has_it(found: Answer, etag: str) -> bool:
    """Is the answer a 304: without a body, with the ETag, and nothing that describes a body?"""
    assert found.headers["ETag"] == etag
    if found.status == 200:
        return False
    assert (found.status, found.body) == (304, b"")
    assert not {"Content-Type", "Content-Length", "Transfer-Encoding"} & {name.title() for name in found.headers}
    return True


@pytest.mark.parametrize("path", BODIES)
async def test_what_the_client_has_is_not_sent_again(client: Client, path: str) -> None:
    await send(client, "POST", path, BODIES[path])
    etag = (await send(client, "PATCH", f"{path}/1", {"description": "Another"})).headers["ETag"]
    assert etag == '"2"'
    for method in ("GET", "HEAD"):
        for known in (
            '"2"',
            'W/"2"',
            "*",
            '"1", "2"',
            'W/"1",W/"2"',
            '"2" , "x"',
            '"a,b","2"',
            ' \t"2"\t',
            '"2",',
            ',"2"',
            '"1", ,"2"',
        ):
            assert has_it(await send(client, method, f"{path}/1", **{"If-None-Match": known}), etag), known
        for lines in (['"1"', '"2"'], ['W/"2"', '"7"'], ["", '"2"']):
            assert has_it(await send_lines(client, method, f"{path}/1", "If-None-Match", lines), etag)
        whole = await send(client, method, f"{path}/1")
        for other in ('"1"', 'W/"1"', '"22"', '""', '"02"', '"W/2"', '"1","3"', '"-2"', '"*"'):
            found = await send(client, method, f"{path}/1", **{"If-None-Match": other})
            assert not has_it(found, etag), other
            assert found.body == whole.body
            assert found.headers["Content-Length"] == whole.headers["Content-Length"]
    await send(client, "PATCH", f"{path}/1", {"description": "A third"})
    assert not has_it(await send(client, "GET", f"{path}/1", **{"If-None-Match": etag}), '"3"')


async def test_a_304_leaves_the_connection_in_order(client: Client) -> None:
    await make_tool(client)
    head = b"GET /tools/1 HTTP/1.1\r\nHost: x\r\nX-API-Key: key_tenant_a\r\n"
    async with Wire(client) as wire:
        await wire.send((head + b'If-None-Match: "1"\r\n\r\n') * 2 + head + b"\r\n")
        found = [await wire.receive() for _ in range(3)]
    assert [each.status for each in found] == [304, 304, 200]
    assert [bool(each.body) for each in found] == [False, False, True]


async def test_an_agent_is_sent_again_when_its_tool_has_a_new_name(client: Client) -> None:
    await prepare(client)
    known = {"If-None-Match": await tag(client, "/agents/1")}
    await send(client, "PATCH", "/tools/1", {"description": "Another"})
    assert (await send(client, "GET", "/agents/1", **known)).status == 304
    await send(client, "PATCH", "/tools/1", {"name": "find"})
    found = await send(client, "GET", "/agents/1", **known)
    assert (found.status, found.json()["tools"][0]["name"]) == (200, "find")


async def test_the_other_headers_condition_changes_nothing(client: Client) -> None:
    """A read knows no If-Match, a write no If-None-Match; neither is looked at, not even for its form."""
    await make_tool(client)
    for value in ('"7"', "no list"):
        assert (await send(client, "GET", "/tools/1", **if_match(value))).status == 200
    version = 1
    for value in ("*", '"1"', "no list"):
        version += 1
        found = await send(client, "PATCH", "/tools/1", {"description": "Another"}, **{"If-None-Match": value})
        assert (found.status, found.headers["ETag"]) == (200, f'"{version}"')
    made = await send(client, "POST", "/tools", {**TOOL, "name": "other"}, **{"If-None-Match": "*", "If-Match": '"7"'})
    assert made.status == 201


# Migration 0005

NOW = utc_now()


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A database of the version before, with a tool, two agents and a link."""
    before = tmp_path / "migrations"
    before.mkdir()
    for file in resource("migrations").glob("000[1-4]*"):
        (before / file.name).write_bytes(file.read_bytes())
    database = tmp_path / "old.db"
    with closing(hold(database)):
        assert migrate(database, before)[-1] == "0004_flat_history"
    with closing(connect(database)) as connection:
        connection.execute("insert into tenants values ('tenant_a', ?)", (NOW,))
        connection.execute("insert into agent_ids (tenant_id) values ('tenant_a'), ('tenant_a')")
        connection.execute(
            "insert into tools (tenant_id, name, description, created_at, updated_at) values ('tenant_a', 't', 'd', ?, ?)",
            (NOW, NOW),
        )
        for at in (1, 2):
            values = (at, f"a{at}", NOW, NOW)
            connection.execute("insert into agents values (?, 'tenant_a', ?, 'r', 'd', ?, ?)", values)
        connection.execute("insert into agent_tools values ('tenant_a', 1, 1)")
    return database


def contents(database: Path) -> dict[str, list[dict[str, Any]]]:
    found = {}
    with closing(sqlite3.connect(database)) as connection:
        connection.row_factory = sqlite3.Row
        for table in ("tools", "agents", "agent_tools", "agent_details"):
            found[table] = [dict(row) for row in connection.execute(f"select * from {table} order by 1, 2, 3")]
    return found


def without_version(found: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    return {
        table: [{name: value for name, value in row.items() if name != "version"} for row in rows]
        for table, rows in found.items()
    }


def versions(database: Path) -> list[int]:
    found = contents(database)
    return [row["version"] for table in ("tools", "agents", "agent_details") for row in found[table]]


def schema(database: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        query = "select name, sql from sqlite_master where name not like '%yoyo%' order by name"
        return connection.execute(query).fetchall()


def forget(database: Path, migration: str) -> None:
    """As after a crash between the migration and its record."""
    with closing(connect(database)) as connection:
        connection.execute("delete from _yoyo_migration where migration_id >= ?", (migration,))


def roll_back_from(database: Path, migration: str) -> None:
    """Undoes `migration` and what came behind it, twice, as after a crash before the record went; the rest stays."""
    with closing(connect(database)) as connection:
        records = connection.execute("select * from _yoyo_migration where migration_id >= ?", (migration,)).fetchall()
    for turn in range(2):
        with closing(connect(database)) as connection:
            if turn:
                connection.executemany("insert into _yoyo_migration values (?, ?, ?)", records)
        with migrations._backend(database) as backend:
            undone = backend.to_rollback(migrations.read_migrations(resource("migrations")))
            backend.rollback_migrations(undone.filter(lambda each: each.id >= migration))


# the migrations of this version, from the one that brought the versions on
LATER = sorted(each for each in migrations.known_migrations(resource("migrations")) if each >= "0005")


def test_what_was_there_before_the_versions_has_the_first_one(old: Path) -> None:
    before = contents(old)
    assert without_version(before) == before
    with closing(hold(old)):
        assert migrate(old, resource("migrations")) == LATER
    assert without_version(contents(old)) == before
    assert versions(old) == [1] * 5
    whole = schema(old)
    with closing(connect(old)) as connection:
        connection.execute("update agents set version = 7 where id = 2")
    forget(old, "0005_versions")
    with closing(hold(old)):
        migrate(old, resource("migrations"))
    # applied twice, it is the same, and nobody's version begins anew
    assert schema(old) == whole
    assert versions(old) == [1, 1, 7, 1, 7]


def test_a_half_applied_migration_is_completed(old: Path) -> None:
    before = contents(old)
    with closing(hold(old)):
        migrate(old, resource("migrations"))
    roll_back_from(old, "0005_versions")
    with closing(connect(old)) as connection:
        connection.execute("alter table tools add column version integer not null default 1")
        connection.execute("drop view agent_details")
    with closing(hold(old)):
        migrate(old, resource("migrations"))
    assert without_version(contents(old)) == before
    assert versions(old) == [1] * 5


def test_the_versions_are_rolled_back_and_the_rows_stay(old: Path) -> None:
    before, structure = contents(old), schema(old)
    for _ in range(2):
        with closing(hold(old)):
            migrate(old, resource("migrations"))
        with closing(connect(old)) as connection:
            connection.execute("update tools set version = 5")
        roll_back_from(old, "0005_versions")
        assert contents(old) == before
        assert [name for name, _ in schema(old)] == [name for name, _ in structure]
    with closing(hold(old)):
        migrate(old, resource("migrations"))
    assert versions(old) == [1] * 5


def test_the_database_knows_no_version_below_1(old: Path) -> None:
    with closing(hold(old)):
        migrate(old, resource("migrations"))
    with closing(connect(old)) as connection:
        for table in ("tools", "agents"):
            for version in (0, -1, None, "x", 1.5):
                with pytest.raises(sqlite3.IntegrityError, match="version"):
                    connection.execute(f"update {table} set version = ?", (version,))
    assert versions(old) == [1] * 5
