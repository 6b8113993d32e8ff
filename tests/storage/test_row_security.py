"""The fifth lock on tenancy, PostgreSQL's own: what crosses when a query forgets its tenant? Nothing."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
import pytest_asyncio

from service.resources import resource
from service.storage import postgresql as driver
from service.storage.engines import engine_of
from service.storage.postgresql import PostgresqlDatabase
from service.storage.postgresql_transactions import PREPARED
from service.storage.queries import Query, load_queries
from service.storage.scope import Database, Scope, Statement, Unscoped
from service.storage.units import Ask, ForeignKeyViolation, Unit, ask, ask_last, ask_together
from service.times import utc_now
from tests.storage.planted import Planted, planted
from tests.support import postgresql
from tests.support.direct import Direct, direct
from tests.support.storage import made, watched_turns
from tests.support.tenancy import THEIRS, parameters, plant

pytestmark = pytest.mark.skipif(postgresql.server() is None, reason=postgresql.HOW_TO_RUN)

QUERIES = load_queries(resource("sql"), "postgresql")
SCOPED = sorted(name for name, query in QUERIES.items() if query.scoped)
TENANT, OPERATOR = "agent_platform_tenant", "agent_platform_operator"
TABLES = (
    "tenants",
    "api_keys",
    "tools",
    "agent_ids",
    "agents",
    "agent_tools",
    "runs",
    "run_counts",
    "usage",
    "kept_answers",
    "audit_log",
)
TOOL = ("tenant_id", "name", "description", "created_at", "updated_at")

# what holds a query to one tenant, in its own words or through a table that it joins
_PREDICATE = re.compile(r"\b(?:\w+\.)?tenant_id = (?::tenant_id|\w+\.tenant_id)\b")
_ALWAYS_TRUE = "cast(:tenant_id as text) is not null"


def is_insert(query: Query) -> bool:
    return query.sql.lower().startswith("insert")


def stripped(query: Query) -> Iterator[Query]:
    """The query without each of its tenant predicates in turn, and without all of them."""
    found = list(_PREDICATE.finditer(query.sql))
    for number, each in enumerate(found):
        sql = f"{query.sql[: each.start()]}{_ALWAYS_TRUE}{query.sql[each.end() :]}"
        yield replace(query, name=f"{query.name} without {number}", sql=sql)
    if found:
        yield replace(query, name=f"{query.name} without any", sql=_PREDICATE.sub(_ALWAYS_TRUE, query.sql))


BROKEN = {name: list(stripped(QUERIES[name])) for name in SCOPED}


class Forged(Scope):
    """A scope whose transaction is its own tenant's, and whose queries name another one."""

    def bind(self, asked: Ask) -> Statement:
        query, parameters = super().bind(asked)
        return query, parameters | {"tenant_id": "a"}


@pytest.fixture
def database() -> str:
    return postgresql.emptied()


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[PostgresqlDatabase]:
    """The database with the whole queries and the broken ones."""
    broken = {query.name: query for queries in BROKEN.values() for query in queries}
    storage = await PostgresqlDatabase.open(url, {**QUERIES, **broken})
    yield storage
    await storage.close()


# these share a database, which is set back, and a loop with it
in_one_database = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house() -> AsyncIterator[Planted]:
    async with planted(made("postgresql", Path("row_security"))) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def locked(house: Planted) -> AsyncIterator[PostgresqlDatabase]:
    async with opened(str(house.database)) as broken:
        yield broken


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def unlocked(house: Planted) -> AsyncIterator[PostgresqlDatabase]:
    """The same, but its connections have a role that row-level security does not bind."""

    async def stay_who_you_are(connection: asyncpg.Connection) -> None:
        await connection.execute(PREPARED)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_make_ready", stay_who_you_are)
        storage = opened(str(house.database))
        broken = await storage.__aenter__()
    yield broken
    await storage.__aexit__(None, None, None)


async def run_query(tenant: Scope, query: Query, like: Query, how: Callable[..., Ask] = ask) -> Any:
    """Runs `query` with the parameters of the one that it was made from."""

    def unit() -> Any:
        return (yield how(query.name, **parameters(like)))

    return await (tenant.write if query.writes else tenant.read)(unit())


def has_crossed(name: str, answer: Any) -> bool:
    """Does the answer of a query that b ran show that there is something of a's?"""
    if name == "unknown_tools":
        return bool(answer != [{"position": 0, "tool_id": 1}])
    return bool(answer)


def test_every_query_has_a_predicate_to_strip_or_writes_a_tenant() -> None:
    assert [name for name in SCOPED if not BROKEN[name] and not is_insert(QUERIES[name])] == []
    # nothing else holds a query to its tenant: what is left has no tenant to be compared with
    for name in SCOPED:
        whole = BROKEN[name][-1] if BROKEN[name] else QUERIES[name]
        assert not re.search(r"tenant_id\s*(=|in\b|like\b)", whole.sql), name
        assert len(re.findall(r":tenant_id", QUERIES[name].sql)) >= 1


@in_one_database
@pytest.mark.parametrize("name", SCOPED)
async def test_lock_5_a_query_without_its_tenant_predicate_reaches_nothing(
    name: str, house: Planted, locked: PostgresqlDatabase
) -> None:
    beside = house.set_back().beside
    before = beside.contents()
    b, forged = Scope(locked, "b", None), Forged(locked, "b", None)
    query = QUERIES[name]
    if is_insert(query):
        for how in (ask, ask_last):
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
                await run_query(forged, query, query, how)
    else:
        # within a transaction, and as the only query of one
        for how in (ask, ask_last):
            assert not has_crossed(name, await run_query(forged, query, query, how))
            for each in BROKEN[name]:
                assert not has_crossed(name, await run_query(b, each, query, how)), each.name
    assert beside.contents() == before


def both(locked: PostgresqlDatabase) -> tuple[Scope, Scope]:
    """a and b, who are known to have short rows, and share what they look up."""
    for name in "ab":
        locked._sizes.note(name, 1)
    return Scope(locked, "a", None), Scope(locked, "b", None)


def without_any(*names: str) -> Unit[Any]:
    """A page whose queries have lost all their tenant predicates."""
    return (yield ask_together(*(ask(BROKEN[name][-1].name, **parameters(QUERIES[name])) for name in names), rows=10))


@in_one_database
@pytest.mark.parametrize("name", [name for name in SCOPED if QUERIES[name].finds_one])
async def test_lock_5_holds_each_query_of_a_shared_transaction_to_its_own_tenant(
    name: str, house: Planted, locked: PostgresqlDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.set_back()
    a, b = both(locked)
    turns = watched_turns(monkeypatch.setattr)
    for each in BROKEN[name]:
        answers = await asyncio.gather(*(run_query(who, each, QUERIES[name], ask_last) for who in (a, b, a, b)))
        # nothing is seen of a's with a's query before it, and a's own is with b's
        assert [has_crossed(name, answer) for answer in answers] == [True, False, True, False], each.name
        assert turns.pop() == ["a", "a", "b", "b"]


@in_one_database
@pytest.mark.parametrize("listing", ["list_runs", "list_agent_runs", "list_runs_with_status"])
async def test_lock_5_holds_each_page_of_a_shared_transaction_to_its_own_tenant(
    listing: str, house: Planted, locked: PostgresqlDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.set_back()
    a, b = both(locked)
    turns = watched_turns(monkeypatch.setattr)
    names = ("agent_exists", "total_runs", listing)
    answers = await asyncio.gather(*(who.read(without_any(*names)) for who in (a, b, a, b)))
    assert [(bool(there), total, len(found)) for there, total, found in answers] == [(True, 1, 1), (False, 0, 0)] * 2
    assert turns == [["a", "a", "b", "b"]]


@in_one_database
@pytest.mark.parametrize("name", SCOPED)
async def test_lock_5_would_be_missed(name: str, house: Planted, unlocked: PostgresqlDatabase) -> None:
    """The proof that the test above can fail: as a role that row-level security does not bind, each query crosses."""
    beside = house.set_back().beside
    before = beside.contents()
    query = QUERIES[name]
    if is_insert(query):
        # the row would be a's: it is refused for its key alone, or is written
        answers = await asyncio.gather(run_query(Forged(unlocked, "b", None), query, query), return_exceptions=True)
        assert not isinstance(answers[0], asyncpg.InsufficientPrivilegeError)
        assert isinstance(answers[0], Exception) or beside.contents() != before
    else:
        try:
            crossed = has_crossed(name, await run_query(Scope(unlocked, "b", None), BROKEN[name][-1], query))
        except ForeignKeyViolation:
            # a's run refers to what would have gone
            crossed = name == "empty_agent_ids"
        except asyncpg.InsufficientPrivilegeError:
            # a's changes would have gone, but for the trigger
            crossed = name == "empty_audit_log"
        assert crossed or beside.contents() != before


async def test_lock_5_a_run_is_not_dated_by_another_tenants_runs(
    tenants: tuple[Scope, Scope], storage: Database, beside: Direct, database: str
) -> None:
    """The one insert that looks at what is there: its time is not before the tenant's last."""
    a, b = tenants
    await plant(a, storage)
    beside.run("update runs set created_at = '2999-01-01T00:00:00.000000Z'")
    (function,) = beside.run("select pg_get_functiondef('not_before_the_last_run'::regproc)")[0]
    forgetful, count = re.subn("where tenant_id = whose", "where whose is not null", function)
    assert count == 1
    beside.run(forgetful)
    agent_id = await b.value("create_agent_id")
    run = {name: THEIRS[name] for name in QUERIES["create_run"].parameters if name not in ("tenant_id", "agent_id")}
    dated = await b.one("create_run", **run, agent_id=agent_id)
    assert dated is not None
    assert dated["created_at"] == THEIRS["created_at"]


async def test_a_connection_that_served_a_tenant_sees_nothing_when_none_is_set(
    tenants: tuple[Scope, Scope], storage: Database
) -> None:
    a, _ = tenants
    await plant(a, storage)

    def fails() -> Any:
        yield ask("create_tool", name="x", description="d", now=utc_now())
        raise KeyError

    with pytest.raises(KeyError):
        await a.write(fails())
    assert await a.one("get_tool", tool_id=1)
    assert isinstance(storage, PostgresqlDatabase)
    await asyncio.sleep(0.05)
    # those that have served a are the only ones there are
    connections = [await storage._pool.acquire() for _ in range(storage._pool.get_size())]
    for connection in connections:
        assert await connection.fetchval("select current_user") == TENANT
        assert not await connection.fetchval("select current_setting('agent_platform.tenant_id', true)")
        for table in TABLES:
            assert await connection.fetchval(f"select count(*) from {table}") == 0, table
        assert await connection.fetchval("select count(*) from agent_details") == 0
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(f"insert into tools ({', '.join(TOOL)}) values ('a', 'n', 'd', $1, $1)", utc_now())
        await storage._pool.release(connection)
    assert await a.one("get_tool", tool_id=1)


@pytest.fixture
def owned() -> Iterator[str]:
    """The URL of a database whose owner, as whom it is migrated and served, is no superuser."""
    url, name = postgresql.emptied(), f"agent_platform_owner_{os.getpid()}"
    postgresql.create(name)
    with direct(url) as server:
        server.run(f'drop role if exists "{name}"')
        server.run(f"create role \"{name}\" login createrole password 'secret'")
        server.run(f'grant {TENANT}, {OPERATOR} to "{name}" with admin option')
        server.run(f'alter database "{name}" owner to "{name}"')
        parts = urlsplit(postgresql.url_of(name))
        yield parts._replace(netloc=f"{name}:secret@{parts.hostname}:{parts.port or 5432}").geturl()
        server.run(f'drop database "{name}" with (force)')
        server.run(f'drop role "{name}"')


async def test_an_owner_who_is_no_superuser_serves_all_of_it_and_sees_nothing_of_a_tenants(owned: str) -> None:
    engine = engine_of(owned)
    engine.migrate(resource("migrations"))
    engine.check(resource("migrations"))
    storage = await engine.open(load_queries(resource("sql"), engine.name))
    for name in "ab":
        await Unscoped(storage).write(tenant_made(name))
    a, b = Scope(storage, "a", None), Scope(storage, "b", None)
    await plant(a, storage)
    assert (await b.one("get_agent", agent_id=1), await b.value("count_rows")) == (None, 0)
    with direct(owned) as owner:
        # he is a member of both roles: of what the operator sees he sees as much, and of no tenant's anything
        assert {table for table, rows in owner.contents().items() if rows} == {"tenants", "api_keys"}
    # what foreign keys and triggers do for a tenant, they do past the lock or under it
    assert await a.value("total_runs", agent_id=0, status=None, model=None) == 1
    assert await a.one("delete_agent", agent_id=1, versions=None)
    assert await a.value("tool_is_used", tool_id=1) is False
    assert await a.one("get_run", run_id=1)
    await storage.close()


async def test_an_owner_who_is_no_superuser_counts_what_was_used_before_he_migrated(owned: str) -> None:
    engine = engine_of(owned)
    engine.migrate(resource("migrations"))
    storage = await engine.open(load_queries(resource("sql"), engine.name))
    await Unscoped(storage).write(tenant_made("a"))
    a = Scope(storage, "a", None)
    await plant(a, storage)
    name = f"agent_platform_owner_{os.getpid()}"
    span = {"first": "", "last": "9999-12-31"}
    with direct(postgresql.url_of(name)) as server:
        server.run("delete from usage")
        server.run("delete from _yoyo_migration where migration_id = '0006_usage'")
    assert await a.one("get_usage", **span) is None
    assert engine.migrate(resource("migrations")) == ["0006_usage"]
    used = await a.one("get_usage", **span)
    assert used is not None
    assert used["runs"] == 1
    await storage.close()


def tenant_made(name: str) -> Unit[None]:
    yield ask("create_tenant", id=name, now=utc_now())


async def test_the_operator_sees_keys_and_nothing_that_tenants_own(
    tenants: tuple[Scope, Scope], storage: Database, beside: Direct
) -> None:
    await plant(tenants[0], storage)
    beside.run(f"set role {OPERATOR}")
    assert beside.run("select count(*) from api_keys") == [(1,)]
    for table in (*TABLES[2:], "agent_details"):
        with pytest.raises(Exception, match="permission denied"):
            beside.run(f"select * from {table}")


def test_every_table_forces_row_level_security_on_all_roles(beside: Direct) -> None:
    rows = beside.run(
        "select relname, relrowsecurity, relforcerowsecurity from pg_class "
        "where relkind in ('r', 'p') and relnamespace = 'public'::regnamespace and relname not like '%yoyo%'"
    )
    assert sorted(rows) == [(table, True, True) for table in sorted(TABLES)]
    policies = beside.run(
        "select tablename, policyname, roles::text, cmd, permissive from pg_policies "
        "where schemaname = 'public' order by 1, 2"
    )
    own = [(table, "its_own", f"{{{TENANT}}}", "ALL", "PERMISSIVE") for table in TABLES]
    keys = [(table, "all_of_them", f"{{{OPERATOR}}}", "ALL", "PERMISSIVE") for table in ("api_keys", "tenants")]
    noted = [("audit_log", "noted", f"{{{OPERATOR}}}", "INSERT", "PERMISSIVE")]
    assert policies == sorted(own + keys + noted)


def test_the_roles_own_nothing_and_pass_by_nothing(beside: Direct) -> None:
    roles = beside.run(
        "select rolname, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication from pg_roles "
        "where rolname in (:tenant, :operator) order by rolname",
        tenant=TENANT,
        operator=OPERATOR,
    )
    assert roles == [(name, *[False] * 6) for name in (OPERATOR, TENANT)]
    assert beside.run(
        "select count(*) from pg_shdepend join pg_roles on refobjid = pg_roles.oid "
        "where refclassid = 'pg_authid'::regclass and deptype = 'o' and rolname like 'agent_platform%'"
    ) == [(0,)]
    # neither may become the other, nor anybody else
    assert beside.run(
        "select count(*) from pg_auth_members join pg_roles on member = pg_roles.oid where rolname like 'agent_platform%'"
    ) == [(0,)]


def test_no_function_and_no_view_looks_with_the_owners_eyes(beside: Direct) -> None:
    functions = "select proname from pg_proc where pronamespace = 'public'::regnamespace and prosecdef"
    assert beside.run(functions) == []
    assert beside.run(
        "select relname, reloptions::text from pg_class "
        "where relkind in ('v', 'm') and relnamespace = 'public'::regnamespace"
    ) == [("agent_details", "{security_invoker=true}")]


# the statement that needs a privilege on a table
USES = {
    "SELECT": r"\b(?:from|join) {}\b",
    "INSERT": r"\binsert into {}\b",
    "UPDATE": r"\bupdate {0}\b|\binsert into {0}\b.*\bdo update\b",
    "DELETE": r"\bdelete from {}\b",
}
# what the triggers on runs do for the tenant
BY_TRIGGERS = {("run_counts", "INSERT"), ("run_counts", "UPDATE")}


def test_the_tenants_role_may_do_no_more_than_some_query_does(beside: Direct) -> None:
    granted = {
        (table, privilege)
        for table, privilege in beside.run(
            "select table_name, privilege_type from information_schema.role_table_grants "
            "where grantee = 'agent_platform_tenant' and table_schema = 'public'"
        )
    }
    assert len(granted) > 15
    everything = [
        *(query.sql for query in QUERIES.values()),
        *(sql for (sql,) in beside.run("select definition from pg_views where schemaname = 'public'")),
    ]
    needless = {
        (table, privilege)
        for table, privilege in granted - BY_TRIGGERS
        if not any(re.search(USES[privilege].format(table), sql, re.DOTALL) for sql in everything)
    }
    assert needless == set()
