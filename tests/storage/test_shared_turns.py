"""What tenants share on PostgreSQL: a round trip and a transaction, where each has little to ask; never what goes wrong."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import asyncpg
import psycopg
import pytest

from service.resources import resource
from service.storage.postgresql import PostgresqlDatabase
from service.storage.postgresql_lanes import Job
from service.storage.postgresql_reading import Sizes
from service.storage.queries import load_queries
from service.storage.scope import Scope, Unscoped
from service.storage.units import ForeignKeyViolation, Unit, ask, ask_last, ask_together
from service.times import utc_now
from tests.conftest import KEY_A, Serve
from tests.support import postgresql
from tests.support.http import make_agent
from tests.support.storage import engine_in, rows, watched_turns

pytestmark = pytest.mark.skipif(postgresql.server() is None, reason=postgresql.HOW_TO_RUN)

NAMES = ("a", "b", "c")
# get_tool, which fails for the tool number 5
FAILS_FOR_5 = "get_tool but not number 5"


@pytest.fixture
def database() -> str:
    return postgresql.emptied()


@pytest.fixture
async def storage(database: str) -> AsyncIterator[PostgresqlDatabase]:
    queries = dict(load_queries(resource("sql"), "postgresql"))
    get_tool = queries["get_tool"]
    failing = f"{get_tool.sql} and 1 / (cast(:tool_id as bigint) - 5) <= 1"
    opened = await PostgresqlDatabase.open(
        database, queries | {FAILS_FOR_5: replace(get_tool, name=FAILS_FOR_5, sql=failing)}
    )
    yield opened
    await opened.close()


@pytest.fixture
async def tenants(storage: PostgresqlDatabase) -> list[Scope]:
    """Three tenants, each with a tool and an agent: 1, 2, 3."""

    def unit() -> Unit[None]:
        for name in NAMES:
            yield ask("create_tenant", id=name, now=utc_now())

    await Unscoped(storage).write(unit())
    scopes = [Scope(storage, name, None) for name in NAMES]
    for scope in scopes:
        # known to have short rows
        storage._sizes.note(scope.tenant_id, 1)
        await scope.one("create_tool", name=f"{scope.tenant_id}'s", description="d", now=utc_now())
        await scope.value("create_agent_id")
    return scopes


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[list[str | None]]:
    return watched_turns(monkeypatch.setattr)


@pytest.fixture
def other(database: str) -> Iterator["psycopg.Connection[Any]"]:
    """Somebody else at the same database; what he holds he lets go of with `rollback`."""
    with psycopg.connect(database) as connection:
        yield connection


def run(agent_id: int, task: str = "t", prompt: str = "p") -> Unit[Any]:
    texts = {"agent_name": "n", "task": task, "model": "gpt-4o", "status": "completed", "prompt": prompt, "response": "r"}
    rest = {"error": None, "steps": "[]", "prompt_tokens": 1, "completion_tokens": 1, "created_at": utc_now()}
    return (yield ask_last("create_run", agent_id=agent_id, **texts, **rest, duration_ms=1))


def page(agent_id: int, limit: int = 10) -> Unit[Any]:
    kind: dict[str, Any] = {"agent_id": agent_id, "status": None, "model": None}
    times = {"created_after": None, "created_before": None}
    items = ask("list_agent_runs", **kind, **times, before=2**53, limit=limit, offset=0)
    total = ask("total_runs", **kind)
    return (yield ask_together(ask("agent_exists", agent_id=agent_id), total, items, rows=limit))


async def test_what_looks_up_little_shares_a_round_trip_and_each_is_answered_with_its_own(
    tenants: list[Scope], turns: list[list[str | None]]
) -> None:
    asked = [(scope, tool_id) for tool_id in (1, 2, 3, 99) for scope in tenants]
    found = await asyncio.gather(*(scope.one("get_tool", tool_id=tool_id) for scope, tool_id in asked))
    assert [row and row["name"] for row in found] == [
        *("a's", None, None),
        *(None, "b's", None),
        *(None, None, "c's"),
        *(None, None, None),
    ]
    assert turns == [["a"] * 4 + ["b"] * 4 + ["c"] * 4]


async def test_pages_share_one_too_and_keep_their_order_and_what_they_have_beside_it(
    tenants: list[Scope], turns: list[list[str | None]]
) -> None:
    a, b, c = tenants
    for scope, agent_id, count in ((a, 1, 12), (b, 2, 3)):
        for number in range(count):
            await scope.write(run(agent_id, task=f"{scope.tenant_id} {number}"))
    turns.clear()
    first, second, third = await asyncio.gather(a.read(page(1)), b.read(page(2)), c.read(page(3)))
    assert [row["task"] for row in first[2]] == [f"a {number}" for number in range(11, 1, -1)]
    assert [row["task"] for row in second[2]] == ["b 2", "b 1", "b 0"]
    assert (first[1], second[1:2], third) == (12, (3,), (False, 0, []))
    assert turns == [["a", "b", "c"]]


async def test_a_page_of_anothers_agent_is_empty(tenants: list[Scope]) -> None:
    a, b, _ = tenants
    await a.write(run(1))
    _, total, found = await a.read(page(1))
    assert (total, len(found)) == (1, 1)
    assert await b.read(page(1)) == (False, 0, [])


async def test_who_has_long_rows_or_is_not_known_shares_with_nobody(
    tenants: list[Scope], turns: list[list[str | None]], storage: PostgresqlDatabase
) -> None:
    a, b, _ = tenants
    storage._sizes._known.clear()
    await asyncio.gather(a.one("get_tool", tool_id=1), b.one("get_tool", tool_id=2))
    assert turns == [["a"], ["b"]]
    # c has found nothing, and is not known yet
    await asyncio.gather(*(scope.one("get_tool", tool_id=1) for scope in tenants))
    assert turns[2:] == [["a", "b"], ["c"]]
    # a's run is known to be long as soon as it is written; a page may be twenty of these
    turns.clear()
    await a.write(run(1, "t" * 20_000))
    await asyncio.gather(a.read(page(1, 20)), b.read(page(2)), b.read(page(2)))
    await asyncio.gather(a.one("get_tool", tool_id=1), b.one("get_tool", tool_id=2))
    assert (turns[0], sorted(turns[1:3]), turns[3:]) == (["a"], [["a"], ["b", "b"]], [["a", "b"]])


async def test_a_long_answer_is_remembered_for_a_minute(
    storage: PostgresqlDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = asyncio.get_running_loop().time()
    monkeypatch.setattr(Sizes, "_now", lambda self: now)
    storage._sizes.measure("a", [("t" * 300_000, 7, None), ("s", "t", 8)])
    storage._sizes.measure("a", [("s", 7)])
    storage._sizes.measure("a", [])
    assert storage._sizes.of("a") == 150_001
    now += 59
    assert storage._sizes.of("a") == 150_001
    now += 2
    assert storage._sizes.of("a") is None
    storage._sizes.measure("a", [("s", 7)])
    assert storage._sizes.of("a") == 1024


async def test_a_run_that_is_long_is_stored_by_a_transaction_of_its_tenants(
    tenants: list[Scope], turns: list[list[str | None]], database: str
) -> None:
    units = [run(1, "t" * 19_000, prompt="p" * 20_000), run(2), run(3)]
    await asyncio.gather(*(scope.write(unit) for scope, unit in zip(tenants, units, strict=True)))
    assert turns == [["b", "c"]]
    assert rows(database, "select count(*) from runs") == [(3,)]


async def test_a_query_that_the_server_ends_in_a_shared_turn_is_asked_again_by_its_tenant_alone(
    tenants: list[Scope], turns: list[list[str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetchmany = asyncpg.Connection.fetchmany

    async def cancelled(self: asyncpg.Connection, query: str, arguments: list[Any], **more: Any) -> Any:
        if len({each[-1] for each in arguments}) > 1:
            raise asyncpg.QueryCanceledError("canceling statement due to statement timeout")
        return await fetchmany(self, query, arguments, **more)

    monkeypatch.setattr(asyncpg.Connection, "fetchmany", cancelled)
    found = await asyncio.gather(*(scope.one("get_tool", tool_id=n) for n, scope in enumerate(tenants, 1)))
    assert [row and row["name"] for row in found] == ["a's", "b's", "c's"]
    assert turns == [["a", "b", "c"], ["a"], ["b"], ["c"]]
    made = await asyncio.gather(*(scope.write(run(n)) for n, scope in enumerate(tenants, 1)))
    assert len(made) == 3


async def test_a_table_that_is_locked_is_503_in_time_and_nothing_is_stored_or_charged(
    serve: Serve, other: "psycopg.Connection[Any]", database: str
) -> None:
    """As `vacuum full` does: the server says that nothing was done, before our own patience ends."""
    client = await serve()
    path = f"/agents/{(await make_agent(client))['id']}/run"
    task = {"task": "Say hello", "model": "gpt-4o"}
    other.execute("lock table runs in access exclusive mode")
    began = time.monotonic()
    answers = await asyncio.gather(*(client.post(path, json=task, headers=KEY_A) for _ in range(3)))
    assert {answer.status for answer in answers} == {503}
    assert time.monotonic() - began < 6
    other.rollback()
    stored = await client.post(path, json=task, headers=KEY_A)
    assert (stored.status, stored.headers["RateLimit"].split(";")[1]) == (200, "r=4")
    assert rows(database, "select count(*) from runs") == [(1,)]


async def test_what_is_wrong_with_one_look_up_is_nobody_elses(tenants: list[Scope], turns: list[list[str | None]]) -> None:
    a, b, _ = tenants
    asked = ((a, 1), (b, 5), (b, 2), (a, 5))
    found = await asyncio.gather(
        *(scope.one(FAILS_FOR_5, tool_id=tool_id) for scope, tool_id in asked), return_exceptions=True
    )
    assert [type(each).__name__ for each in found] == ["dict", "DivisionByZeroError", "dict", "DivisionByZeroError"]
    # together, and then each by itself
    assert [len(turn) for turn in turns] == [4, 1, 1, 1, 1]


async def test_a_unit_that_asks_for_more_than_its_last_is_told_so(tenants: list[Scope]) -> None:
    def unit() -> Unit[Any]:
        yield ask_last("get_tool", tool_id=1)
        return (yield ask("get_tool", tool_id=1))

    async with asyncio.timeout(2):
        with pytest.raises(RuntimeError, match="its last query"):
            await tenants[0].read(unit())


async def test_runs_of_several_tenants_are_stored_by_one_transaction(
    tenants: list[Scope], turns: list[list[str | None]], database: str
) -> None:
    made = await asyncio.gather(*(scope.write(run(number)) for number, scope in enumerate(tenants, 1)))
    assert turns == [["a", "b", "c"]]
    assert sorted(rows(database, "select tenant_id, agent_id, id from runs")) == [
        (name, number, made[number - 1]["id"]) for number, name in enumerate(NAMES, 1)
    ]
    assert rows(database, "select count(distinct xmin::text) from runs") == [(1,)]
    # what the triggers count is counted for each
    assert sorted(rows(database, "select tenant_id, runs from usage")) == [(name, 1) for name in NAMES]


async def test_a_tenant_that_somebody_writes_for_holds_up_nobody_else(
    tenants: list[Scope], other: "psycopg.Connection[Any]", database: str
) -> None:
    other.execute("select pg_advisory_xact_lock(hashtextextended('a', 7203))")
    held, *free = (asyncio.ensure_future(scope.write(run(number))) for number, scope in enumerate(tenants, 1))
    async with asyncio.timeout(2):
        await asyncio.gather(*free)
        # nor does it while it waits
        await tenants[1].write(run(2))
    assert not held.done()
    assert sorted(rows(database, "select tenant_id from runs")) == [("b",), ("b",), ("c",)]
    other.rollback()
    async with asyncio.timeout(2):
        stored = await held
    assert rows(database, "select id from runs where tenant_id = 'a'") == [(stored["id"],)]


async def test_a_row_that_somebody_holds_holds_up_nobody_else_for_long(
    tenants: list[Scope], other: "psycopg.Connection[Any]", database: str
) -> None:
    # a's run refers to it
    other.execute("select id from agent_ids where tenant_id = 'a' for update")
    held, *free = (asyncio.ensure_future(scope.write(run(number))) for number, scope in enumerate(tenants, 1))
    async with asyncio.timeout(2):
        await asyncio.gather(*free)
    assert not held.done()
    other.rollback()
    async with asyncio.timeout(2):
        await held
    assert sorted(rows(database, "select tenant_id from runs")) == [("a",), ("b",), ("c",)]


async def test_a_run_that_is_refused_takes_nobody_elses_with_it(tenants: list[Scope], database: str) -> None:
    a, b, c = tenants
    refused, *stored = await asyncio.gather(
        a.write(run(99)), b.write(run(2)), c.write(run(3)), a.write(run(1)), return_exceptions=True
    )
    assert isinstance(refused, ForeignKeyViolation)
    ids = [(each["id"],) for each in stored if isinstance(each, dict)]
    assert len(ids) == 3
    assert sorted(rows(database, "select id from runs")) == sorted(ids)


async def test_a_run_is_not_older_than_one_that_was_stored_while_its_statement_waited(
    tenants: list[Scope], other: "psycopg.Connection[Any]", database: str
) -> None:
    """The last run is looked for when nobody else writes for the tenant: what was there at the beginning may lack it."""
    later = "2999-01-01T00:00:00.000000Z"
    await tenants[0].write(run(1))
    other.execute("select pg_advisory_xact_lock(hashtextextended('a', 7203))")
    waiting = (
        "with entered as materialized (select pg_advisory_xact_lock(hashtextextended('a', 7203))) "
        "select {} from entered".format
    )
    seen: list[Any] = []

    def wait(what: str) -> None:
        with psycopg.connect(database) as connection:
            seen.append(connection.execute(waiting(what)).fetchone())

    # a select in the statement itself has what was there at its beginning: so the function is needed
    asked = (
        f"not_before_the_last_run('a', '{utc_now()}')",
        "(select max(created_at) from runs where tenant_id = 'a') < '2999'",
    )
    threads = [threading.Thread(target=wait, args=(what,)) for what in asked]
    for thread in threads:
        thread.start()
    async with asyncio.timeout(5):
        while rows(database, "select count(*) from pg_locks where locktype = 'advisory' and not granted") != [(2,)]:  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.01)
    other.execute("update runs set created_at = %s", (later,))
    other.commit()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert sorted(seen, key=str) == [(later,), (True,)]


QUICK = [
    ("/agents/1", True),
    ("/tools/1", True),
    ("/runs/1", True),
    ("/runs", True),
    ("/runs?status=failed", True),
    ("/runs?agent_id=1", True),
    ("/runs?limit=30", True),
    ("/agents/1/runs", True),
    # long at any rate
    ("/runs?limit=100", False),
    # these may go through all that a tenant has
    ("/runs?model=gpt-4o", False),
    ("/runs?agent_id=1&status=failed", False),
    ("/runs?created_after=2026-01-01T00:00:00Z", False),
    ("/runs?created_before=2026-01-01T00:00:00Z", False),
    ("/runs?offset=1000", False),
    ("/agents/1/runs?offset=1000", False),
    ("/agents", False),
    ("/tools", False),
    ("/audit", False),
    ("/usage", False),
    ("/usage?group_by=day", False),
    ("/keys", False),
]


async def test_what_may_take_long_shares_its_turn_with_nobody(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await serve()
    await make_agent(client)
    engine = engine_in(client.app)
    assert isinstance(engine, PostgresqlDatabase)
    engine._sizes.note("tenant_a", 1)
    lanes = engine._lookups
    really = lanes.run
    shared: list[Job] = []

    def watched(job: Job) -> None:
        shared.append(job)
        really(job)

    monkeypatch.setattr(lanes, "run", watched)
    found = []
    for path, _ in QUICK:
        shared.clear()
        assert (await client.get(path, headers=KEY_A)).status in (200, 404)
        found.append((path, bool(shared)))
    assert found == QUICK


async def test_a_connection_is_left_without_a_tenant_and_without_what_the_turn_has_set(
    tenants: list[Scope], storage: PostgresqlDatabase
) -> None:
    await asyncio.gather(*(scope.write(run(number)) for number, scope in enumerate(tenants, 1)))
    await asyncio.gather(*(scope.one("get_tool", tool_id=1) for scope in tenants))
    await asyncio.sleep(0.05)
    connections: list[asyncpg.Connection] = [await storage._pool.acquire() for _ in range(storage._pool.get_size())]
    for connection in connections:
        assert not await connection.fetchval("select current_setting('agent_platform.tenant_id', true)")
        assert await connection.fetchval("show lock_timeout") == "2s"
        await storage._pool.release(connection)
