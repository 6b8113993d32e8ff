"""The rules that the database itself keeps, on both engines: no way in can store what the API would refuse."""

from typing import Any

import pytest

from service.resources import resource
from service.times import utc_now
from tests.support.contract import Contract
from tests.support.direct import REFUSED, Direct

NOW = utc_now()
WHITE_SPACE = [
    chr(code)
    for code in (
        *range(9, 14),
        *range(28, 33),
        0x85,
        0xA0,
        0x1680,
        *range(0x2000, 0x200B),
        0x2028,
        0x2029,
        0x202F,
        0x205F,
        0x3000,
        0xFEFF,
    )
]
GOOD: dict[str, dict[str, Any]] = {
    "tools": {"tenant_id": "a", "name": "n", "description": "d", "created_at": NOW, "updated_at": NOW},
    "agents": {
        "id": 1,
        "tenant_id": "a",
        "name": "n",
        "role": "r",
        "description": "d",
        "created_at": NOW,
        "updated_at": NOW,
    },
    "runs": {
        "tenant_id": "a",
        "agent_id": 1,
        "agent_name": "n",
        "model": "gpt-4o",
        "status": "completed",
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "created_at": NOW,
        "duration_ms": 0,
        "task": "t",
        "response": "r",
        "error": None,
        "steps": "[]",
        "prompt": "p",
    },
}
TEXTS = [("tools", "name", 100), ("tools", "description", 2000), ("agents", "name", 100), ("agents", "role", 100)]
TEXTS += [("agents", "description", 2000), ("runs", "task", 20000), ("runs", "agent_name", 100)]


def insert(database: Direct, table: str, **changes: Any) -> None:
    database.add(table, **GOOD[table] | changes)


@pytest.fixture
def prepared(beside: Direct) -> Direct:
    """A database with a tenant and an agent's identity."""
    beside.add("tenants", id="a", created_at=NOW)
    beside.add("agent_ids", tenant_id="a")
    return beside


@pytest.mark.parametrize(("table", "column", "most"), TEXTS)
def test_the_database_refuses_the_texts_that_the_api_refuses(prepared: Direct, table: str, column: str, most: int) -> None:
    for text in ("", "x" * (most + 1), "nul\0inside", "".join(WHITE_SPACE), *WHITE_SPACE):
        # to PostgreSQL's driver a NUL is no text at all
        with pytest.raises(REFUSED, match=f"{column}_|NUL" if "\0" in text else f"{column}_"):
            insert(prepared, table, **{column: text})
    insert(prepared, table, **{column: "🔎" * most})


def test_white_space_is_the_same_to_the_database_and_the_spec(contract: Contract, beside: Direct, engine: str) -> None:
    validator = contract.validator(contract.spec["components"]["schemas"]["Name"])
    if engine == "sqlite":
        migration = (resource("migrations") / "0002_tools_and_agents.sql").read_text()
        listed = ",".join(str(ord(each)) for each in WHITE_SPACE)
        assert migration.count(f"char({listed})") == 5
    else:
        codes = "select code from generate_series(1, 69631) code where code not between 55296 and 57343"
        blank = beside.run(f"select code from ({codes}) as codes where is_blank(chr(code)) order by code")
        assert [chr(code) for (code,) in blank] == WHITE_SPACE
    assert [code for code in range(0x11000) if not 0xD800 <= code < 0xE000 and not validator.is_valid(chr(code))] == [
        0,
        *map(ord, WHITE_SPACE),
    ]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"status": "done", "response": None}, "status_is_known"),
        ({"status": "failed"}, "answer_fits_the_status"),
        ({"response": None}, "answer_fits_the_status"),
        ({"error": "{}"}, "answer_fits_the_status"),
        ({"status": "failed", "response": None, "error": "no json"}, "error_is_json|type json"),
        ({"steps": "{}"}, "steps_are_a_json_array"),
        ({"prompt_tokens": -1}, "tokens_are_counted"),
        ({"duration_ms": -1}, "duration_is_not_negative"),
        ({"created_at": "2026-11-22 10:00"}, "created_at_is_utc"),
        ({"duration_ms": "x"}, "INTEGER column|type bigint"),
        ({"id": 2**53}, "id_fits_a_json_number"),
    ],
)
def test_the_database_refuses_runs_that_can_not_have_happened(prepared: Direct, changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(REFUSED, match=rule):
        insert(prepared, "runs", **changes)


def test_the_database_refuses_a_fifty_first_tool(prepared: Direct) -> None:
    insert(prepared, "agents")
    for number in range(51):
        insert(prepared, "tools", name=f"tool {number}")
    for number in range(1, 51):
        prepared.add("agent_tools", tenant_id="a", agent_id=1, tool_id=number)
    with pytest.raises(REFUSED, match="agent_has_at_most_50_tools"):
        prepared.add("agent_tools", tenant_id="a", agent_id=1, tool_id=51)


@pytest.mark.embedded
def test_every_table_is_strict(beside: Direct) -> None:
    tables = beside.run(
        "select name, strict from pragma_table_list where schema = 'main' and type = 'table' "
        "and name not like '%yoyo%' and name not like 'sqlite_%'"
    )
    assert len(tables) == 11
    assert {strict for _, strict in tables} == {1}
