"""Every query that serves a route has an index that fits: the plans are read."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from service.resources import resource
from service.storage.queries import load_queries

QUERIES = load_queries(resource("sql"))
# what a plan may scan: rows that the query was given, one row made of constants, and what a search inside it found
# the operator's list of tenants, and yoyo's few rows
SHORT = {"list_tenants", "list_migrations"}
_BOUNDED = re.compile(r"SCAN (json_each|CONSTANT ROW|\(subquery-\d+\))")


def plan(path: Path, name: str) -> list[str]:
    query = QUERIES[name]
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(f"explain query plan {query.sql}", dict.fromkeys(query.parameters)).fetchall()
    return [row[3] for row in rows]


@pytest.mark.parametrize("name", sorted(set(QUERIES) - SHORT))
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
        ("find_api_key", r"SEARCH api_keys USING INDEX \S+ \(hash=\?\)"),
    ],
)
def test_a_page_begins_where_its_cursor_says_without_walking_there(path: Path, name: str, index: str) -> None:
    assert re.fullmatch(index, plan(path, name)[0])
