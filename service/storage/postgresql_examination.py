"""What `agent-platform doctor` finds out about a database on PostgreSQL. It reads the catalogue, and no tenant's rows."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from service.storage.examination import Finding, migrations, ok, problem, warning
from service.storage.migrations import known_migrations
from service.storage.postgresql import CONNECTIONS
from service.storage.postgresql_migrations import OLDEST, clear, connect, shown, tables_and_migrations

# seconds between two clocks that nobody notices
_APART = 2.0

_SETTINGS = """
select name, setting from pg_settings
where name in (
    'max_connections', 'superuser_reserved_connections', 'reserved_connections', 'transaction_read_only', 'fsync',
    'full_page_writes', 'synchronous_commit'
)
"""
_OTHERS = """
select count(*) from pg_stat_activity
where backend_type = 'client backend' and pid <> pg_backend_pid()
    and not (application_name = 'agent-platform' and datname is not distinct from current_database())
"""
_ROLES = """
select
    wanted, rolname is not null, coalesce(rolsuper or rolbypassrls, false), coalesce(rolcanlogin, false),
    rolname is not null and pg_has_role(current_user, rolname, %(needed)s)
from unnest(array['agent_platform_tenant', 'agent_platform_operator']) as wanted
left join pg_roles on rolname = wanted
"""
_UNPROTECTED = """
select relname from pg_class
where relnamespace = current_schema()::regnamespace and relkind in ('r', 'p') and relname not like '%yoyo%'
    and not (relrowsecurity and relforcerowsecurity)
order by relname
"""
# which rows each role sees of each table: one policy more may open others', and one less shuts everybody out
_POLICIES = """
select tablename, policyname, roles::text, coalesce(qual, with_check) from pg_policies
where schemaname = current_schema() and permissive = 'PERMISSIVE'
"""
_TENANTS_OWN = "(%s = current_setting('agent_platform.tenant_id'::text, true))"
_TENANTS_TABLES = (
    *("agent_ids", "agent_tools", "agents", "api_keys", "audit_log", "kept_answers", "run_counts", "runs", "tools", "usage"),
)
_EXPECTED = {
    *((table, "its_own", "{agent_platform_tenant}", _TENANTS_OWN % "tenant_id") for table in _TENANTS_TABLES),
    ("tenants", "its_own", "{agent_platform_tenant}", _TENANTS_OWN % "id"),
    ("tenants", "all_of_them", "{agent_platform_operator}", "true"),
    ("api_keys", "all_of_them", "{agent_platform_operator}", "true"),
    ("audit_log", "noted", "{agent_platform_operator}", "true"),
}
# what each role must be able to do with the tables that it asks; the last one needs it for /ready
_RIGHTS = """
select wanted.role, wanted.relation, wanted.privilege
from (
    select 'agent_platform_tenant' as role, relation, privilege
    from unnest(%(tables)s::text[]) as relation
    cross join unnest(array['select', 'insert', 'delete']) as privilege
    where (relation, privilege) <> ('api_keys', 'delete')
    union all
    select 'agent_platform_tenant', relation, 'update'
    from unnest(array['agents', 'kept_answers', 'run_counts', 'tools', 'usage']) as relation
    union all
    select 'agent_platform_tenant', relation, 'select' from unnest(array['agent_details', 'tenants']) as relation
    union all
    select 'agent_platform_operator', relation, privilege
    from unnest(array['api_keys', 'tenants']) as relation
    cross join unnest(array['select', 'insert', 'update', 'delete']) as privilege
    union all
    values ('agent_platform_operator', 'audit_log', 'insert'), ('agent_platform_operator', '_yoyo_migration', 'select')
) as wanted
where to_regclass(wanted.relation) is not null and exists (select 1 from pg_roles where rolname = wanted.role)
    and not has_table_privilege(wanted.role, wanted.relation, wanted.privilege)
union all
select 'agent_platform_tenant', 'function ' || wanted, 'execute'
from unnest(array['is_blank(text)', 'is_utc(text)', 'not_before_the_last_run(text, text)']) as wanted
where to_regprocedure(wanted) is not null and exists (select 1 from pg_roles where rolname = 'agent_platform_tenant')
    and not has_function_privilege('agent_platform_tenant', wanted, 'execute')
order by 1, 2, 3
"""
# the smallest of the limits of connections that are set, for the user and for the database
_LIMITS = """
select min(most) from (
    select rolconnlimit as most from pg_roles where rolname = current_user
    union all select datconnlimit from pg_database where datname = current_database()
) as limits
where most >= 0
"""
_INVALID = """
select 'the index ' || indexrelid::regclass from pg_index
join pg_class on pg_class.oid = indrelid
where relnamespace = current_schema()::regnamespace and not indisvalid
union all
select 'the constraint ' || conname || ' of ' || conrelid::regclass from pg_constraint
where connamespace = current_schema()::regnamespace and not convalidated
"""
Connection = psycopg.Connection[Any]


def examine(url: str, folder: Path, workers: int) -> Iterator[Finding]:
    """Looks at the database at `url`, for so many workers.

    Raises MigrationError for one that does not let us in, or that is another program's.
    """
    with clear(url, "looked at"), connect(url) as connection:
        tables, applied = tables_and_migrations(connection)
        yield migrations(shown(url), tables, applied, known_migrations(folder))
        yield _version(connection.info.server_version)
        yield _clock(connection)
        settings = dict(connection.execute(_SETTINGS).fetchall())
        if settings["transaction_read_only"] == "on":
            yield problem("The database may only be read, as a standby.", "Name the server that may be written to.")
        yield _durability(settings)
        yield _room(connection, settings, workers)
        yield from _roles(connection)
        if tables:
            yield _rights(connection)
            yield _row_security(connection, tables)
            yield _validity(connection)


def _version(version: int) -> Finding:
    said = f"PostgreSQL is {version // 10_000}.{version % 10_000}."
    return ok(said) if version >= OLDEST else problem(said, f"Upgrade it: {OLDEST // 10_000} or newer is needed.")


def _clock(connection: Connection) -> Finding:
    asked = time.time()
    row = connection.execute("select extract(epoch from clock_timestamp())::double precision").fetchone()
    # it was read somewhere between the question and the answer
    apart = 0.0 if row is None else abs(row[0] - (asked + time.time()) / 2)
    if apart <= _APART:
        return ok("Its clock and this machine's agree.")
    return warning(f"Its clock and this machine's are {apart:.0f} s apart.", "Let both follow a time server.")


def _durability(settings: dict[str, str]) -> Finding:
    if off := [name for name in ("fsync", "full_page_writes", "synchronous_commit") if settings[name] == "off"]:
        return warning(
            f"A write that was answered may be lost when the server's machine stops: {' and '.join(off)} is off.",
            "Turn it on, but for a database that may be lost.",
        )
    return ok("What was answered is on disk.")


def _room(connection: Connection, settings: dict[str, str], workers: int) -> Finding:
    reserved = int(settings["superuser_reserved_connections"]) + int(settings.get("reserved_connections", 0))
    # one more of all of them has the turn to delete old runs
    room, needed = int(settings["max_connections"]) - reserved, workers * CONNECTIONS + 1
    row = connection.execute(_OTHERS).fetchone()
    others = 0 if row is None else row[0]
    said = f"{workers} worker{'s' * (workers > 1)} may want {needed} connections, and there are {room}"
    limit = connection.execute(_LIMITS).fetchone()
    if limit is not None and limit[0] is not None and limit[0] < needed:
        return problem(
            f"{said}, of which this user or this database may have {limit[0]}.",
            "Raise it (`alter database … connection limit`, `alter role … connection limit`), or take fewer --workers.",
        )
    if needed > room:
        return problem(f"{said}.", "Raise max_connections, or take fewer --workers.")
    if needed > room - others:
        return warning(f"{said}, of which others have {others}.", "Raise max_connections, or take fewer --workers.")
    return ok(f"{said}, of which others have {others}.")


def _roles(connection: Connection) -> Iterator[Finding]:
    needed = "set" if connection.info.server_version >= 160_000 else "member"
    found = connection.execute(_ROLES, {"needed": needed}).fetchall()
    user = connection.info.user
    is_well = True
    for role, is_there, passes, may_log_in, is_ours in found:
        if not is_there:
            yield problem(f"The role {role} is missing.", "Run `agent-platform migrate`, as a user with createrole.")
        elif passes:
            yield problem(
                f"Row-level security does not bind the role {role}.", f"Run: alter role {role} nosuperuser nobypassrls"
            )
        elif not is_ours:
            yield problem(f"The user {user} may not become {role}.", f"Run: grant {role} to {user}")
        elif may_log_in:
            yield warning(f"The role {role} may log in.", f"Run: alter role {role} nologin")
        else:
            continue
        is_well = False
    if is_well:
        yield ok(f"The user {user} may become both roles, and row-level security binds them.")
    if connection.execute("select rolsuper from pg_roles where rolname = current_user").fetchone() == (True,):
        yield warning(
            f"The user {user} is a superuser, and the service needs none.",
            "Let it connect as a user who owns its database, or who has been granted the two roles.",
        )


def _rights(connection: Connection) -> Finding:
    missing = connection.execute(_RIGHTS, {"tables": list(_TENANTS_TABLES)}).fetchall()
    if not missing:
        return ok("Both roles have their rights.")
    return problem(
        f"The roles lack rights, as after a restore without them: {', '.join(' '.join(each) for each in missing)}.",
        f"Run: {'; '.join(f'grant {privilege} on {relation} to {role}' for role, relation, privilege in missing)}",
    )


def _row_security(connection: Connection, tables: set[str]) -> Finding:
    if found := [name for (name,) in connection.execute(_UNPROTECTED.encode())]:
        return problem(
            f"Row-level security is not forced on {', '.join(found)}.",
            f"Run: {'; '.join(f'alter table {name} enable row level security, force row level security' for name in found)}",
        )
    there = set(connection.execute(_POLICIES).fetchall())
    wanted = {each for each in _EXPECTED if each[0] in tables}
    if there != wanted:
        named = ", ".join(sorted({f"{name} on {table}" for table, name, *_ in there ^ wanted}))
        drops = [f"drop policy {name} on {table}" for table, name, *_ in sorted(there - wanted)]
        return problem(
            f"Which rows each role sees is not as this version has it: {named}.",
            f"Run: {'; '.join([*drops, *map(_created, sorted(wanted - there))])}",
        )
    return ok("Row-level security is forced on every table, and its policies are those of this version.")


def _created(policy: tuple[str, str, str, str]) -> str:
    table, name, roles, seen = policy
    how = f"for insert to {roles[1:-1]} with check" if name == "noted" else f"to {roles[1:-1]} using"
    return f"create policy {name} on {table} {how} ({seen})"


def _validity(connection: Connection) -> Finding:
    if found := [name for (name,) in connection.execute(_INVALID)]:
        return problem(
            f"Not valid: {', '.join(found)}.",
            "Run `reindex index NAME` for an index, `alter table TABLE validate constraint NAME` for a constraint.",
        )
    return ok("All indexes and constraints are valid.")
