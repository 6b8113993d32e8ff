"""What the servers that ours is measured against have in common: the key, the SQL, the connection and the run itself.

They leave out what the task does not ask of them (the guardrail, the rate limit, problem details, request ids), so that a
comparison with them is never in our favour.
"""

import json
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiosqlite

from service.execution.loop import Outcome, run
from service.execution.models import MockModel
from service.execution.prompt import Agent, Tool
from service.execution.tools import MockTools
from service.resources import resource
from service.storage.queries import Query, load_queries
from service.times import utc_now

# a well-formed key, so that our server finds its hash in the database as it does for any customer
KEY = "mk_TheBenchmarkOfTheAgentPlatform0000dHS84"
TENANT = "benchmark"
KEYS = {KEY: TENANT}
MODEL = "gpt-4o"
# the id behind the newest run, where a history begins
NEWEST = 2**53

PRAGMAS = ("pragma journal_mode = wal", "pragma synchronous = full", "pragma foreign_keys = on")

Row = dict[str, Any]


def queries(engine: str = "sqlite") -> Mapping[str, Query]:
    """The service's own named queries."""
    return load_queries(resource("sql"), engine)


async def connect(file: Path) -> aiosqlite.Connection:
    """One connection that commits each statement by itself, with FULL; JSON columns are parsed with the standard library."""
    sqlite3.register_converter("json", json.loads)
    sqlite3.register_converter("parsed", json.loads)
    connection = await aiosqlite.connect(file, isolation_level=None, detect_types=sqlite3.PARSE_COLNAMES)
    connection.row_factory = sqlite3.Row
    for pragma in PRAGMAS:
        await connection.execute_fetchall(pragma)
    return connection


def history(tenant_id: str, agent_id: int, before: int, limit: int) -> Row:
    """The parameters of list_agent_runs for a page without filters, and one run more to see whether another page follows."""
    filters = dict.fromkeys(("status", "model", "created_after", "created_before"))
    return {"tenant_id": tenant_id, "agent_id": agent_id, "before": before, "limit": limit + 1, "offset": 0, **filters}


def page(rows: list[Row], total: int, limit: int) -> Row:
    """The page as the API shows it; `rows` may hold one run more than it."""
    items = rows[:limit]
    following = str(items[-1]["id"]) if len(rows) > limit else None
    return {"items": items, "total": total, "limit": limit, "offset": 0, "next": following}


async def run_agent(agent: Agent, task: str, model: str) -> Row:
    """A run as the API shows it, but for its id."""
    created_at, began = utc_now(), time.monotonic()
    outcome = await run(agent, task, model, MockModel(), MockTools())
    return shown(agent, task, model, outcome, created_at, round((time.monotonic() - began) * 1000))


def shown(agent: Agent, task: str, model: str, outcome: Outcome, created_at: str, duration_ms: int) -> Row:
    """An outcome as the API shows it, but for its id."""
    return {
        "agent_id": agent.id,
        "agent_name": agent.name,
        "task": task,
        "model": model,
        "status": outcome.status,
        "prompt": outcome.prompt,
        "response": outcome.response,
        "error": outcome.error,
        "steps": outcome.steps,
        "usage": {
            "prompt_tokens": outcome.prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
            "total_tokens": outcome.prompt_tokens + outcome.completion_tokens,
        },
        "created_at": created_at,
        "duration_ms": duration_ms,
    }


def agent_of(row: Mapping[str, Any]) -> Agent:
    """The agent in a row of get_agent_to_run."""
    tools = sorted((Tool(**tool) for tool in row["tools"]), key=lambda tool: tool.name)
    return Agent(row["id"], row["name"], row["role"], row["description"], tuple(tools))


def columns(tenant_id: str, kept: Row) -> Row:
    """The parameters of create_run for a run as the API shows it."""
    return {
        **{name: value for name, value in kept.items() if name != "usage"},
        "tenant_id": tenant_id,
        "error": None if kept["error"] is None else json.dumps(kept["error"]),
        "steps": json.dumps(kept["steps"]),
        "prompt_tokens": kept["usage"]["prompt_tokens"],
        "completion_tokens": kept["usage"]["completion_tokens"],
    }
