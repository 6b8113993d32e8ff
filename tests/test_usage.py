"""GET /usage: sums that are kept as runs are stored, by day, model and agent, and stay when the runs go."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from service.config import Config
from service.handlers import usage as handler
from service.paging import Listing, _sealed
from service.times import utc_now
from tests.conftest import KEY_A, KEY_B, Client, Serve
from tests.support.history import INSERT, row
from tests.support.http import JSON, make_agent, make_tool, places, refused, run
from tests.support.storage import execute, rows

SUMS = ("runs", "failures", "prompt_tokens", "completion_tokens", "total_tokens", "duration_ms")
# (day, model, agent, failed): the second agent's model was another one, and its name too
HISTORY = [
    ("2026-01-01", "gpt-4o", 1, False),
    ("2026-01-01", "gpt-4o", 1, True),
    ("2026-01-02", "gpt-4o", 1, False),
    ("2026-01-02", "gpt-3", 2, False),
    ("2026-01-04", "gpt-3", 2, True),
    ("2026-01-04", "gpt-4o", 2, False),
]


def summed(*numbers: int) -> JSON:
    """The sums of these runs of HISTORY."""
    prompt, completion = sum(10 + number for number in numbers), sum(numbers)
    failures = sum(HISTORY[number][3] for number in numbers)
    values = (len(numbers), failures, prompt, completion, prompt + completion, sum(100 + number for number in numbers))
    return dict(zip(SUMS, values, strict=True))


@pytest.fixture
async def used(client: Client, config: Config) -> Client:
    """Two agents of tenant a with a history, and one of tenant b's with another."""
    for name in ("one", "two"):
        await make_agent(client, name)
    await make_agent(client, "theirs", KEY_B)
    execute(config.database, INSERT, *[row(number, *each) for number, each in enumerate(HISTORY)])
    execute(config.database, INSERT, row(9, "2026-01-02", "gpt-4o", 3, False, "tenant_b"))
    return client


async def items(client: Client, query: str = "", key: dict[str, str] = KEY_A) -> list[JSON]:
    page = await client.json("GET", f"/usage{query}", key)
    assert page["total"] == len(page["items"])
    assert page["next"] is None
    found: list[JSON] = page["items"]
    return found


async def test_a_run_is_counted_with_what_it_took(serve: Serve, config: Config) -> None:
    client = await serve(replace(config, rate_limit=100))
    assert await items(client) == [dict.fromkeys(SUMS, 0)]
    assert await items(client, "?group_by=day") == []
    tools = [(await make_tool(client, f"chore {number}"))["id"] for number in range(9)]
    agent = await make_agent(client, tool_ids=tools)
    done = [await run(client, agent["id"]) for _ in range(3)]
    # it asks for more tools than a run may call
    done.append(await run(client, agent["id"], " and ".join(f"chore {number}" for number in range(9))))
    assert done[-1]["status"] == "failed"
    wanted = {name: sum(each["usage"][name] for each in done) for name in SUMS[2:5]}
    wanted |= {"runs": 4, "failures": 1, "duration_ms": sum(each["duration_ms"] for each in done)}
    assert await items(client) == [wanted]
    assert await items(client, "?group_by=model") == [{"model": "gpt-4o", **wanted}]
    assert await items(client, "?group_by=agent") == [{"agent_id": agent["id"], "agent_name": agent["name"], **wanted}]
    days = await items(client, "?group_by=day")
    assert {day["day"] for day in days} == {each["created_at"][:10] for each in done}
    assert sum(day["runs"] for day in days) == 4
    assert await items(client, key=KEY_B) == [dict.fromkeys(SUMS, 0)]


async def test_sums_are_told_in_all_and_by_day_model_and_agent(used: Client) -> None:
    assert await items(used) == [summed(0, 1, 2, 3, 4, 5)]
    assert await items(used, "?group_by=day") == [
        {"day": "2026-01-01", **summed(0, 1)},
        {"day": "2026-01-02", **summed(2, 3)},
        {"day": "2026-01-04", **summed(4, 5)},
    ]
    assert await items(used, "?group_by=model") == [
        {"model": "gpt-3", **summed(3, 4)},
        {"model": "gpt-4o", **summed(0, 1, 2, 5)},
    ]
    assert await items(used, "?group_by=agent") == [
        {"agent_id": 1, "agent_name": "one", **summed(0, 1, 2)},
        {"agent_id": 2, "agent_name": "two", **summed(3, 4, 5)},
    ]


@pytest.mark.parametrize(
    ("span", "numbers"),
    [
        ("from=2026-01-02", (2, 3, 4, 5)),
        ("to=2026-01-02", (0, 1, 2, 3)),
        ("from=2026-01-02&to=2026-01-02", (2, 3)),
        ("from=2026-01-03&to=2026-01-03", ()),
        ("from=0001-01-01&to=9999-12-31", (0, 1, 2, 3, 4, 5)),
    ],
)
async def test_a_span_is_of_whole_days_and_has_both_ends(used: Client, span: str, numbers: tuple[int, ...]) -> None:
    assert await items(used, f"?{span}") == [summed(*numbers)]
    for group in ("day", "model", "agent"):
        found = await items(used, f"?group_by={group}&{span}")
        assert {name: sum(each[name] for each in found) for name in SUMS} == summed(*numbers)


async def test_pages_of_each_group_are_followed_to_the_end(used: Client) -> None:
    for group in ("day", "model", "agent"):
        whole = await items(used, f"?group_by={group}")
        page = await used.json("GET", f"/usage?group_by={group}&limit=1")
        seen = list(page["items"])
        while page["next"]:
            assert page["total"] == len(whole)
            page = await used.json("GET", f"/usage?group_by={group}&limit=1&cursor={page['next']}")
            assert page["offset"] == len(seen)
            seen += page["items"]
        assert seen == whole
        assert (await used.json("GET", f"/usage?group_by={group}&offset=1&limit=1"))["items"] == whole[1:2]
    assert await used.json("GET", "/usage?limit=1&offset=1") == {
        "items": [],
        "total": 1,
        "limit": 1,
        "offset": 1,
        "next": None,
    }


async def test_a_long_model_has_a_cursor_too(used: Client, config: Config) -> None:
    long = "~" * 100
    execute(config.database, INSERT, *[row(0, "2026-01-01", model, 1, False) for model in (long, long[:-1])])
    page = await used.json("GET", "/usage?group_by=model&limit=3")
    assert [item["model"] for item in page["items"]] == ["gpt-3", "gpt-4o", long[:-1]]
    last = await used.json("GET", f"/usage?group_by=model&limit=1&cursor={page['next']}")
    assert [item["model"] for item in last["items"]] == [long]


async def test_a_cursor_serves_its_own_group_and_span_alone(used: Client) -> None:
    queries = [
        "",
        "group_by=day",
        "group_by=model",
        "group_by=agent",
        "group_by=day&from=2026-01-01",
        "group_by=day&to=2026-01-04",
    ]
    for query in queries[1:]:
        cursor = (await used.json("GET", f"/usage?{query}&limit=1"))["next"]
        for other in queries:
            if other != query:
                problem = await refused(used, 400, "GET", f"/usage?{other}{'&' if other else ''}cursor={cursor}")
                assert places(problem) == ["cursor"]
        assert places(await refused(used, 400, "GET", f"/usage?{query}&cursor={cursor}", KEY_B)) == ["cursor"]
        assert places(await refused(used, 400, "GET", f"/usage?{query}&offset=1&cursor={cursor}")) == ["offset"]
        for altered in (cursor[:-1], cursor[1:], f"{cursor}A", "A", cursor.swapcase()):
            assert places(await refused(used, 400, "GET", f"/usage?{query}&cursor={altered}")) == ["cursor"]


async def test_a_cursor_made_up_with_a_text_that_can_not_be_is_refused(used: Client) -> None:
    span = {"first": handler._FIRST_DAY, "last": handler._LAST_DAY}
    listing = Listing("/usage by day", "", "", span, start="", field="day")
    for last in ("\0", "\x7f", "é", "a b"):
        cursor = _sealed(last, 1, "tenant_a", listing)
        assert places(await refused(used, 400, "GET", f"/usage?group_by=day&cursor={cursor}")) == ["cursor"]


async def test_a_span_that_ends_before_it_begins_names_its_beginning(client: Client) -> None:
    problem = await refused(client, 400, "GET", "/usage?from=2026-01-02&to=2026-01-01")
    assert problem["errors"] == [{"parameter": "from", "detail": "Must not be later than `to`."}]
    wrong = await refused(client, 400, "GET", "/usage?from=2026-02-30&to=2026-01-01T00:00:00Z&group_by=tenant&from_=x")
    assert places(wrong) == ["from", "from_", "group_by", "to"]


async def test_an_agent_has_its_newest_name_and_keeps_the_last_one_when_it_goes(used: Client, config: Config) -> None:
    await used.json("PATCH", "/agents/1", json={"name": "renamed"})
    await used.json("DELETE", "/agents/2")
    execute(config.database, "delete from runs where agent_id = 2")
    named = [(item["agent_id"], item["agent_name"]) for item in await items(used, "?group_by=agent")]
    assert named == [(1, "renamed"), (2, "agent as of 2026-01-04")]


async def test_runs_that_are_deleted_stay_counted_as_used(used: Client, config: Config) -> None:
    before = [await items(used, f"?group_by={group}") for group in ("day", "model", "agent")]
    execute(config.database, "delete from runs")
    assert (await used.json("GET", "/runs"))["total"] == 0
    assert [await items(used, f"?group_by={group}") for group in ("day", "model", "agent")] == before


async def test_runs_stored_together_are_counted_like_those_stored_one_by_one(used: Client, config: Config) -> None:
    """A move stores many in one statement."""
    kept = rows(config.database, "select * from usage where tenant_id = 'tenant_a' order by 2, 3, 4")
    columns = INSERT.partition("(")[2].partition(")")[0]
    execute(
        config.database, f"insert into runs ({columns}) select {columns} from runs where tenant_id = 'tenant_a' order by id"
    )
    doubled = [(*each[:5], *(2 * number for number in each[5:])) for each in kept]
    assert rows(config.database, "select * from usage where tenant_id = 'tenant_a' order by 2, 3, 4") == doubled
    assert (await used.json("GET", "/runs"))["total"] == 2 * len(HISTORY)
    # and a statement that stores none counts none
    execute(config.database, f"insert into runs ({columns}) select {columns} from runs where id < 0")
    assert rows(config.database, "select * from usage where tenant_id = 'tenant_a' order by 2, 3, 4") == doubled


def test_what_was_stored_before_the_migration_is_counted_by_it(database: Path | str, engine: str) -> None:
    """And counted once: applied again, it leaves what is there, which is more than the runs that are left."""
    folder = Path("migrations") if engine == "sqlite" else Path("migrations/postgresql")
    now = utc_now()
    execute(database, "insert into tenants (id, created_at) values (?, ?)", ("tenant_a", now))
    execute(database, "insert into agent_ids (tenant_id, id) values (?, ?)", ("tenant_a", 1), ("tenant_a", 2))
    execute(database, INSERT, *[row(number, *each) for number, each in enumerate(HISTORY)])
    kept = rows(database, "select * from usage order by 1, 2, 3, 4")
    assert len(kept) == 5
    execute(database, "delete from usage")
    up = (folder / ("0009_usage.sql" if engine == "sqlite" else "0006_usage.sql")).read_text(encoding="utf-8")
    for _ in range(2):
        script(database, up)
        assert rows(database, "select * from usage order by 1, 2, 3, 4") == kept
        execute(database, "delete from runs where id < 4")


def script(database: Path | str, text: str) -> None:
    """Runs several statements, as a migration does."""
    if isinstance(database, str):
        execute(database, text)
        return
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript(text)
