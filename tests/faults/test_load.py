"""Many clients at once: each reads what it wrote, none suffers for another, and what is counted is what is there."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import ClientSession, TCPConnector

from service.app import make_app
from service.auth import Authenticator, key_hash, key_prefix, new_key
from service.config import Config
from service.limiter import FixedWindow
from service.resources import resource
from service.state import STATE
from service.storage.engines import engine_of
from service.storage.queries import load_queries
from service.storage.scope import Scope
from service.storage.units import Unit, ask
from service.times import utc_now
from tests.conftest import KEY_A, Serve
from tests.support.http import AGENT, TOOL
from tests.support.process import Service
from tests.support.storage import Database, engine_in, execute, held_writes, made, rows, traced

CLIENTS = 64
TASK = {"task": "Say hello", "model": "gpt-4o"}
# more tools than a run may call, each of which it asks for
LONG_TASK = {"task": " and ".join(f"chore {number}" for number in range(9)), "model": "gpt-4o"}
NewTenant = Callable[[Database], dict[str, str]]


def assert_counted(database: Database) -> None:
    """The totals that are kept are what is there."""
    counted = (
        "select tenant_id, agent_id, status, model, count(*) from runs group by 1, 2, 3, 4 "
        "union all select tenant_id, 0, status, model, count(*) from runs group by 1, 3, 4"
    )
    kept = "select tenant_id, agent_id, status, model, runs from run_counts"
    assert sorted(rows(database, kept)) == sorted(rows(database, counted))
    used = (
        "select tenant_id, substr(created_at, 1, 10), agent_id, model, count(*), sum(prompt_tokens), "
        "sum(completion_tokens), sum(duration_ms) from runs group by 1, 2, 3, 4"
    )
    sums = "select tenant_id, day, agent_id, model, runs, prompt_tokens, completion_tokens, duration_ms from usage"
    assert sorted(rows(database, sums)) == sorted(rows(database, used))


def assert_sound(database: Database) -> None:
    assert_counted(database)
    if isinstance(database, Path):
        assert rows(database, "pragma integrity_check") == [("ok",)]
        assert rows(database, "pragma foreign_key_check") == []


class Crowd:
    """So many clients of one tenant, with a connection each."""

    def __init__(self, service: Service, session: ClientSession, key: dict[str, str]) -> None:
        self.service = service
        self._session = session
        self._key = key

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """The status and the body of an answer."""
        async with self._session.request(method, self.service.origin + path, headers=self._key, json=body) as response:
            text = await response.read()
            return response.status, json.loads(text) if text else None

    async def get(self, path: str) -> Any:
        status, body = await self.call("GET", path)
        assert status == 200, body
        return body

    async def make(self, path: str, body: Any) -> Any:
        status, made = await self.call("POST", path, body)
        assert status in (200, 201), made
        return made

    async def at_once(self, calls: list[tuple[str, str, Any]]) -> list[tuple[int, Any]]:
        """Sends requests that all wait for the writer together, and gives their answers."""
        with held_writes(self.service.database):
            tasks = [asyncio.create_task(self.call(*each)) for each in calls]
            # what is read meanwhile shows that the server has got to what was sent before
            for _ in range(20):
                await self.get("/whoami")
                await self.get("/tools?limit=1")
        return await asyncio.gather(*tasks)

    async def all_of(self, path: str) -> tuple[list[Any], set[int]]:
        """All items of a list, page by page, and the totals that the pages said."""
        items: list[Any] = []
        totals: set[int] = set()
        more: str | None = ""
        joint = "&" if "?" in path else "?"
        while more is not None:
            page = await self.get(f"{path}{joint}limit=100{more and f'&cursor={more}'}")
            items += page["items"]
            totals.add(page["total"])
            more = page["next"]
        return items, totals


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Service]]:
    """Gives the server of an engine, which all tests here share."""
    with ExitStack() as started:

        @cache
        def start(engine: str) -> Service:
            database = made(engine, tmp_path_factory.mktemp("load") / "load.db")
            started.callback(assert_sound, database)
            return started.enter_context(Service(database, "--rate-limit", "1000000"))

        yield start


@pytest.fixture
def service(engine: str, shared: Callable[[str], Service]) -> Service:
    return shared(engine)


@pytest.fixture
async def crowds(service: Service, new_tenant: NewTenant) -> AsyncIterator[list[Crowd]]:
    """Two tenants of the test's own."""
    async with ClientSession(connector=TCPConnector(limit=CLIENTS + 1)) as session:
        yield [Crowd(service, session, new_tenant(service.database)) for _ in range(2)]


@pytest.fixture
def crowd(crowds: list[Crowd]) -> Crowd:
    return crowds[0]


async def test_each_client_reads_what_it_wrote(crowd: Crowd) -> None:
    async def listed(path: str) -> list[Any]:
        items, _ = await crowd.all_of(path)
        return items

    async def live(number: int) -> None:
        name = f"thing {number}"
        tool = await crowd.make("/tools", {**TOOL, "name": name})
        assert await crowd.get(f"/tools/{tool['id']}") == tool
        assert tool in await listed("/tools")
        agent = await crowd.make("/agents", {**AGENT, "name": name, "tool_ids": [tool["id"]]})
        assert await crowd.get(f"/agents/{agent['id']}") == agent
        assert agent in await listed("/agents")
        done = await crowd.make(f"/agents/{agent['id']}/run", {**TASK, "task": name})
        assert await crowd.get(f"/runs/{done['id']}") == done
        assert done in await listed("/runs")
        assert await crowd.get(f"/agents/{agent['id']}/runs?limit=1") == {
            "items": [done],
            "total": 1,
            "limit": 1,
            "offset": 0,
            "next": None,
        }
        status, changed = await crowd.call("PUT", f"/agents/{agent['id']}", {**AGENT, "name": f"new {name}"})
        assert status == 200
        assert await crowd.get(f"/agents/{agent['id']}") == changed
        assert [each["id"] for each in await listed(f"/agents?name=new%20thing%20{number}")] == [agent["id"]]
        assert await listed(f"/agents?name=thing%20{number}") == []
        assert (await crowd.call("DELETE", f"/tools/{tool['id']}"))[0] == 204
        assert (await crowd.call("GET", f"/tools/{tool['id']}"))[0] == 404
        assert tool["id"] not in [each["id"] for each in await listed("/tools")]

    await asyncio.gather(*map(live, range(CLIENTS)))
    for path, count in (("/tools", 0), ("/agents", CLIENTS), ("/runs", CLIENTS)):
        items, totals = await crowd.all_of(path)
        assert (len(items), totals) == (count, {count})


async def test_a_request_that_fails_takes_none_with_it_that_is_committed_together_with_it(crowd: Crowd) -> None:
    taken = await crowd.make("/tools", {**TOOL, "name": "taken"})
    agent = await crowd.make("/agents", {**AGENT, "name": "taken", "tool_ids": [taken["id"]]})
    same_name = [
        ("POST", "/tools", {**TOOL, "name": "taken" if number % 4 == 3 else f"tool {number}"}) for number in range(CLIENTS)
    ]
    for number, (status, body) in enumerate(await crowd.at_once(same_name)):
        assert status == (409 if number % 4 == 3 else 201), body
    # these fail after some of their writes, and at different ones
    failing: list[tuple[int, tuple[str, str, Any]]] = [
        (400, ("POST", "/agents", {**AGENT, "name": "lost", "tool_ids": [taken["id"], 99_999]})),
        (409, ("POST", "/agents", {**AGENT, "name": "taken"})),
        (400, ("PATCH", f"/agents/{agent['id']}", {"name": "lost", "role": "lost", "tool_ids": [99_999]})),
        (404, ("DELETE", "/tools/99999", None)),
    ]
    calls, expected = [], []
    for number in range(CLIENTS):
        status, call = failing[number // 4 % 4]
        good = ("POST", "/agents", {**AGENT, "name": f"agent {number}", "tool_ids": [taken["id"]]})
        calls.append(call if number % 4 == 3 else good)
        expected.append(status if number % 4 == 3 else 201)
    assert [status for status, _ in await crowd.at_once(calls)] == expected
    tools, _ = await crowd.all_of("/tools")
    assert sorted(tool["name"] for tool in tools) == sorted({body["name"] for _, _, body in same_name} | {"taken"})
    agents, _ = await crowd.all_of("/agents")
    good_names = [f"agent {number}" for number in range(CLIENTS) if number % 4 != 3]
    assert sorted(each["name"] for each in agents) == sorted(["taken", *good_names])
    assert all(each["tool_ids"] == [taken["id"]] for each in agents)
    assert agent in agents
    ids = "select count(*) from agent_ids where tenant_id = (select tenant_id from tools where id = ?)"
    assert rows(crowd.service.database, ids, taken["id"]) == [(len(agents),)]


async def test_totals_are_what_is_there_after_runs_and_deletes_at_once(crowds: list[Crowd]) -> None:
    agents: list[list[int]] = []
    tools: list[list[int]] = []
    for crowd in crowds:
        chores = [await crowd.make("/tools", {**TOOL, "name": f"chore {number}"}) for number in range(9)]
        tools.append([chore["id"] for chore in chores])
        made = [
            await crowd.make("/agents", {**AGENT, "name": f"agent {number}", "tool_ids": tools[-1] if number % 2 else []})
            for number in range(8)
        ]
        agents.append([agent["id"] for agent in made])
    answered: Counter[tuple[int, str]] = Counter()

    async def live(number: int) -> None:
        tenant = int(number % 4 == 0)
        crowd = crowds[tenant]
        for at in range(6):
            agent_id = agents[tenant][(number + at) % 8]
            if number in (20, 21) and at == 3:
                assert (await crowd.call("DELETE", f"/agents/{agent_id}"))[0] == 204
            elif number == 22 and at == 4:
                assert (await crowd.call("DELETE", f"/tools/{tools[tenant][0]}"))[0] == 204
            else:
                status, done = await crowd.call("POST", f"/agents/{agent_id}/run", LONG_TASK)
                assert status in (200, 404), done
                if status == 200:
                    answered[agent_id, done["status"]] += 1

    await asyncio.gather(*map(live, range(CLIENTS)))
    assert {status for _, status in answered} == {"completed", "failed"}
    for crowd, own_agents in zip(crowds, agents, strict=True):
        own = {kind: count for kind, count in answered.items() if kind[0] in own_agents}
        filters: dict[str, int] = {"": sum(own.values()), "?model=gpt-4o": sum(own.values())}
        for wanted in ("completed", "failed"):
            filters[f"?status={wanted}"] = sum(count for (_, status), count in own.items() if status == wanted)
        for agent_id in own_agents:
            filters[f"?agent_id={agent_id}"] = sum(count for (agent, _), count in own.items() if agent == agent_id)
        for query, count in filters.items():
            items, totals = await crowd.all_of(f"/runs{query}")
            assert (len(items), totals) == (count, {count}), query
        for path in ("/tools", "/agents"):
            items, totals = await crowd.all_of(path)
            assert totals == {len(items)}
    assert_counted(crowds[0].service.database)


def many(agents: int) -> Unit[None]:
    """So many agents of five tools each, and a run of each."""
    now = utc_now()
    for number in range(5):
        yield ask("create_tool", name=f"tool {number}", description="d", now=now)
    for number in range(agents):
        agent_id = yield ask("create_agent_id")
        texts = {"name": f"agent {number}", "role": "r", "description": "d"}
        yield ask("create_agent", agent_id=agent_id, **texts, now=now)
        yield ask("add_agent_tools", agent_id=agent_id, tool_ids="[1, 2, 3, 4, 5]")
        yield ask(
            "create_run",
            agent_id=agent_id,
            agent_name="n",
            task="t",
            model="gpt-4o",
            status="completed",
            prompt="p",
            response="r",
            error=None,
            steps="[]",
            prompt_tokens=1,
            completion_tokens=1,
            created_at=now,
            duration_ms=0,
        )


async def test_a_list_is_a_fixed_number_of_statements_whatever_it_holds(serve: Serve, engine: str, tmp_path: Path) -> None:
    paths = {
        "/agents?limit=100": 100,
        "/agents?limit=100&offset=50": 100,
        "/agents?limit=100&tool_name=tool%204": 100,
        "/tools?agent_name=agent%201": 5,
        "/runs?limit=100": 100,
        "/runs?limit=100&status=completed": 100,
    }

    async def statements(agents: int) -> dict[str, list[str]]:
        app = make_app(Config(database=made(engine, tmp_path / f"{agents}_agents.db")))
        client = await serve(app=app)
        # whose key it is, is asked once
        app[STATE].authenticator._memory = 3_600
        await client.json("GET", "/whoami")
        await Scope(engine_in(app), "tenant_a", None).write(many(agents))
        seen: list[str] = []
        found = {}
        async with traced(app, seen.append):
            for path, most in paths.items():
                seen.clear()
                page = await client.json("GET", path)
                assert len(page["items"]) == min(most, max(0, page["total"] - page["offset"]))
                # a connection that is new says who it is
                found[path] = [statement.split(None, 1)[0] for statement in seen if not statement.startswith("prepare")]
        return found

    few, lots = await statements(2), await statements(120)
    assert few == lots
    # the total and the page, both as of one moment; on PostgreSQL in one query, which says for which tenant it is
    statements_of_one = ("begin", "select", "select", "rollback") if engine == "sqlite" else ("with",)
    assert {tuple(each) for each in lots.values()} == {statements_of_one}


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_the_limiter_remembers_the_tenants_of_one_window_whatever_it_has_seen() -> None:
    clock = Clock()
    limiter = FixedWindow(5, 60, clock)
    largest = 0
    for number in range(10_000):
        limiter.check(f"tenant {number}")
        if number % 2:
            limiter.admit(f"tenant {number}")
        limiter.headers(f"tenant {number}")
        largest = max(largest, len(limiter._windows))
        clock.now += 1
    assert largest == 30
    clock.now += 60
    limiter.check("the last one")
    assert len(limiter._windows) == 0


async def test_the_key_cache_remembers_the_keys_of_one_moment_whatever_it_has_seen(
    config: Config, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("service.auth.time", SimpleNamespace(monotonic=clock))
    keys, now = [new_key() for _ in range(2_000)], utc_now()
    names = [f"t{at}" for at in range(2_000)]
    execute(config.database, "insert into tenants (id, created_at) values (?, ?)", *((name, now) for name in names))
    execute(
        config.database,
        "insert into api_keys (tenant_id, prefix, hash, created_at) values (?, ?, ?, ?)",
        *((name, key_prefix(key), key_hash(key), now) for name, key in zip(names, keys, strict=True)),
    )
    database = await engine_of(config.database).open(load_queries(resource("sql"), engine))
    authenticator = Authenticator(database, demo=False, memory=1.0, most=1_000)
    sizes = set()
    for start in range(0, 2_000, 100):
        # a hundred keys, and ten more that nobody was given, five times a second
        asked = keys[start : start + 100] + [new_key() for _ in range(10)]
        scopes = await asyncio.gather(*map(authenticator.caller, asked))
        owners = [scope and scope.tenant_id for scope in scopes]
        assert owners == [f"t{at}" for at in range(start, start + 100)] + [None] * 10
        sizes.add(len(authenticator._found))
        clock.now += 0.2
    # those of the last second
    assert max(sizes) == 500
    clock.now += 1.0
    assert await authenticator.caller(keys[0]) is not None
    assert len(authenticator._found) == 1
    # all at one moment, and more of them than may be remembered
    for start in range(0, 2_000, 100):
        await asyncio.gather(*map(authenticator.caller, keys[start : start + 100]))
    assert len(authenticator._found) == 1_000
    await database.close()


async def test_large_pages_at_once_take_the_memory_of_a_few(database: Database) -> None:
    with Service(database, "--log-level", "error", "--rate-limit", "1000") as service:
        status = Path(f"/proc/{service.process.pid}/status")

        def peak() -> int:
            """The most that the process has ever held, in MB."""
            return int(status.read_text().partition("VmHWM:")[2].split()[0]) // 1024

        async with ClientSession(service.origin, headers=KEY_A) as session:
            await session.post("/agents", json=AGENT)
            runs = [session.post("/agents/1/run", json={"task": "世" * 20_000, "model": "gpt-4o"}) for _ in range(60)]
            assert {(await each).status for each in runs} == {200}
            before = peak()

            async def read() -> int:
                async with session.get("/runs?limit=100") as response:
                    return len(await response.read())

            sizes = await asyncio.gather(*(read() for _ in range(40)))
        assert len(set(sizes)) == 1
        assert sizes[0] > 7_000_000
        # all at once, they take a gigabyte
        assert peak() - before < 450, (before, peak())


async def test_ten_thousand_callers_leave_nothing_behind(serve: Serve, config: Config) -> None:
    """What only looks like a key, and tenants that run nothing, are not remembered at all."""
    app = make_app(replace(config, rate_limit=5))
    client = await serve(app=app)
    state = app[STATE]
    await asyncio.gather(*(state.authenticator.caller(new_key()) for _ in range(1_000)))
    for number in range(10_000):
        assert await state.authenticator.caller(f"mk_{number}") is None
        await state.limiter.quota(f"tenant {number}").check()
    assert len(state.authenticator._found) == 0
    assert sum(len(each._windows) for each in state.limiter._windows.values()) == 0
    await client.json("GET", "/agents")
