"""The first four locks on tenancy, one by one; the fifth is PostgreSQL's, in test_row_security.py."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from service.resources import resource
from service.storage import copying
from service.storage.queries import Query, QueryError, Shape, load_queries
from service.storage.scope import Database, OutOfScope, Scope, Unscoped
from service.storage.units import ForeignKeyViolation, UniqueViolation, ask
from tests.storage.planted import Planted, planted
from tests.support.direct import REFUSED, Direct
from tests.support.storage import made
from tests.support.tenancy import NOW, parameters, plant

QUERIES = load_queries(resource("sql"), "sqlite")
# what `copy` brings is there already
COPYING = {f"write_{table}" for table in copying._TABLES}
SCOPED = sorted(name for name, query in QUERIES.items() if query.scoped)

# these share a database, which is set back, and a loop with it
in_one_database = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def planted_on_sqlite(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Planted]:
    async with planted(made("sqlite", tmp_path_factory.mktemp("planted") / "tenancy.db")) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def planted_on_postgresql() -> AsyncIterator[Planted]:
    async with planted(made("postgresql", Path("tenancy"))) as found:
        yield found


@pytest.fixture
def house(engine: str, request: pytest.FixtureRequest) -> Planted:
    found: Planted = request.getfixturevalue(f"planted_on_{engine}")
    return found.set_back()


def everything_of(tenant_id: str, beside: Direct) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of the tenant, table by table, read beside the service."""
    return {
        table: beside.run(f"select * from {table} where tenant_id = :tenant_id order by 1, 2", tenant_id=tenant_id)
        for table in beside.tables()
        if table != "tenants"
    }


async def run_query(tenant: Scope, query: Query) -> Any:
    def unit() -> Any:
        return (yield ask(query.name, **parameters(query)))

    return await (tenant.write if query.writes else tenant.read)(unit())


def test_both_engines_have_queries_of_the_same_names_and_parameters() -> None:
    each = [
        {name: (query.parameters, query.shape, query.writes) for name, query in queries.items() if query.scoped}
        for queries in (QUERIES, load_queries(resource("sql"), "postgresql"))
    ]
    assert each[0] == each[1]


async def test_lock_1_a_scope_adds_the_tenant_and_takes_none(tenants: tuple[Scope, Scope]) -> None:
    a, _ = tenants
    with pytest.raises(TypeError, match="adds tenant_id itself"):
        await a.one("get_tool", tool_id=1, tenant_id="b")


async def test_lock_1_a_scope_runs_no_unscoped_query(tenants: tuple[Scope, Scope], storage: Database) -> None:
    with pytest.raises(OutOfScope):
        await tenants[0].one("find_api_key", hash="0" * 64)
    with pytest.raises(OutOfScope):
        await Unscoped(storage).one("get_tool", tenant_id="a", tool_id=1)


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
        load_queries(tmp_path, "sqlite")


def test_lock_2_a_name_that_stands_in_two_files_is_refused(tmp_path: Path) -> None:
    for file in ("one.sql", "two.sql"):
        (tmp_path / file).write_text("-- name: same(tenant_id)$\nselect :tenant_id;")
    with pytest.raises(QueryError, match="two places"):
        load_queries(tmp_path, "sqlite")


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
    link: str, tenants: tuple[Scope, Scope], storage: Database, beside: Direct
) -> None:
    a, b = tenants
    await plant(a, storage)
    await b.one("create_tool", name="theirs", description="d", now=NOW)
    with pytest.raises(REFUSED, match=r"(?i)foreign key"):
        beside.run(link)


@in_one_database
@pytest.mark.parametrize("name", SCOPED)
async def test_lock_4_no_query_reaches_another_tenant(name: str, house: Planted) -> None:
    beside = house.beside
    before = everything_of("a", beside)
    query = house.storage.queries[name]
    try:
        answer = await run_query(house.b, query)
    except (ForeignKeyViolation, UniqueViolation):
        answer = None
    assert everything_of("a", beside) == before
    if name in ("create_tool", "create_agent_id", "create_key"):
        # b makes things of its own, under ids of its own
        assert (answer if name == "create_agent_id" else answer["id"]) > 1
    elif name == "keep_answer" or name.startswith("write_"):
        # under the same key, and beside a's; an id that two tenants may not share is refused
        assert answer in (1, None)
    elif name == "unknown_tools":
        assert answer == [{"position": 0, "tool_id": 1}]
    else:
        assert answer in ({Shape.ONE: None, Shape.MANY: [], Shape.VALUE: 0, Shape.COUNT: 0}[query.shape], None)
        assert everything_of("b", beside) == {table: [] for table in before}


@in_one_database
@pytest.mark.parametrize("name", SCOPED)
async def test_lock_4_would_notice_the_tenant_itself_finds_its_things(name: str, house: Planted) -> None:
    """The proof that the parameters above are the right ones: run by their owner, each query does its work."""
    a, query = house.a, house.storage.queries[name]
    if name == "write_usage":
        # it writes over what the triggers have counted
        assert await run_query(a, query) == 1
        assert house.beside.run("select runs from usage") == [(7,)]
    elif name in ("create_agent", "add_agent_tools", "create_tool", "create_key") or name in COPYING:
        with pytest.raises(UniqueViolation):
            await run_query(a, query)
    elif name == "empty_agent_ids":
        # a run refers to it
        with pytest.raises(ForeignKeyViolation):
            await run_query(a, query)
    elif name == "empty_audit_log":
        with pytest.raises((sqlite3.IntegrityError, asyncpg.InsufficientPrivilegeError), match="append-only"):
            await run_query(a, query)
    elif name == "unknown_tools":
        assert await run_query(a, query) == []
    else:
        assert await run_query(a, query)
