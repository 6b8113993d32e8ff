"""Opens what lives long, wires it, closes it: the only room that knows all the others."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from aiohttp import web

from service.auth import DEMO_KEYS, Authenticator
from service.config import Config
from service.contract import build_app, load_spec, render
from service.errors import Unavailable
from service.execution.guardrail import RULES
from service.execution.models import ModelRegistry, default_registry
from service.execution.tools import MockTools, ToolExecutor
from service.gate import Gate
from service.idempotency import Retries
from service.limiter import LocalLimiter, RunLimiter, wrong_keys
from service.metrics import Metrics
from service.pages import add_metrics, add_pages
from service.problems import answer_the_rest
from service.resources import resource
from service.retention import keep
from service.state import STATE, State
from service.storage.engines import Engine, engine_of
from service.storage.queries import load_queries
from service.storage.scope import Database, Unscoped
from service.storage.units import Unit, ask
from service.times import utc_now


class SpecError(Exception):
    """openapi.yaml and the code disagree."""


def make_app(
    config: Config, *, models: ModelRegistry | None = None, tool_executor: ToolExecutor | None = None
) -> web.Application:
    """The whole service as an aiohttp application: it opens its database on start-up and closes it on clean-up.

    Raises SpecError where the spec names other models than the registry, and QueryError for SQL that breaks the rules;
    starting it raises MigrationError for a database that can't be used.
    """
    openapi = resource("openapi")
    spec = load_spec(openapi)
    registry = models or default_registry()
    named = spec["components"]["schemas"]["SupportedModel"]["enum"]
    if sorted(named) != sorted(registry.names):
        raise SpecError(f"openapi.yaml names the models {named}, the registry has {list(registry.names)}.")
    app = build_app(spec)
    add_pages(app, openapi, spec)
    engine = engine_of(config.database)
    metrics = Metrics(engine.name, registry.names, [rule.name for rule in RULES])
    if config.metrics_port is None:
        add_metrics(app, metrics.registry)
    answer_the_rest(app)
    queries = load_queries(resource("sql"), engine.name)

    async def storage(app: web.Application) -> AsyncIterator[None]:
        with engine.held():
            engine.migrate(resource("migrations"))
            database = await engine.open(queries)
            database.watch_writes(metrics.writer_batches.observe)
            metrics.writer_queue.set_function(database.waiting_writes)
            try:
                unscoped = Unscoped(database)
                if config.serves_demo:
                    await unscoped.write(_demo_tenants())
                authenticator = Authenticator(database, demo=config.serves_demo, most_asked=2 * config.concurrency)
                async with (
                    _run_limiter(config, metrics) as limiter,
                    _beside(authenticator.note_uses()),
                    _retention(config, engine, database),
                ):
                    app[STATE] = State(
                        authenticator=authenticator,
                        limiter=limiter,
                        wrong_keys=wrong_keys(config.wrong_key_limit),
                        trusted_proxies=config.trusted_proxy,
                        gate=Gate(config.concurrency),
                        retries=Retries(render),
                        request_timeout=config.request_timeout,
                        models=registry,
                        tool_executor=tool_executor or MockTools(),
                        metrics=metrics,
                        check_storage=partial(_check, unscoped, engine.known(resource("migrations"))),
                    )
                    yield
            finally:
                await database.close()

    app.cleanup_ctx.append(storage)
    return app


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Lets `work` go on beside the service; it is cancelled, and waited for, when that ends."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


@asynccontextmanager
async def _run_limiter(config: Config, metrics: Metrics) -> AsyncIterator[RunLimiter]:
    """Where runs are counted: in this process or, as `--limiter` says, in a server that several share."""
    local = LocalLimiter(config.rate_limit, config.rate_window)
    if config.limiter == "local":
        yield local
        return
    from service.shared_limiter import Fallback, SharedWindow, connections_to  # its driver comes with an extra

    falls_back = config.limiter_fallback == "local"
    meanwhile = "are counted by this process alone" if falls_back else "are refused"
    shared = SharedWindow(
        connections_to(config.limiter),
        config.rate_limit,
        config.rate_window,
        meanwhile=meanwhile,
        tell=metrics.limiter_unreachable.set,
    )
    await shared.open()
    try:
        yield Fallback(shared, local, metrics.limiter_fallback_runs.inc) if falls_back else shared
    finally:
        await shared.close()


@asynccontextmanager
async def _retention(config: Config, engine: Engine, database: Database) -> AsyncIterator[None]:
    """Meanwhile runs are kept for as long as `--keep-runs` says."""
    if config.keep_runs is None:
        yield
        return
    keeping = asyncio.create_task(keep(engine, database, config.keep_runs))
    try:
        yield
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping


async def _check(unscoped: Unscoped, migrations: frozenset[str]) -> None:
    """Raises Unavailable where the storage does not answer or is not migrated to the version that this code knows."""
    await unscoped.check()
    if {row["migration_id"] for row in await unscoped.many("list_migrations")} != migrations:
        raise Unavailable("The storage is not migrated to the version that this service knows.")


def _demo_tenants() -> Unit[None]:
    """The demo tenants are rows, for what they own refers to them; their keys are never stored."""
    for tenant_id in DEMO_KEYS.values():
        yield ask("create_tenant_if_missing", id=tenant_id, now=utc_now())
