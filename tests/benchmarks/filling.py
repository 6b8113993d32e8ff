"""PostgreSQL databases with a history: many tenants, each with the same agents and tools, and their runs in turn.

The server makes the rows itself, from a few kinds of runs; its triggers count them and its checks see each.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import psycopg

from service.auth import key_hash, key_prefix, new_key
from service.resources import resource
from service.storage.engines import engine_of
from tests.benchmarks.history import AGENTS, FAILED_EVERY, TOOLS, kinds
from tests.benchmarks.shared import KEY, TENANT
from tests.support import postgresql

_BATCH = 100_000
# the same in all databases, so that all servers can be asked alike
_KEYS = [KEY]
# and the same time, so that all answer alike
_DEFINED_AT = "2026-01-01T00:00:00.000000Z"

_TENANTS = """
create temporary table numbered on commit preserve rows as
select number, case when number = 1 then %(first)s else %(first)s || '-' || number end as id
from generate_series(1, %(tenants)s) as number;
"""
_DEFINITIONS = (
    "insert into tenants (id, created_at) select id, %(now)s from numbered order by number",
    """
    insert into api_keys (tenant_id, prefix, hash, label, created_at)
    select numbered.id, prefix, hash, 'benchmark', %(now)s
    from numbered
    join unnest(%(prefixes)s::text[], %(hashes)s::text[]) with ordinality as keys (prefix, hash, number) using (number)
    """,
    """
    insert into tools (tenant_id, id, name, description, created_at, updated_at)
    select numbered.id, (number - 1) * %(tools_each)s + tool.id, tool.name, tool.description, %(now)s, %(now)s
    from numbered
    cross join json_to_recordset(%(tools)s) as tool (id bigint, name text, description text)
    """,
    """
    insert into agent_ids (tenant_id, id)
    select numbered.id, (number - 1) * %(agents_each)s + place
    from numbered
    cross join generate_series(1, %(agents_each)s) as place
    """,
    """
    insert into agents (tenant_id, id, name, role, description, created_at, updated_at)
    select numbered.id, (number - 1) * %(agents_each)s + agent.id, name, role, description, %(now)s, %(now)s
    from numbered
    cross join json_to_recordset(%(agents)s) as agent (id bigint, name text, role text, description text)
    """,
    """
    insert into agent_tools (tenant_id, agent_id, tool_id)
    select numbered.id, (number - 1) * %(agents_each)s + agent.id, (number - 1) * %(tools_each)s + tool.id
    from numbered
    cross join json_to_recordset(%(agents)s) as agent (id bigint, tools json)
    cross join json_to_recordset(agent.tools) as tool (id bigint)
    """,
)
# run number 0 is the first tenant's first one, number 1 the second one's; a failed run of each agent in turn, too
_RUNS = """
insert into runs (
    tenant_id, id, agent_id, agent_name, model, status, prompt_tokens, completion_tokens, created_at, duration_ms,
    task, response, error, steps, prompt
)
select
    numbered.id, run + 1, (number - 1) * %(agents_each)s + agent_id, agent_name, model, status, prompt_tokens,
    completion_tokens, to_char(timestamp '2026-01-01' + run * interval '1 second', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    duration_ms, task, response, error, steps, prompt
from generate_series(%(start)s::bigint, %(end)s::bigint - 1) as run
cross join lateral (select run %% %(tenants)s + 1 as number, run / %(tenants)s as turn) as whose
join numbered using (number)
join json_to_recordset(%(kinds)s) as kind (
    failed boolean, agent_id bigint, agent_name text, model text, status text, prompt_tokens bigint,
    completion_tokens bigint, duration_ms bigint, task text, response text, error text, steps text, prompt text
) on failed = (turn %% %(failed_every)s = 0) and agent_id = (turn + turn / %(failed_every)s) %% %(agents_each)s + 1
order by run
"""
_IDS_GO_ON = "select setval('{0}_id_seq', (select max(id) from {0}))"


@dataclass(frozen=True)
class Filled:
    """A database of the benchmark's own, and a key of each of its tenants, the first one's before the others'."""

    url: str
    keys: list[str]

    def first_agent(self, tenant: int) -> int:
        """The id of the first agent of the tenant with the number `tenant`, from 0."""
        return tenant * len(AGENTS) + 1

    @property
    def callers(self) -> tuple[tuple[str, int], ...]:
        """Each tenant's key with its first agent."""
        return tuple((key, self.first_agent(tenant)) for tenant, key in enumerate(self.keys))

    def ask(self, statement: str) -> Any:
        """The first row of what an operator asks the database."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(statement).fetchone()


def filled(name: str, tenants: int, runs: int) -> Filled:
    """A database of `tenants` with `runs` in all, which goes when this process ends."""
    url = postgresql.create(f"agent_platform_benchmark_{os.getpid()}_{name}")
    engine_of(url).migrate(resource("migrations"))
    while len(_KEYS) < tenants:
        _KEYS.append(new_key())
    keys = _KEYS[:tenants]
    given = {
        "first": TENANT,
        "now": _DEFINED_AT,
        "tenants": tenants,
        "prefixes": [key_prefix(key) for key in keys],
        "hashes": [key_hash(key) for key in keys],
        "tools": json.dumps([asdict(tool) for tool in TOOLS]),
        "agents": json.dumps([asdict(agent) for agent in AGENTS]),
        "tools_each": len(TOOLS),
        "agents_each": len(AGENTS),
        "failed_every": FAILED_EVERY,
        "kinds": json.dumps(list(_kinds())),
    }
    # placeholders are filled in by the driver: a temporary table takes no parameters
    with psycopg.connect(url, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
        # what the triggers count of a batch stays in memory, and nobody waits for these rows
        connection.execute("set work_mem = '512MB'")
        connection.execute("set synchronous_commit = off")
        connection.execute(_TENANTS, given)
        for definition in _DEFINITIONS:
            connection.execute(definition, given)
        for start in range(0, runs, _BATCH):
            connection.execute(_RUNS, given | {"start": start, "end": min(start + _BATCH, runs)})
        for table in ("tools", "agent_ids", "runs"):
            connection.execute(_IDS_GO_ON.format(table))
        # as autovacuum leaves a database that has been there for a while
        connection.execute("vacuum analyze")
        connection.execute("checkpoint")
    return Filled(url, keys)


def _kinds() -> Iterator[dict[str, Any]]:
    for failed, rows in enumerate(kinds()):
        for row in rows:
            yield row | {"failed": bool(failed)}
