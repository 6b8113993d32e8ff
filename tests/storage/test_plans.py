"""Every query that serves a route has an index that fits: the plans are read."""

import functools
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from service.resources import resource
from service.storage.engines import engine_of
from service.storage.postgresql import _SETTINGS
from service.storage.postgresql_queries import PostgresqlQuery, TogetherQuery
from service.storage.queries import Query, load_queries
from tests.support import postgresql
from tests.support.database import migrated

QUERIES = load_queries(resource("sql"), "sqlite")
OTHERS = load_queries(resource("sql"), "postgresql")
# the operator's list of tenants, and a command's sum of them; yoyo's few rows; the ids given last, of which there are four
SHORT = {"get_summary", "list_tenants", "list_migrations", "list_last_ids", "note_last_id", "set_last_id"}
NAMES = sorted(set(QUERIES) - SHORT)

# what a plan of SQLite may scan: rows that the query was given, one row made of constants, and what a search inside it found
_BOUNDED = re.compile(r"SCAN (json_each|CONSTANT ROW|\(subquery-\d+\)|first_after|last_before|found)")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return migrated(tmp_path_factory.mktemp("plans") / "test.db")


def plan(path: Path, name: str) -> list[str]:
    query = QUERIES[name]
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(f"explain query plan {query.sql}", dict.fromkeys(query.parameters)).fetchall()
    return [row[3] for row in rows]


@pytest.mark.parametrize("name", NAMES)
def test_no_query_scans_a_table_or_sorts_what_has_no_bound(path: Path, name: str) -> None:
    steps = plan(path, name)
    scans = [step for step in steps if step.startswith("SCAN") and not _BOUNDED.match(step)]
    assert scans == []
    if not any("json_each" in step for step in steps):
        assert [step for step in steps if "TEMP B-TREE" in step] == []


def test_the_test_would_see_a_scan_and_a_sort(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        (scan, sort) = connection.execute("explain query plan select * from runs order by task").fetchall()
    assert scan[3].startswith("SCAN runs")
    assert not _BOUNDED.match(scan[3])
    assert "TEMP B-TREE" in sort[3]


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("list_runs", r"SEARCH runs USING INDEX \S+ \(tenant_id=\? AND id>\? AND id<\?\)"),
        (
            "list_agent_runs",
            r"SEARCH runs USING INDEX runs_by_agent \(tenant_id=\? AND agent_id=\? AND id>\? AND id<\?\)",
        ),
        (
            "list_runs_with_status",
            r"SEARCH runs USING INDEX runs_by_status \(tenant_id=\? AND status=\? AND id>\? AND id<\?\)",
        ),
        ("total_runs", r"SEARCH run_counts USING PRIMARY KEY \(tenant_id=\? AND agent_id=\?\)"),
        ("list_tools", r"SEARCH tools USING INDEX \S+ \(tenant_id=\? AND id>\?\)"),
        ("list_agents", r"SEARCH agents USING INDEX \S+ \(tenant_id=\? AND id>\?\)"),
        ("list_usage_by_day", r"SEARCH usage USING PRIMARY KEY \(tenant_id=\? AND day>\? AND day<\?\)"),
        ("list_usage_by_model", r"SEARCH usage USING INDEX usage_by_model \(tenant_id=\? AND model>\?\)"),
        ("list_usage_by_agent", r"SEARCH used USING INDEX usage_by_agent \(tenant_id=\? AND agent_id>\?\)"),
        ("delete_runs", r"SEARCH runs USING COVERING INDEX \S+ \(tenant_id=\? AND id=\?( AND rowid=\?)?\)"),
        ("get_last_run_before", r"SEARCH runs USING COVERING INDEX runs_by_time \(tenant_id=\? AND created_at<\?\)"),
        ("find_api_key", r"SEARCH api_keys USING INDEX \S+ \(hash=\?\)"),
    ],
)
def test_a_page_begins_where_its_cursor_says_without_walking_there(path: Path, name: str, index: str) -> None:
    assert re.fullmatch(index, plan(path, name)[0])


# PostgreSQL looks at how much there is: so there are several tenants, and much of everything.
_FILL = (
    "insert into tenants select 't' || n, '{now}' from generate_series(1, 20) n",
    "insert into api_keys (tenant_id, prefix, hash, created_at) "
    "select tenants.id, 'mk_000000', encode(sha256((tenants.id || n)::bytea), 'hex'), '{now}' "
    "from tenants, generate_series(1, 100) n",
    "insert into tools (tenant_id, name, description, created_at, updated_at) "
    "select tenants.id, 'tool ' || n, repeat('d', 200), '{now}', '{now}' from tenants, generate_series(1, 400) n",
    "insert into agent_ids (tenant_id) select tenants.id from tenants, generate_series(1, 400) n",
    "insert into agents (id, tenant_id, name, role, description, created_at, updated_at) "
    "select id, tenant_id, 'agent ' || id, 'r', repeat('d', 200), '{now}', '{now}' from agent_ids",
    "insert into agent_tools select agents.tenant_id, agents.id, tools.id from agents join tools "
    "on tools.tenant_id = agents.tenant_id and tools.id / 20 % 80 = agents.id / 20 % 80",
    "insert into runs (tenant_id, agent_id, agent_name, model, status, prompt_tokens, completion_tokens, created_at, "
    "duration_ms, task, response, steps, prompt) "
    "select tenant_id, id, 'n', 'gpt-4o', 'completed', 1, 1, '{now}', 1, 't', 'r', '[]', repeat('p', 200) "
    "from agent_ids, generate_series(1, 5) n",
    "insert into kept_answers select tenants.id, 'key ' || n, repeat('0', 64), 200, '{{}}', 'b', '{now}' "
    "from tenants, generate_series(1, 400) n",
    "insert into tenants select 'idle' || n, '{now}' from generate_series(1, 2000) n",
    "analyze",
)


@functools.cache
def filled() -> str:
    """A database with enough in it for a scan to be worth less than an index."""
    url = postgresql.create(f"agent_platform_plans_{os.getpid()}")
    engine_of(url).migrate(resource("migrations"))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("set synchronous_commit = off")
        for statement in _FILL:
            connection.execute(statement.format(now="2026-11-24T12:00:00.000000Z"))
    return url


@pytest.fixture
def session() -> Iterator["psycopg.Connection[Any]"]:
    if postgresql.server() is None:
        pytest.skip(postgresql.HOW_TO_RUN)
    with psycopg.connect(filled(), autocommit=True) as connection:
        for setting, value in _SETTINGS.items():
            connection.execute("select set_config(%s, %s, false)", (setting, value))
        yield connection


def nodes(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A step of a plan, and those below it."""
    yield step
    for below in step.get("Plans", []):
        yield from nodes(below)


def explained(session: "psycopg.Connection[Any]", query: Query) -> list[dict[str, Any]]:
    """The steps of the plan for any values, as the service would have it: by its roles, under row-level security."""
    statement = PostgresqlQuery(query)
    # as a tenant's reads are run; the rest is run as it stands
    is_wrapped = query.scoped and not query.writes
    sql = statement._sql_of_many if is_wrapped else statement._sql
    return explain(session, sql, len(query.parameters) + 2 * is_wrapped, scoped=query.scoped)


def explain(session: "psycopg.Connection[Any]", sql: str, parameters: int, *, scoped: bool) -> list[dict[str, Any]]:
    """The steps of the plan of a statement with so many parameters, as a tenant's or the operator's."""
    nulls = ", ".join(["null"] * parameters)
    with session.transaction(force_rollback=True):
        session.execute(f"set local role agent_platform_{'tenant' if scoped else 'operator'}")
        session.execute("select set_config('agent_platform.tenant_id', 't7', true)")
        session.execute(f"prepare asked as {sql}")
        given = f"({nulls})" if nulls else ""
        row = session.execute(f"explain (format json, costs off) execute asked{given}").fetchone()
        session.execute("deallocate asked")
    assert row is not None
    return list(nodes(row[0][0]["Plan"]))


@pytest.mark.parametrize("name", sorted(name for name, query in OTHERS.items() if query.scoped and not query.writes))
def test_a_tenants_read_says_whose_it_is_before_anything_is_read(session: "psycopg.Connection[Any]", name: str) -> None:
    filtered, *below = explained(session, OTHERS[name])
    assert filtered["Node Type"] == "Result"
    assert re.fullmatch(r"\(\$\d+ > 0\)", filtered["One-Time Filter"])
    # that is run as the filter asks for it; all else is below
    assert "CTE entered" in [step.get("Subplan Name") for step in below]


# what shares a transaction with others' queries
LOOK_UPS = sorted(name for name, query in OTHERS.items() if query.finds_one)


def test_what_finds_one_is_known() -> None:
    """Whoever adds a query to these says that it may hold up other tenants' requests, and has to be quick."""
    assert LOOK_UPS == [
        "agent_exists",
        "agent_has_runs",
        "get_agent",
        "get_agent_to_run",
        "get_key",
        "get_run",
        "get_tool",
        "tool_exists",
        "tool_is_used",
    ]


@pytest.mark.parametrize("name", LOOK_UPS)
def test_what_finds_one_looks_it_up_by_its_id(session: "psycopg.Connection[Any]", name: str) -> None:
    found = looked_up(explained(session, OTHERS[name]))
    assert found
    for each in found:
        assert re.search(r"\(tenant_id = \?\) AND \((id|agent_id|tool_id) = \?\)", each), found


@pytest.mark.parametrize("listing", ["list_runs", "list_agent_runs", "list_runs_with_status"])
def test_a_page_in_one_query_is_a_loop_beside_its_values(session: "psycopg.Connection[Any]", listing: str) -> None:
    """So its rows come in the list's order; and before anything is read, it says for whom."""
    names = ("agent_exists", "total_runs", listing)
    statement = TogetherQuery([OTHERS[name] for name in names])
    steps = explain(session, statement._sql_of_many, 2 + len(statement._parameters), scoped=True)
    assert re.fullmatch(r"\(\$\d+ > 0\)", steps[0]["One-Time Filter"])
    (joined,) = [step for step in steps if "Join Type" in step and step["Join Type"] == "Left"]
    assert joined["Node Type"] == "Nested Loop"
    assert walks(looked_up(steps)) == []
    assert not any("Sort" in step["Node Type"] for step in steps)


def looked_up(steps: list[dict[str, Any]]) -> list[str]:
    """What a plan reads, each as the index and what is looked up in it: the index's first column, or nothing is."""
    found = []
    for step in steps:
        if "Index" in step["Node Type"]:
            condition = re.sub(r"\(\$\d+\)::text|\$\d+|[a-z_]\w*\.\w+", "?", step.get("Index Cond", ""))
            found.append(f"{step['Index Name']} {condition}".strip())
        elif step["Node Type"] in ("Seq Scan", "Bitmap Heap Scan"):
            found.append(f"{step['Node Type']} of {step['Relation Name']}")
    return found


def walks(found: list[str]) -> list[str]:
    """Those that read a table whole, or an index from its first tenant to its last."""
    leads = re.compile(r"tenants_pkey \(id = \?|api_keys_by_hash \(hash = \?|\w+ \(+tenant_id = \?")
    return [each for each in found if not leads.match(each)]


# the operator's, who looks through all keys for one
@pytest.mark.parametrize("name", sorted(set(OTHERS) - SHORT - {"find_key_of_any_tenant"}))
def test_no_query_walks_through_a_table_of_postgresql(session: "psycopg.Connection[Any]", name: str) -> None:
    found = looked_up(explained(session, OTHERS[name]))
    assert walks(found) == []
    # what does not insert looks something up
    assert found or OTHERS[name].sql.startswith("insert")


def test_the_test_would_see_a_walk_through_postgresql(session: "psycopg.Connection[Any]") -> None:
    session.execute("set enable_seqscan = on")
    for sql in (
        "select label from api_keys where id = 1",
        "select id from api_keys order by tenant_id, id limit 5",
        "select id from tenants where created_at > '2026'",
    ):
        query = replace(OTHERS["list_tenants"], sql=sql)
        assert len(walks(looked_up(explained(session, query)))) == 1, sql


_OF_TENANT = r"\(tenant_id = \?\)"


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("list_runs", rf"runs_pkey \({_OF_TENANT} AND \(id > \?\) AND \(id < \?\)\)"),
        ("list_agent_runs", rf"runs_by_agent \({_OF_TENANT} AND \(agent_id = \?\) AND \(id > \?\) AND \(id < \?\)\)"),
        # although all runs there are of one status
        ("list_runs_with_status", rf"runs_by_status \({_OF_TENANT} AND \(status = \?\) AND \(id > \?\) AND \(id < \?\)\)"),
        ("count_runs_between", rf"runs_pkey \({_OF_TENANT} AND \(id > \?\) AND \(id < \?\)\)"),
        ("total_runs", rf"run_counts_pkey \({_OF_TENANT} AND \(agent_id = \?\)\)"),
        ("list_tools", rf"tools_pkey \({_OF_TENANT} AND \(id > \?\)\)"),
        ("list_agents", rf"agents_pkey \({_OF_TENANT} AND \(id > \?\)\)"),
        ("unknown_tools", rf"tools_pkey \({_OF_TENANT} AND \(id = \?\)\)"),
        ("get_last_run_before", rf"runs_by_time \({_OF_TENANT} AND \(created_at < \?\)\)"),
        ("delete_runs", rf"runs_pkey \({_OF_TENANT} AND \(id > \?\) AND \(id <= \?\)\)"),
        ("list_usage_by_day", rf"usage_pkey \({_OF_TENANT} AND \(day > \?\) AND \(day >= \?\) AND \(day <= \?\)\)"),
        ("find_api_key", r"api_keys_by_hash \(hash = \?\)"),
    ],
)
def test_a_page_of_postgresql_begins_where_its_cursor_says(
    session: "psycopg.Connection[Any]", name: str, index: str
) -> None:
    steps = explained(session, OTHERS[name])
    assert any(re.fullmatch(index, each) for each in looked_up(steps)), looked_up(steps)
    # no page is sorted, which would read all that comes behind it
    assert name == "unknown_tools" or not any("Sort" in step["Node Type"] for step in steps)
