"""Databases with a history: the same agents and tools, and as many runs as asked, written by the service's own queries."""

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from service.execution.loop import Outcome
from service.execution.prompt import Agent, Tool
from service.times import utc_now
from tests.benchmarks.load import TASK
from tests.benchmarks.shared import KEY, MODEL, PRAGMAS, TENANT, Row, columns, queries, run_agent, shown
from tests.support.database import migrated
from tests.support.keys import parts

_TOPICS = ("search", "weather", "calendar", "mailbox", "ledger", "archive", "maps", "translate", "stocks", "notes")
_TOOLS_EACH = 5
_BATCH = 10_000
# every twentieth run failed
FAILED_EVERY = 20

# what the first tenant of a fresh database has: its ids begin with 1
TOOLS = [Tool(number, topic, f"Use it for everything about {topic}") for number, topic in enumerate(_TOPICS, 1)]


def _agent(number: int) -> Agent:
    chosen = sorted((TOOLS[(number + step) % len(TOOLS)] for step in range(_TOOLS_EACH)), key=lambda tool: tool.name)
    return Agent(number + 1, f"agent-{number}", "Assistant", "Runs errands of many kinds", tuple(chosen))


AGENTS = [_agent(number) for number in range(10)]


def seed(folder: Path, sizes: Sequence[int]) -> dict[int, Path]:
    """A database for each of `sizes`, which grow: the next one is the last one and more runs."""
    made: dict[int, Path] = {}
    file, stored = migrated(folder / "seed.db"), 0
    _define(file)
    for size in sizes:
        _add_runs(file, stored, size)
        stored = size
        made[size] = copy(file, folder / f"runs-{size}.db")
    file.unlink()
    return made


def copy(file: Path, to: Path) -> Path:
    """A copy of a database that nobody has open."""
    shutil.copy(file, to)
    return to


def _open(file: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(file, isolation_level=None)
    for pragma in PRAGMAS:
        connection.execute(pragma)
    # nobody waits for these rows: what is kept is flushed at the end
    connection.execute("pragma synchronous = off")
    return connection


def _define(file: Path) -> None:
    """The tenant, its key, ten tools, and ten agents with five of them each."""
    sql = {name: query.sql for name, query in queries().items()}
    now = utc_now()
    with closing(_open(file)) as connection:
        connection.execute(sql["create_tenant"], {"id": TENANT, "now": now})
        connection.execute(sql["create_key"], {"tenant_id": TENANT, **parts(KEY, label="benchmark")}).fetchall()
        for tool in TOOLS:
            texts = {"name": tool.name, "description": tool.description}
            connection.execute(sql["create_tool"], {"tenant_id": TENANT, **texts, "now": now}).fetchall()
        for agent in AGENTS:
            connection.execute(sql["create_agent_id"], {"tenant_id": TENANT}).fetchall()
            ids = {"tenant_id": TENANT, "agent_id": agent.id}
            texts = {"name": agent.name, "role": agent.role, "description": agent.description}
            connection.execute(sql["create_agent"], {**ids, **texts, "now": now})
            connection.execute(sql["add_agent_tools"], {**ids, "tool_ids": json.dumps([tool.id for tool in agent.tools])})


def _add_runs(file: Path, stored: int, size: int) -> None:
    """The runs number `stored` to `size`, with the triggers that count them."""
    insert = queries()["create_run"].sql
    with closing(_open(file)) as connection:
        for start in range(stored, size, _BATCH):
            connection.execute("begin")
            connection.executemany(insert, _runs(start, min(start + _BATCH, size)))
            connection.execute("commit")
        # copies are made of the file alone
        connection.execute("pragma wal_checkpoint(truncate)")


def kinds() -> tuple[list[Row], list[Row]]:
    """The rows of a run of each agent that was completed, and of one that failed."""
    completed = [columns(TENANT, asyncio.run(run_agent(agent, TASK["task"], MODEL))) for agent in AGENTS]
    return completed, [columns(TENANT, _failed(agent)) for agent in AGENTS]


def _runs(start: int, end: int) -> Iterator[Row]:
    completed, failed = kinds()
    began = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(start, end):
        kind = failed if number % FAILED_EVERY == 0 else completed
        # a failed run of each agent in turn, too
        agent = (number + number // FAILED_EVERY) % len(AGENTS)
        moment = (began + timedelta(seconds=number)).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
        yield kind[agent] | {"created_at": moment}


def _failed(agent: Agent) -> Row:
    error = {"code": "model_error", "message": "The model failed to answer."}
    outcome = Outcome(prompt=f"=== {agent.name} ===", response=None, error=error, prompt_tokens=8)
    return shown(agent, TASK["task"], MODEL, outcome, utc_now(), 3)
