"""The usual choice on PostgreSQL: FastAPI on uvicorn with uvloop and httptools, pydantic models, asyncpg's pool as it comes.

`python -m tests.benchmarks.usual_postgresql URL PORT`. The same schema, triggers and SQL as ours, as the tables' owner: each
statement is a transaction of its own, and nothing but the SQL's own predicates tells tenants apart. The access log is on, as
uvicorn and our server ship it.
"""

import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import asyncpg
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request

from service.auth import key_hash
from service.storage import queries as named
from tests.benchmarks.models import AgentOut, RunOut, RunPage, RunRequest
from tests.benchmarks.shared import NEWEST, Row, agent_of, columns, history, page, queries, run_agent


class Statement:
    """A named query with numbered parameters; its JSON columns are parsed with the standard library."""

    def __init__(self, query: named.Query) -> None:
        self.parameters = query.parameters
        numbers = {name: f"${number}" for number, name in enumerate(query.parameters, 1)}
        # what ours has to do first for one of many tenants is not asked of it
        text = query.sql.replace("\nfrom entered", "")
        self.sql = re.sub(r"(?<![:\w]):(\w+)", lambda found: numbers[found[1]], text)

    async def rows(self, connection: Any, **parameters: Any) -> list[Row]:
        found = await connection.fetch(self.sql, *[parameters[name] for name in self.parameters])
        return [dict(map(_parsed, row.keys(), row.values())) for row in found]

    async def one(self, connection: Any, **parameters: Any) -> Row:
        found = await self.rows(connection, **parameters)
        if not found:
            raise HTTPException(404, "Not found")
        return found[0]

    async def value(self, connection: Any, **parameters: Any) -> Any:
        return await connection.fetchval(self.sql, *[parameters[name] for name in self.parameters])


def _parsed(column: str, value: Any) -> tuple[str, Any]:
    name, _, converted = column.partition(" ")
    return name, json.loads(value) if converted and value is not None else value


SQL = {name: Statement(query) for name, query in queries("postgresql").items()}


@asynccontextmanager
async def storage(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(sys.argv[1]) as pool:
        app.state.pool = pool
        # known from the beginning, and never asked for again
        app.state.tenants = dict(await pool.fetch("select hash, tenant_id from api_keys"))
        yield


async def _pool(request: Request) -> Any:
    return request.app.state.pool


async def _tenant(request: Request, x_api_key: Annotated[str, Header()]) -> str:
    tenant_id: str | None = request.app.state.tenants.get(key_hash(x_api_key))
    if tenant_id is None:
        raise HTTPException(401, "Unknown key")
    return tenant_id


Tenant = Annotated[str, Depends(_tenant)]
# any: FastAPI would look into asyncpg's own class
Pool = Annotated[Any, Depends(_pool)]
Limit = Annotated[int, Query(ge=1, le=100)]

app = FastAPI(lifespan=storage)


@app.get("/agents/{agent_id}", response_model=AgentOut)
async def get_agent(agent_id: int, tenant: Tenant, pool: Pool) -> Row:
    async with pool.acquire() as connection:
        return await SQL["get_agent"].one(connection, tenant_id=tenant, agent_id=agent_id)


@app.get("/agents/{agent_id}/runs", response_model=RunPage)
async def list_agent_runs(agent_id: int, tenant: Tenant, pool: Pool, limit: Limit = 20, cursor: int = NEWEST) -> Row:
    kind = {"tenant_id": tenant, "agent_id": agent_id, "status": None, "model": None}
    # one connection for all three: giving one back costs a round trip
    async with pool.acquire() as connection:
        if not await SQL["agent_exists"].value(connection, tenant_id=tenant, agent_id=agent_id):
            raise HTTPException(404, "Not found")
        total = await SQL["total_runs"].value(connection, **kind)
        rows = await SQL["list_agent_runs"].rows(connection, **history(tenant, agent_id, cursor, limit))
    return page(rows, total, limit)


@app.post("/agents/{agent_id}/run", response_model=RunOut)
async def run(agent_id: int, body: RunRequest, tenant: Tenant, pool: Pool) -> Row:
    # kept for the whole run, in its favour: the mock takes no time, and a model that does would starve the others
    async with pool.acquire() as connection:
        agent = agent_of(await SQL["get_agent_to_run"].one(connection, tenant_id=tenant, agent_id=agent_id))
        kept = await run_agent(agent, body.task, body.model)
        return kept | await SQL["create_run"].one(connection, **columns(tenant, kept))


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), loop="uvloop", http="httptools")
