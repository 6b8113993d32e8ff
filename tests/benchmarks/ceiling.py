"""The ceiling: aiohttp on uvloop written by hand, one connection, no validation, one commit per request.

`python -m tests.benchmarks.ceiling DATABASE PORT`.
"""

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiosqlite
import uvloop
from aiohttp import web

from tests.benchmarks.shared import KEYS, NEWEST, Row, agent_of, columns, connect, history, page, queries, run_agent


class Ceiling:
    """The handlers; `connection` is open while the application runs."""

    connection: aiosqlite.Connection

    def __init__(self, file: Path) -> None:
        self.file = file
        self.sql = {name: query.sql for name, query in queries().items()}

    async def storage(self, app: web.Application) -> AsyncIterator[None]:
        self.connection = await connect(self.file)
        yield
        await self.connection.close()

    async def rows(self, query: str, parameters: Row) -> list[Row]:
        return [dict(row) for row in await self.connection.execute_fetchall(self.sql[query], parameters)]

    async def one(self, query: str, parameters: Row) -> Row:
        if found := await self.rows(query, parameters):
            return found[0]
        raise web.HTTPNotFound

    async def value(self, query: str, parameters: Row) -> Any:
        return next(iter((await self.one(query, parameters)).values()))

    async def get_agent(self, request: web.Request) -> web.Response:
        ids = {"tenant_id": _tenant(request), "agent_id": int(request.match_info["agent_id"])}
        agent = await self.one("get_agent", ids)
        # what ours sends as an ETag
        del agent["version"]
        return web.json_response(agent)

    async def list_agent_runs(self, request: web.Request) -> web.Response:
        tenant_id, agent_id = _tenant(request), int(request.match_info["agent_id"])
        if not await self.value("agent_exists", {"tenant_id": tenant_id, "agent_id": agent_id}):
            raise web.HTTPNotFound
        kind = {"tenant_id": tenant_id, "agent_id": agent_id, "status": None, "model": None}
        total = await self.value("total_runs", kind)
        before, limit = _place(request)
        rows = await self.rows("list_agent_runs", history(tenant_id, agent_id, before, limit))
        return web.json_response(page(rows, total, limit))

    async def list_runs(self, request: web.Request) -> web.Response:
        tenant_id = _tenant(request)
        total = await self.value("total_runs", {"tenant_id": tenant_id, "agent_id": 0, "status": None, "model": None})
        before, limit = _place(request)
        wanted = history(tenant_id, 0, before, limit)
        del wanted["agent_id"], wanted["status"]
        return web.json_response(page(await self.rows("list_runs", wanted), total, limit))

    async def get_run(self, request: web.Request) -> web.Response:
        ids = {"tenant_id": _tenant(request), "run_id": int(request.match_info["run_id"])}
        return web.json_response(await self.one("get_run", ids))

    async def run_agent(self, request: web.Request) -> web.Response:
        tenant_id, body = _tenant(request), await request.json()
        ids = {"tenant_id": tenant_id, "agent_id": int(request.match_info["agent_id"])}
        agent = agent_of(await self.one("get_agent_to_run", ids))
        kept = await run_agent(agent, body["task"], body["model"])
        return web.json_response(kept | await self.one("create_run", columns(tenant_id, kept)))


def _tenant(request: web.Request) -> str:
    tenant_id = KEYS.get(request.headers.get("X-API-Key", ""))
    if tenant_id is None:
        raise web.HTTPUnauthorized
    return tenant_id


def _place(request: web.Request) -> tuple[int, int]:
    return int(request.query.get("cursor", NEWEST)), int(request.query.get("limit", 20))


def main(file: str, port: str) -> None:
    """Serves until it is told to stop."""
    ceiling = Ceiling(Path(file))
    app = web.Application()
    app.cleanup_ctx.append(ceiling.storage)
    app.router.add_get("/agents/{agent_id}", ceiling.get_agent)
    app.router.add_get("/agents/{agent_id}/runs", ceiling.list_agent_runs)
    app.router.add_post("/agents/{agent_id}/run", ceiling.run_agent)
    app.router.add_get("/runs", ceiling.list_runs)
    app.router.add_get("/runs/{run_id}", ceiling.get_run)
    web.run_app(app, host="127.0.0.1", port=int(port), access_log=None, print=None, loop=uvloop.new_event_loop())


if __name__ == "__main__":
    main(*sys.argv[1:])
