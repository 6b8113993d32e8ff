"""How a transaction on PostgreSQL begins: it says for which tenant it is, and ends with that."""

import asyncpg

# the tenant ends with the transaction; whoever writes for it waits until nobody else does
PREPARED = """prepare reads(text) as select set_config('agent_platform.tenant_id', $1, true);
prepare writes(text) as select set_config('agent_platform.tenant_id', $1, true),
    pg_advisory_xact_lock(hashtextextended($1, 7203))"""


async def begin(connection: asyncpg.Connection, start: str, does: str, tenant_id: str | None) -> None:
    """Begins a transaction, where the end of the last one has not, and says who `does` it: see PREPARED."""
    who = "set local role agent_platform_operator" if tenant_id is None else f"execute {does}({_quoted(tenant_id)})"
    await connection.execute(who if connection.is_in_transaction() else f"{start}; {who}")


def _quoted(text: str) -> str:
    """A literal of SQL, where a backslash is one: the service's connections say `standard_conforming_strings`."""
    return "'" + text.replace("'", "''") + "'"
