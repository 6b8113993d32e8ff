"""How often each tool and each agent has changed: what its ETag shows and If-Match is compared with (RFC 9110 section 13).

A step in Python, for SQLite knows no `add column if not exists`, and each step must bear being run again: yoyo applies a
migration and records it in two transactions, and a crash between them applies it once more.
"""

from typing import Any

from yoyo import step

__depends__ = {"0004_flat_history"}

# an agent's version grows with its own fields, with the list of its tools, and with the names of these: with all that the
# API shows of it. A number and not a hash, so that the statement that writes can compare it.
COLUMN = "version integer not null default 1 constraint version_counts_from_1 check (version >= 1)"

# as in 0002, with the version
VIEW = """
create view agent_details as
select
    agents.tenant_id, agents.id, agents.name, agents.role, agents.description,
    (
        select json_group_array(tool_id)
        from (
            select tool_id from agent_tools
            where tenant_id = agents.tenant_id and agent_id = agents.id order by tool_id
        )
    ) as tool_ids,
    (
        select json_group_array(json_object('id', id, 'name', name))
        from (
            select tools.id, tools.name
            from agent_tools
            join tools on tools.tenant_id = agent_tools.tenant_id and tools.id = agent_tools.tool_id
            where agent_tools.tenant_id = agents.tenant_id and agent_tools.agent_id = agents.id
            order by agent_tools.tool_id
        )
    ) as tools,
    {version}agents.created_at, agents.updated_at
from agents
"""


def add(connection: Any) -> None:
    cursor = connection.cursor()
    for table in ("tools", "agents"):
        if not _has_version(cursor, table):
            cursor.execute(f"alter table {table} add column {COLUMN}")
    cursor.execute("drop view if exists agent_details")
    cursor.execute(VIEW.format(version="agents.version, "))


def remove(connection: Any) -> None:
    cursor = connection.cursor()
    # SQLite drops no column that a view shows
    cursor.execute("drop view if exists agent_details")
    for table in ("tools", "agents"):
        if _has_version(cursor, table):
            cursor.execute(f"alter table {table} drop column version")
    cursor.execute(VIEW.format(version=""))


def _has_version(cursor: Any, table: str) -> bool:
    cursor.execute("select count(*) from pragma_table_info(?) where name = 'version'", (table,))
    return bool(cursor.fetchone()[0])


steps = [step(add, remove)]
