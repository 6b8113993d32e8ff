"""Who may do what, and who did: keys that expire and can do less than everything, tenants with limits of their own that can
be shut out, and the log of every change.

The columns are added in Python, for SQLite knows no `add column if not exists`, and each step must bear being run again.
"""

from typing import Any

from yoyo import step

__depends__ = {"0007_keys_by_tenant"}

_IS_UTC = "check ({0} like '____-__-__T__:__:__.______Z')"

COLUMNS = {
    "api_keys": {
        # what the key opens, as words in the order of the alphabet; a key from before this could do everything
        "scopes": """text not null default 'keys read run write' constraint scopes_are_known check (
            scopes <> '' and scopes = trim(scopes) and replace(replace(replace(replace(
                ' ' || scopes || ' ', ' keys ', ' '), ' read ', ' '), ' run ', ' '), ' write ', ' ') = ' '
        )""",
        # null: never. A key that is rotated gets an end, too.
        "expires_at": f"text constraint expires_at_is_utc {_IS_UTC.format('expires_at')}",
        # to the minute or so: a write for each request would cost more than most requests do
        "last_used_at": f"text constraint last_used_at_is_utc {_IS_UTC.format('last_used_at')}",
    },
    "tenants": {
        # shut out: its keys open nothing until it is enabled again
        "disabled_at": f"text constraint disabled_at_is_utc {_IS_UTC.format('disabled_at')}",
        # about to be deleted, and the one state in which what it has in audit_log may go
        "deleted_at": f"text constraint deleted_at_is_utc {_IS_UTC.format('deleted_at')}",
        # runs in so many seconds, both or neither; null: what the service is told for all
        "run_limit": "integer constraint run_limit_is_sane check (run_limit between 1 and 1000000)",
        "run_window": """integer constraint run_window_is_sane check (run_window between 1 and 86400)
            constraint limit_and_window_come_together check ((run_limit is null) = (run_window is null))""",
    },
}

# One row a change, written by the transaction that makes it. The resource is named and not referred to: it may be gone.
AUDIT_LOG = """
create table if not exists audit_log (
    -- within the file ids grow in the order of the changes: newest first is by id.
    id integer not null primary key autoincrement,
    tenant_id text not null references tenants (id),
    created_at text not null,
    -- a key of the tenant (which one: key_id), a demo key, or whoever runs the command line.
    actor text not null,
    key_id integer,
    action text not null,
    resource text not null,
    resource_id integer,
    -- of the HTTP request; the command line has none.
    request_id text,
    -- the resource as the API shows it, null where there was or is none.
    before text,
    after text,
    constraint id_fits_a_json_number check (id between 1 and 9007199254740991),
    constraint created_at_is_utc check (created_at like '____-__-__T__:__:__.______Z'),
    constraint actor_is_known check (actor in ('key', 'demo', 'operator')),
    constraint a_key_is_named check ((actor = 'key') = (key_id is not null)),
    constraint before_is_json check (before is null or json_valid(before)),
    constraint after_is_json check (after is null or json_valid(after)),
    unique (tenant_id, id)
) strict
"""

TRIGGERS = (
    """
    create trigger if not exists audit_log_is_not_changed before update on audit_log
    begin
        select raise(abort, 'audit_log is append-only');
    end
    """,
    """
    create trigger if not exists audit_log_goes_with_its_tenant before delete on audit_log
    when not exists (select 1 from tenants where id = old.tenant_id and deleted_at is not null)
    begin
        select raise(abort, 'audit_log is append-only');
    end
    """,
)


def add(connection: Any) -> None:
    cursor = connection.cursor()
    for table, columns in COLUMNS.items():
        for name, definition in columns.items():
            if not _has_column(cursor, table, name):
                cursor.execute(f"alter table {table} add column {name} {definition}")
    cursor.execute(AUDIT_LOG)
    for trigger in TRIGGERS:
        cursor.execute(trigger)


def remove(connection: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("drop table if exists audit_log")
    for table, columns in COLUMNS.items():
        # the last one first: its check names the one before it
        for name in reversed(columns):
            if _has_column(cursor, table, name):
                cursor.execute(f"alter table {table} drop column {name}")


def _has_column(cursor: Any, table: str, name: str) -> bool:
    cursor.execute("select count(*) from pragma_table_info(?) where name = ?", (table, name))
    return bool(cursor.fetchone()[0])


steps = [step(add, remove)]
