"""Every key and every foreign key leads with the tenant, so that the schema can be spread over nodes."""

import re
from typing import Any

import pytest
from click.testing import CliRunner

from service.__main__ import cli
from tests.support import postgresql
from tests.support.direct import Direct, direct

TENANTS = "tenants"
Key = tuple[str, list[str]]
ForeignKey = tuple[str, list[str], str, list[str]]


def keys(beside: Direct, engine: str) -> list[Key]:
    """Every unique key: its table and its columns, in their order."""
    if engine == "postgresql":
        rows = beside.run(
            "select indrelid::regclass::text, array(select attname::text from unnest(indkey::smallint[]) with ordinality "
            "as part (number, place) join pg_attribute on attrelid = indrelid and attnum = number order by place) "
            "from pg_index join pg_class on pg_class.oid = indrelid "
            "where indisunique and relnamespace = 'public'::regnamespace order by 1, 2"
        )
        return [(table, columns) for table, columns in rows if "yoyo" not in table]
    return [
        (table, [column for (column,) in beside.run(f"select name from pragma_index_info('{index}') order by seqno")])
        for table in beside.tables()
        for index, unique in beside.run(f"select name, \"unique\" from pragma_index_list('{table}') order by name")
        if unique
    ]


def foreign_keys(beside: Direct, engine: str) -> list[ForeignKey]:
    """Every foreign key: its table and its columns, and those that it refers to."""
    if engine == "postgresql":

        def columns(table: str, numbers: str) -> str:
            return (
                f"array(select attname::text from unnest({numbers}) with ordinality as part (number, place) "
                f"join pg_attribute on attrelid = {table} and attnum = number order by place)"
            )

        return beside.run(
            f"select conrelid::regclass::text, {columns('conrelid', 'conkey')}, "
            f"confrelid::regclass::text, {columns('confrelid', 'confkey')} "
            "from pg_constraint where contype = 'f' and connamespace = 'public'::regnamespace order by 1, 2"
        )
    found = []
    for table in beside.tables():
        parts: dict[int, list[tuple[Any, ...]]] = {}
        query = f'select id, "table", "from", "to" from pragma_foreign_key_list(\'{table}\') order by id, seq'
        for number, *part in beside.run(query):
            parts.setdefault(number, []).append(tuple(part))
        found += [(table, [part[1] for part in each], each[0][0], [part[2] for part in each]) for each in parts.values()]
    return found


def tenant_of(table: str) -> str:
    """The column that says whose a row is."""
    return "id" if table == TENANTS else "tenant_id"


def broken(beside: Direct, engine: str) -> list[Any]:
    """What does not lead with the tenant."""
    without_tenant = [key for key in keys(beside, engine) if key[1][0] != tenant_of(key[0])]
    across = [
        key for key in foreign_keys(beside, engine) if key[1][0] != tenant_of(key[0]) or key[3][0] != tenant_of(key[2])
    ]
    return [*without_tenant, *across]


def test_every_key_and_every_foreign_key_leads_with_the_tenant(beside: Direct, engine: str) -> None:
    assert broken(beside, engine) == []
    found = keys(beside, engine)
    assert {table for table, _ in found} == set(beside.tables())
    assert len(foreign_keys(beside, engine)) == 11
    for table in ("api_keys", "tools", "agent_ids", "agents", "runs", "audit_log"):
        # in SQLite the row id is the primary key, and this beside it is what foreign keys go through
        assert (table, ["tenant_id", "id"]) in found
    referred = {(table, tuple(columns)) for _, _, table, columns in foreign_keys(beside, engine)}
    assert referred <= {(table, tuple(columns)) for table, columns in found}


def test_every_row_says_whose_it_is(beside: Direct, engine: str) -> None:
    """Each table has the tenant, and refers by it to the tenants, itself or through what it belongs to."""
    links = foreign_keys(beside, engine)
    for table in set(beside.tables()) - {TENANTS}:
        beside.run(f"select tenant_id from {table}")
        reached = {table}
        for _ in beside.tables():
            reached |= {other for each, _, other, _ in links if each in reached}
        assert TENANTS in reached, table


@pytest.mark.parametrize(
    "statement",
    [
        "create table notes (tenant_id text not null, id integer not null, unique (id, tenant_id))",
        "create table notes (tenant_id text not null, id integer not null, unique (id))",
        "create unique index notes_of_tools on tools (name)",
        "create table notes (tenant_id text not null, agent_id integer not null, tool_id integer not null, "
        "foreign key (agent_id, tenant_id) references agent_ids (id, tenant_id))",
    ],
)
def test_the_test_would_see_a_key_that_does_not(statement: str, beside: Direct, engine: str) -> None:
    if "references" in statement:
        beside.run("create unique index notes_help on agent_ids (id, tenant_id)")
        assert len(broken(beside, engine)) == 1
    try:
        beside.run(statement)
        assert len(broken(beside, engine)) == (2 if "references" in statement else 1)
    finally:
        beside.run("drop table if exists notes")
        for index in ("notes_of_tools", "notes_help"):
            beside.run(f"drop index if exists {index}")
    assert broken(beside, engine) == []


@pytest.mark.skipif(postgresql.server() is None, reason=postgresql.HOW_TO_RUN)
def test_the_printed_distribution_spreads_every_table_once_by_its_tenant() -> None:
    printed = CliRunner().invoke(cli, ["migrate", "--print-distribution"])
    assert printed.exit_code == 0
    statements = [
        statement.strip()
        for statement in re.sub(r"--.*", "", printed.output).split(";")
        if statement.strip().startswith("select ")
    ]
    call = re.compile(r"select create_distributed_table\('(\w+)', '(\w+)', colocate_with => '(\w+)'\)")
    spread = [call.fullmatch(statement) for statement in statements]
    assert None not in spread
    found = [each.groups() for each in spread if each]
    with direct(postgresql.emptied()) as beside:
        tables, links = beside.tables(), foreign_keys(beside, "postgresql")
    assert sorted(table for table, _, _ in found) == tables
    order = [table for table, _, _ in found]
    for table, column, beside_ in found:
        assert column == tenant_of(table)
        # rows of a tenant stand together, or no foreign key could hold between them
        assert beside_ == ("none" if table == TENANTS else TENANTS)
    assert all(order.index(table) > order.index(other) for table, _, other, _ in links)
