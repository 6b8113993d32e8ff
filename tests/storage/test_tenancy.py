"""The four locks on tenancy, one by one."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from service.resources import resource
from service.storage.queries import QueryError, Shape, load_queries
from service.storage.scope import Scope, Unscoped
from service.storage.sqlite import SqliteDatabase, connect
from service.storage.units import ForeignKeyViolation, UniqueViolation, ask
from service.times import utc_now

NOW = utc_now()
QUERIES = load_queries(resource("sql"))
SCOPED = sorted(name for name, query in QUERIES.items() if query.scoped)
SECRET = "planted-secret"

# what a tenant who knows everything about another one would pass; ids are those of tenant a's things
THEIRS: dict[str, Any] = {
    "tool_id": 1,
    "agent_id": 1,
    "run_id": 1,
    "name": f"{SECRET} tool",
    "agent_name": f"{SECRET} agent",
    "tool_name": f"{SECRET} tool",
    "tool_ids": "[1]",
    "role": "r",
    "description": "d",
    "after": 0,
    "before": 2**53,
    "limit": 100,
    "offset": 0,
    "now": NOW,
    "task": "t",
    "model": "gpt-4o",
    "status": "completed",
    "created_after": None,
    "created_before": None,
    "prompt": "p",
    "response": "r",
    "error": None,
    "steps": "[]",
    "prompt_tokens": 1,
    "completion_tokens": 1,
    "created_at": NOW,
    "duration_ms": 1,
    "versions": "[1]",
    "idempotency_key": SECRET,
    "fingerprint": "0" * 64,
    "headers": "{}",
    "body": "b",
    "expired": "",
}
# where another value reaches more
FURTHER: dict[str, dict[str, Any]] = {
    "forget_kept_answers": {"expired": "9999"},
    "keep_answer": {"expired": "9999", "status": 200},
    "tool_is_renamed": {"name": "another"},
}


async def plant(tenant: Scope) -> None:
    """One of everything, with the ids 1 and the secret in every text."""

    def unit() -> Any:
        yield ask("create_tool", name=f"{SECRET} tool", description=SECRET, now=NOW)
        agent_id = yield ask("create_agent_id")
        yield ask("create_agent", agent_id=agent_id, name=f"{SECRET} agent", role=SECRET, description=SECRET, now=NOW)
        yield ask("add_agent_tools", agent_id=agent_id, tool_ids="[1]")
        run = {"task", "model", "status", "prompt", "response", "error", "steps", "prompt_tokens", "completion_tokens"}
        values = {name: THEIRS[name] for name in (*run, "created_at", "duration_ms")}
        yield ask("create_run", agent_id=agent_id, agent_name=f"{SECRET} agent", **(values | {"task": SECRET}))
        kept = {name: THEIRS[name] for name in ("idempotency_key", "fingerprint", "headers", "now", "expired")}
        yield ask("keep_answer", **kept, status=200, body=SECRET)

    await tenant.write(unit())


def everything_of(path: Path, tenant_id: str) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of the tenant, table by table, read beside the service."""
    tables = ("tools", "agent_ids", "agents", "agent_tools", "runs", "run_counts", "kept_answers")
    with closing(sqlite3.connect(path)) as connection:
        return {
            table: connection.execute(f"select * from {table} where tenant_id = ? order by 1, 2", (tenant_id,)).fetchall()
            for table in tables
        }


async def run_query(tenant: Scope, name: str) -> Any:
    values = THEIRS | FURTHER.get(name, {})
    parameters = {each: values[each] for each in QUERIES[name].parameters if each != "tenant_id"}

    def unit() -> Any:
        return (yield ask(name, **parameters))

    return await (tenant.write if QUERIES[name].writes else tenant.read)(unit())


async def test_lock_1_a_scope_adds_the_tenant_and_takes_none(tenants: tuple[Scope, Scope]) -> None:
    a, _ = tenants
    with pytest.raises(TypeError, match="adds tenant_id itself"):
        await a.one("get_tool", tool_id=1, tenant_id="b")


async def test_lock_1_a_scope_runs_no_unscoped_query(tenants: tuple[Scope, Scope], database: SqliteDatabase) -> None:
    with pytest.raises(PermissionError):
        await tenants[0].one("find_api_key", hash="0" * 64)
    with pytest.raises(PermissionError):
        await Unscoped(database).one("get_tool", tenant_id="a", tool_id=1)


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("tools.sql", "-- name: get_all()\nselect id from tools;", "first parameter of get_all must be tenant_id"),
        (
            "tools.sql",
            "-- name: get_one(tool_id, tenant_id)^\nselect id from tools where id = :tool_id and tenant_id = :tenant_id;",
            "first parameter",
        ),
        ("tools.sql", "-- name: get_one(tenant_id, id)^\nselect id from tools where id = :id;", "unused declared parameter"),
        (
            "tools.sql",
            "-- name: get_one(tenant_id)^\nselect id from tools where tenant_id = :tenant_id and id = :id;",
            "undecl",
        ),
        ("unscoped.sql", "-- name: peek(tenant_id)\nselect id from tools where tenant_id = :tenant_id;", "scoped file"),
        ("tools.sql", "-- name: two(tenant_id)\nselect :tenant_id; delete from tools", "more than one statement"),
        ("tools.sql", "-- name: sign(tenant_id)<!\ninsert into tools (tenant_id) values (:tenant_id)", "sign"),
        (
            "other.sql",
            "-- name: a(tenant_id)\nselect :tenant_id as x;\n\n-- name: a(tenant_id)\nselect :tenant_id as y;",
            "a",
        ),
    ],
)
def test_lock_2_a_query_that_does_not_begin_with_the_tenant_is_refused(
    tmp_path: Path, file: str, text: str, says: str
) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(QueryError, match=says):
        load_queries(tmp_path)


def test_lock_2_a_name_that_stands_in_two_files_is_refused(tmp_path: Path) -> None:
    for file in ("one.sql", "two.sql"):
        (tmp_path / file).write_text("-- name: same(tenant_id)$\nselect :tenant_id;")
    with pytest.raises(QueryError, match="two places"):
        load_queries(tmp_path)


@pytest.mark.parametrize(
    "link",
    [
        "insert into agent_tools (tenant_id, agent_id, tool_id) values ('b', 1, 1)",
        "insert into agent_tools (tenant_id, agent_id, tool_id) values ('a', 1, 2)",
        "update agent_tools set tenant_id = 'b'",
        "update agents set tenant_id = 'b'",
        "insert into runs (tenant_id, agent_id, agent_name, model, status, prompt_tokens, completion_tokens, created_at, "
        "duration_ms, task, response, steps, prompt) "
        f"values ('b', 1, 'n', 'm', 'completed', 0, 0, '{NOW}', 0, 't', 'r', '[]', 'p')",
    ],
)
async def test_lock_3_the_database_refuses_a_link_across_tenants(
    link: str, tenants: tuple[Scope, Scope], path: Path
) -> None:
    a, b = tenants
    await plant(a)
    await b.one("create_tool", name="theirs", description="d", now=NOW)
    with closing(connect(path)) as connection, pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        connection.execute(link)


@pytest.mark.parametrize("name", SCOPED)
async def test_lock_4_no_query_reaches_another_tenant(name: str, tenants: tuple[Scope, Scope], path: Path) -> None:
    a, b = tenants
    await plant(a)
    before = everything_of(path, "a")
    query = QUERIES[name]
    try:
        answer = await run_query(b, name)
    except (ForeignKeyViolation, UniqueViolation):
        answer = None
    assert everything_of(path, "a") == before
    if name in ("create_tool", "create_agent_id"):
        # b makes things of its own, under ids of its own
        assert (answer["id"] if name == "create_tool" else answer) > 1
    elif name == "keep_answer":
        # under the same key, and beside a's
        assert answer == 1
    elif name == "unknown_tools":
        assert answer == [{"position": 0, "tool_id": 1}]
    else:
        assert answer in ({Shape.ONE: None, Shape.MANY: [], Shape.VALUE: 0, Shape.COUNT: 0}[query.shape], None)
        assert everything_of(path, "b") == {table: [] for table in before}


@pytest.mark.parametrize("name", SCOPED)
async def test_lock_4_would_notice_the_tenant_itself_finds_its_things(name: str, tenants: tuple[Scope, Scope]) -> None:
    """The proof that the parameters above are the right ones: run by their owner, each query does its work."""
    a, _ = tenants
    await plant(a)
    if name in ("create_agent", "add_agent_tools", "create_tool"):
        with pytest.raises(UniqueViolation):
            await run_query(a, name)
    elif name == "unknown_tools":
        assert await run_query(a, name) == []
    else:
        # "name" is the tool's, so that lists of agents by this name are empty; the rest finds what was planted
        expected_empty = {"list_agents", "count_agents", "list_agents_with_tool", "count_agents_with_tool"}
        assert bool(await run_query(a, name)) == (name not in expected_empty)
