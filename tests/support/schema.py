"""The whole schema of a database as values that can be compared: what a migration makes, and what it leaves behind."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.support.direct import direct

_OURS = "relnamespace = 'public'::regnamespace and relname not like '%yoyo%'"
# what PostgreSQL knows of each kind of thing, its rights included
_CATALOGUE = (
    f"select 'relation', relname, relkind, relrowsecurity, relforcerowsecurity, reloptions::text, relacl::text "
    f"from pg_class where {_OURS} and relkind <> 'i'",
    "select 'column', relname, attname, format_type(atttypid, atttypmod), attnotnull, attidentity, "
    "attcollation::regcollation::text, pg_get_expr(adbin, adrelid) "
    "from pg_attribute join pg_class on pg_class.oid = attrelid "
    f"left join pg_attrdef on adrelid = attrelid and adnum = attnum where {_OURS} and relkind = 'r' and attnum > 0",
    "select 'constraint', relname, conname, pg_get_constraintdef(pg_constraint.oid) "
    f"from pg_constraint join pg_class on pg_class.oid = conrelid where {_OURS}",
    "select 'index', indexname, indexdef from pg_indexes where schemaname = 'public' and tablename not like '%yoyo%'",
    "select 'trigger', tgname, pg_get_triggerdef(pg_trigger.oid) from pg_trigger where not tgisinternal",
    "select 'function', proname, pg_get_functiondef(oid), proacl::text from pg_proc "
    "where pronamespace = 'public'::regnamespace",
    "select 'view', viewname, definition from pg_views where schemaname = 'public'",
    "select 'policy', tablename, policyname, roles::text, cmd, qual, with_check from pg_policies "
    "where schemaname = 'public'",
    "select 'sequence', sequencename, max_value, increment_by, cycle from pg_sequences where schemaname = 'public'",
)


def schema(database: Path | str) -> list[tuple[Any, ...]]:
    """Everything but yoyo's tables, in an order of its own."""
    if isinstance(database, Path):
        with closing(sqlite3.connect(database)) as connection:
            return connection.execute(
                "select name, sql from sqlite_master where name not like '%yoyo%' order by name"
            ).fetchall()
    with direct(database) as opened:
        return sorted((row for query in _CATALOGUE for row in opened.run(query)), key=repr)
