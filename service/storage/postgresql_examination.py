"""What `agent-platform doctor` finds out about a database on PostgreSQL. It reads the catalogue, and no tenant's rows."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from service.storage.examination import Finding, migrations, ok, problem, warning
from service.storage.migrations import known_migrations
from service.storage.postgresql_migrations import OLDEST, clear, connect, shown, tables_and_migrations

# of each process, at the most (postgresql.py)
_CONNECTIONS = 8
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
where backend_type = 'client backend' and pid <> pg_backend_pid() and application_name <> 'agent-platform'
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
            yield _row_security(connection)
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
    room, needed = int(settings["max_connections"]) - reserved, workers * _CONNECTIONS
    row = connection.execute(_OTHERS).fetchone()
    others = 0 if row is None else row[0]
    said = f"{workers} worker{'s' * (workers > 1)} may want {needed} connections, and there are {room}"
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


def _row_security(connection: Connection) -> Finding:
    if found := [name for (name,) in connection.execute(_UNPROTECTED.encode())]:
        return problem(
            f"Row-level security is not forced on {', '.join(found)}.",
            f"Run: {'; '.join(f'alter table {name} enable row level security, force row level security' for name in found)}",
        )
    return ok("Row-level security is forced on every table.")


def _validity(connection: Connection) -> Finding:
    if found := [name for (name,) in connection.execute(_INVALID)]:
        return problem(
            f"Not valid: {', '.join(found)}.",
            "Run `reindex index NAME` for an index, `alter table TABLE validate constraint NAME` for a constraint.",
        )
    return ok("All indexes and constraints are valid.")
