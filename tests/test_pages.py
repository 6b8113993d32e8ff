"""Lists in pages: limit, offset, the cursor that follows a list, and parameters that are refused."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from service.config import Config
from service.paging import Listing, _sealed
from tests.conftest import KEY_A, KEY_B, Client, Serve
from tests.support.http import JSON, make_agent, make_tool, places, refused, run

LISTS = ("/tools", "/agents", "/runs", "/agents/{}/runs")


@pytest.fixture
async def roomy(serve: Serve, config: Config) -> Client:
    """A service whose limit on runs no test here reaches."""
    return await serve(replace(config, rate_limit=1000))


async def fill(client: Client, number: int, key: dict[str, str] = KEY_A) -> list[str]:
    """Makes so many items for each list, and gives the paths of the lists."""
    await asyncio.gather(*(make_tool(client, f"tool {each}", key) for each in range(number)))
    agents = [await make_agent(client, f"agent {each}", key) for each in range(number)]
    for _ in range(number):
        await run(client, agents[0]["id"], key=key)
    return [path.format(agents[0]["id"]) for path in LISTS]


async def follow(
    client: Client, path: str, limit: int, meanwhile: Callable[[JSON], Awaitable[None]] | None = None
) -> list[JSON]:
    """The pages of a list from the first to the last, with something done between each two."""
    joint = "&" if "?" in path else "?"
    pages = [await client.json("GET", f"{path}{joint}limit={limit}")]
    while pages[-1]["next"] is not None:
        if meanwhile:
            await meanwhile(pages[-1])
        pages.append(await client.json("GET", f"{path}{joint}limit={limit}&cursor={pages[-1]['next']}"))
    return pages


def ids(*pages: JSON) -> list[int]:
    return [item["id"] for page in pages for item in page["items"]]


async def test_limit_and_offset_choose_a_part_of_the_list(roomy: Client) -> None:
    for path in await fill(roomy, 7):
        whole = await roomy.json("GET", path)
        assert (whole["total"], whole["limit"], whole["offset"], whole["next"], len(whole["items"])) == (7, 20, 0, None, 7)
        for limit, offset in ((1, 0), (3, 0), (3, 2), (3, 4), (3, 6), (7, 0), (100, 0), (100, 7), (1, 2**53 - 1)):
            page = await roomy.json("GET", f"{path}?limit={limit}&offset={offset}")
            assert page["items"] == whole["items"][offset : offset + limit]
            assert (page["total"], page["limit"], page["offset"]) == (7, limit, offset)
            assert (page["next"] is None) == (offset + limit >= 7)


async def test_an_empty_list_is_a_page_too(client: Client) -> None:
    agent = await make_agent(client)
    for path in ("/tools", "/runs", f"/agents/{agent['id']}/runs", "/agents?name=nobody"):
        assert await client.json("GET", path) == {"items": [], "total": 0, "limit": 20, "offset": 0, "next": None}


async def test_following_next_visits_every_item_once(roomy: Client) -> None:
    for path in await fill(roomy, 7):
        whole = ids(await roomy.json("GET", path))
        for limit in (1, 2, 6, 7):
            pages = await follow(roomy, path, limit)
            assert ids(*pages) == whole
            assert [page["offset"] for page in pages] == list(range(0, 7, limit))
            assert {(page["total"], page["limit"]) for page in pages} == {(7, limit)}
        from_third = await roomy.json("GET", f"{path}?limit=2&offset=2")
        after = await roomy.json("GET", f"{path}?limit=100&cursor={from_third['next']}")
        assert ids(from_third, after) == whole[2:]
        assert after["offset"] == 4


async def test_following_next_keeps_to_its_filters(roomy: Client) -> None:
    tools = [await make_tool(roomy, f"tool {number}") for number in range(6)]
    one = await make_agent(roomy, "one", tool_ids=[tool["id"] for tool in tools[::2]])
    two = await make_agent(roomy, "two", tool_ids=[tools[0]["id"]])
    runs = [await run(roomy, agent["id"]) for agent in (one, two, one, two, one)]
    for path, expected in (
        ("/tools?agent_name=one", [tool["id"] for tool in tools[::2]]),
        ("/agents?tool_name=tool%200", [one["id"], two["id"]]),
        (f"/runs?agent_id={one['id']}", [done["id"] for done in runs[::-2]]),
        (f"/agents/{two['id']}/runs", [runs[3]["id"], runs[1]["id"]]),
        (f"/runs?created_after={runs[0]['created_at']}&status=completed", [done["id"] for done in runs[:0:-1]]),
    ):
        pages = await follow(roomy, path, 1)
        assert ids(*pages) == expected
        assert {page["total"] for page in pages} == {len(expected)}


@pytest.mark.parametrize(("path", "make"), [("/tools", make_tool), ("/agents", make_agent)])
async def test_a_list_that_grows_and_shrinks_meanwhile_is_followed_without_gap_or_double(
    client: Client, path: str, make: Callable[[Client, str], Awaitable[JSON]]
) -> None:
    first = [(await make(client, f"first {number}"))["id"] for number in range(12)]
    unseen = [first[8], first[10]]
    doomed = list(unseen)

    async def change(page: JSON) -> None:
        """Adds an item, and takes away the one that the cursor stands on, one seen long ago and one not seen yet."""
        if page["offset"] > 6:
            return
        await make(client, f"later {page['offset']}")
        gone = [page["items"][-1]["id"], *([first[0]] if page["offset"] == 3 else []), *([doomed.pop()] if doomed else [])]
        for each in gone:
            await client.json("DELETE", f"{path}/{each}")

    pages = await follow(client, path, 3, change)
    seen = ids(*pages)
    assert seen == sorted(set(seen))
    assert [each for each in seen if each in first] == [each for each in first if each not in unseen]
    assert {f"later {offset}" for offset in (0, 3, 6)} <= {item["name"] for page in pages for item in page["items"]}


async def test_a_history_that_grows_meanwhile_is_followed_without_gap_or_double(roomy: Client) -> None:
    agent, other = await make_agent(roomy), await make_agent(roomy, "other")
    for path in ("/runs", f"/agents/{agent['id']}/runs", f"/runs?agent_id={agent['id']}"):
        for _ in range(5):
            await run(roomy, agent["id"])
        whole = ids(await roomy.json("GET", f"{path}{'&' if '?' in path else '?'}limit=100"))

        async def change(page: JSON) -> None:
            await run(roomy, agent["id"])
            await run(roomy, other["id"])

        pages = await follow(roomy, path, 2, change)
        assert ids(*pages) == whole
        assert pages[-1]["total"] > pages[0]["total"]


async def test_a_cursor_that_was_altered_is_refused(roomy: Client) -> None:
    for path in await fill(roomy, 2):
        cursor = (await roomy.json("GET", f"{path}?limit=1"))["next"]
        assert ids(await roomy.json("GET", f"{path}?cursor={cursor}"))
        altered = [
            cursor[:at] + other + cursor[at + 1 :]
            for at, letter in enumerate(cursor)
            for other in (chr(ord(letter) ^ 1), "A" if letter != "A" else "B", "_" if letter != "_" else "-", "", "~", "%00")
        ]
        altered += [f"{cursor}A", f"A{cursor}", f"{cursor}=", f"{cursor}%20", f"{cursor}%0A", cursor * 2, cursor[::-1]]
        altered += ["A", "AAAA", "null", "0", "1", "x" * 101, "%F0%9F%98%80"]
        answers = await asyncio.gather(
            *(refused(roomy, 400, "GET", f"{path}?cursor={each}") for each in altered if each != cursor)
        )
        assert all(places(problem) == ["cursor"] for problem in answers)


async def test_a_cursor_made_up_with_an_id_that_cannot_be_is_refused(client: Client) -> None:
    listing = Listing("/tools", "list_tools", "count_tools", {"name": None})
    for last, passed in ((2**64 - 1, 1), (2**63, 1), (2**53, 1), (1, 2**64 - 1), (1, 2**53)):
        cursor = _sealed(last, passed, "tenant_a", listing)
        assert places(await refused(client, 400, "GET", f"/tools?cursor={cursor}")) == ["cursor"], (last, passed)


async def test_a_cursor_serves_no_other_list(roomy: Client) -> None:
    paths = await fill(roomy, 3)
    await fill(roomy, 3, KEY_B)
    agents = (await roomy.json("GET", "/agents"))["items"]
    for _ in range(2):
        await run(roomy, agents[1]["id"])
    paths += [
        "/tools?name=tool%200",
        "/tools?agent_name=agent%200",
        "/agents?name=agent%200",
        "/agents?tool_name=tool%200",
        f"/agents/{agents[1]['id']}/runs",
        f"/runs?agent_id={agents[0]['id']}",
        f"/runs?agent_id={agents[1]['id']}",
        "/runs?status=completed",
        "/runs?status=failed",
        "/runs?model=gpt-4o",
        "/runs?model=gpt-5",
        "/runs?created_after=2000-01-01T00:00:00Z",
        "/runs?created_before=2100-01-01T00:00:00Z",
        "/runs?created_after=2000-01-01T00:00:01Z",
        "/runs?status=completed&model=gpt-4o",
    ]

    def with_cursor(path: str, cursor: str) -> str:
        return f"{path}{'&' if '?' in path else '?'}limit=1&cursor={cursor}"

    for path in paths:
        page = await roomy.json("GET", f"{path}{'&' if '?' in path else '?'}limit=1")
        if page["next"] is None:
            continue
        assert len(ids(await roomy.json("GET", with_cursor(path, page["next"])))) == 1
        others = [(other, KEY_A) for other in paths if other != path]
        others += [(path, KEY_B)] if not path.startswith("/agents/") else []
        problems = await asyncio.gather(
            *(refused(roomy, 400, "GET", with_cursor(other, page["next"]), key) for other, key in others)
        )
        assert all(places(problem) == ["cursor"] for problem in problems)


async def test_a_cursor_and_an_offset_together_are_refused(roomy: Client) -> None:
    for path in await fill(roomy, 2):
        cursor = (await roomy.json("GET", f"{path}?limit=1"))["next"]
        for offset in (0, 1):
            assert places(await refused(roomy, 400, "GET", f"{path}?offset={offset}&cursor={cursor}")) == ["offset"]


async def test_numbers_that_are_not_plain_or_out_of_bounds_are_refused(roomy: Client) -> None:
    odd = ("", "a", "1_0", "1.0", "1e1", "0x1", "%201", "1%20", "1%0A", "+1", "%2B1", "01", "１", "٣", "--1", "1,2", "null")
    bounds = {"limit": ("0", "101", "-1", str(2**64)), "offset": ("-1", str(2**53), str(2**64), "9" * 5000)}
    for path in await fill(roomy, 1):
        for name, outside in bounds.items():
            queries = [f"{name}={value}" for value in (*odd, *outside)]
            queries += [f"{name}=1&{name}=1", f"{name}[]=1&{name}=1"]
            problems = await asyncio.gather(*(refused(roomy, 400, "GET", f"{path}?{query}") for query in queries))
            for query, problem in zip(queries, problems, strict=True):
                assert name in places(problem) or name + "[]" in places(problem), query
    for path in ("/tools/{}", "/agents/{}", "/runs/{}", "/agents/{}/runs"):
        for value in (*odd[1:], "0", "-1", str(2**53), "9" * 5000, "1;", "%00", "%FF", "1%2F", "%2531"):
            response = await roomy.get(path.format(value), headers=KEY_A)
            assert response.status in (400, 404), value


async def test_every_refused_parameter_is_named(client: Client) -> None:
    for path, wrong in {
        "/tools?limit=0&offset=-1&cursor=&name=&agent_name=%00&bogus=1": [
            "agent_name",
            "bogus",
            "cursor",
            "limit",
            "name",
            "offset",
        ],
        "/agents?limit=ten&limit=10&tool_name=%20&Name=x&NAME=y": ["NAME", "Name", "limit", "tool_name"],
        "/runs?status=&model=&agent_id=&created_after=&created_before=": [
            "agent_id",
            "created_after",
            "created_before",
            "model",
            "status",
        ],
        "/agents/abc/runs?status=completed&limit=x": ["agent_id", "limit", "status"],
        f"/tools?name={'n' * 101}&agent_name={'%F0%9F%98%80' * 101}": ["agent_name", "name"],
        "/tools?name=a&name=a&name=a": ["name"],
        "/tools?name": ["name"],
        "/tools?=x": [""],
        "/tools?name=%ED%A0%80": [],
        "/tools?%FF=1": [],
    }.items():
        problem = await refused(client, 400, "GET", path)
        assert (places(problem) if "errors" in problem else []) == wrong, path


async def test_a_parameter_that_is_not_known_is_refused_everywhere(roomy: Client) -> None:
    await fill(roomy, 1)
    for method, path, body in (
        ("GET", "/", None),
        ("GET", "/health", None),
        ("GET", "/ready", None),
        ("GET", "/whoami", None),
        ("GET", "/models", None),
        ("GET", "/tools/1", None),
        ("GET", "/agents/1", None),
        ("GET", "/runs/1", None),
        ("HEAD", "/tools", None),
        ("POST", "/tools", {"name": "new", "description": "New"}),
        ("PUT", "/tools/1", {"name": "new", "description": "New"}),
        ("PATCH", "/tools/1", {}),
        ("DELETE", "/tools/1", None),
        ("POST", "/agents/1/run", {"task": "Say hello", "model": "gpt-4o"}),
    ):
        for query in ("bogus=1", "bogus", "if-unused=true", "X-API-Key=key_tenant_a"):
            response = await roomy.request(method, f"{path}?{query}", headers=KEY_A, json=body)
            assert response.status == 400, f"{method} {path}?{query}"
    for path in ("/tools", "/agents", "/runs"):
        assert (await roomy.json("GET", path))["total"] == 1


async def test_total_counts_what_matches_whatever_part_is_shown(roomy: Client) -> None:
    paths = await fill(roomy, 3)
    await fill(roomy, 2, KEY_B)
    for path in paths:
        for query in ("limit=1", "offset=2", "offset=50", "limit=1&offset=1"):
            assert (await roomy.json("GET", f"{path}?{query}"))["total"] == 3
    for path in ("/tools?name=tool%201", "/agents?name=agent%201"):
        assert (await roomy.json("GET", f"{path}&offset=5"))["total"] == 1
    assert (await roomy.json("GET", "/tools", KEY_B))["total"] == 2
