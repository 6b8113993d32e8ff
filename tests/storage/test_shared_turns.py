"""What tenants share on PostgreSQL: a round trip and a transaction, where each has little to ask; never what goes wrong."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import asyncpg
import psycopg
import pytest

from service.resources import resource
from service.storage.postgresql import PostgresqlDatabase
from service.storage.postgresql_lanes import MOST_ROWS, Job
from service.storage.postgresql_queries import Asked, PostgresqlQuery
from service.storage.queries import load_queries
from service.storage.scope import Scope, Unscoped
from service.storage.units import ForeignKeyViolation, Unit, ask, ask_last, ask_together
from service.times import utc_now
from tests.conftest import KEY_A, Serve
from tests.support import postgresql
from tests.support.http import make_agent
from tests.support.storage import engine_in, rows

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
        await scope.one("create_tool", name=f"{scope.tenant_id}'s", description="d", now=utc_now())
        await scope.value("create_agent_id")
    return scopes


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[list[str | None]]:
    """For each round trip that reads or inserts, whose queries it took."""
    seen: list[list[str | None]] = []
    for name in ("read_each", "write_each"):
        really = getattr(PostgresqlQuery, name)

        async def watched(self: Any, connection: Any, asked: list[Asked], really: Any = really) -> Any:
            seen.append([tenant_id for tenant_id, _ in asked])
            return await really(self, connection, asked)

        monkeypatch.setattr(PostgresqlQuery, name, watched)
    return seen


@pytest.fixture
def other(database: str) -> Iterator["psycopg.Connection[Any]"]:
    """Somebody else at the same database; what he holds he lets go of with `rollback`."""
    with psycopg.connect(database) as connection:
        yield connection


def run(agent_id: int, task: str = "t") -> Unit[Any]:
    texts = {"agent_name": "n", "task": task, "model": "gpt-4o", "status": "completed", "prompt": "p", "response": "r"}
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
    assert await b.read(page(1)) == (False, 0, [])


async def test_no_more_rows_than_a_page_has_are_looked_at_in_one_turn(
    tenants: list[Scope], turns: list[list[str | None]]
) -> None:
    large = MOST_ROWS - 20
    await asyncio.gather(*(scope.read(page(number, large)) for number, scope in enumerate(tenants, 1)))
    assert turns == [["a"], ["b"], ["c"]]
    turns.clear()
    await asyncio.gather(*(scope.read(page(number, 20)) for number, scope in enumerate(tenants, 1)))
    assert turns == [["a", "b", "c"]]


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
    assert sorted(rows(database, "select id from runs")) == sorted(
        (each["id"],) for each in stored if isinstance(each, dict)
    )
    assert len(stored) == 3


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
    ("/runs?limit=100", True),
    ("/agents/1/runs", True),
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
    lanes = engine_in(client.app)._lookups
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
        assert await connection.fetchval("show lock_timeout") == "5s"
        await storage._pool.release(connection)
