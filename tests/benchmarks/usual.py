"""The usual choice: FastAPI on uvicorn with uvloop, async handlers, aiosqlite, pydantic models, one commit per request.

`python -m tests.benchmarks.usual DATABASE PORT`. The access log is on, as uvicorn and our server ship it.
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request

from tests.benchmarks.models import AgentOut, RunOut, RunPage, RunRequest
from tests.benchmarks.shared import KEYS, NEWEST, Row, agent_of, columns, connect, history, page, queries, run_agent

SQL = {name: query.sql for name, query in queries().items()}


class Database:
    """Named queries on the application's one connection, as aiosqlite's documentation shows it."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def rows(self, query: str, **parameters: Any) -> list[Row]:
        async with self._connection.execute(SQL[query], parameters) as cursor:
            return [dict(row) for row in await cursor.fetchall()]

    async def one(self, query: str, **parameters: Any) -> Row:
        found = await self.rows(query, **parameters)
        if not found:
            raise HTTPException(404, "Not found")
        return found[0]

    async def value(self, query: str, **parameters: Any) -> Any:
        return next(iter((await self.one(query, **parameters)).values()))


@asynccontextmanager
async def storage(app: FastAPI) -> AsyncIterator[None]:
    connection = await connect(Path(sys.argv[1]))
    app.state.database = Database(connection)
    yield
    await connection.close()


async def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


async def _tenant(x_api_key: Annotated[str, Header()]) -> str:
    if x_api_key not in KEYS:
        raise HTTPException(401, "Unknown key")
    return KEYS[x_api_key]


Tenant = Annotated[str, Depends(_tenant)]
Storage = Annotated[Database, Depends(_database)]
Limit = Annotated[int, Query(ge=1, le=100)]

app = FastAPI(lifespan=storage)


@app.get("/agents/{agent_id}", response_model=AgentOut)
async def get_agent(agent_id: int, tenant: Tenant, database: Storage) -> Row:
    return await database.one("get_agent", tenant_id=tenant, agent_id=agent_id)


@app.get("/agents/{agent_id}/runs", response_model=RunPage)
async def list_agent_runs(agent_id: int, tenant: Tenant, database: Storage, limit: Limit = 20, cursor: int = NEWEST) -> Row:
    if not await database.value("agent_exists", tenant_id=tenant, agent_id=agent_id):
        raise HTTPException(404, "Not found")
    total = await database.value("total_runs", tenant_id=tenant, agent_id=agent_id, status=None, model=None)
    rows = await database.rows("list_agent_runs", **history(tenant, agent_id, cursor, limit))
    return page(rows, total, limit)


@app.post("/agents/{agent_id}/run", response_model=RunOut)
async def run(agent_id: int, body: RunRequest, tenant: Tenant, database: Storage) -> Row:
    agent = agent_of(await database.one("get_agent_to_run", tenant_id=tenant, agent_id=agent_id))
    kept = await run_agent(agent, body.task, body.model)
    return kept | await database.one("create_run", **columns(tenant, kept))


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), loop="uvloop", http="httptools")
