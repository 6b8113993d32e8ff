"""The service itself: name, health, readiness, identity, models."""

from collections.abc import Awaitable, Callable

from service import __version__
from service.execution.models import ModelRegistry
from service.gate import Gate
from service.handlers import Answer
from service.storage.scope import Scope


async def get_service() -> Answer:
    links = {
        "docs": "/docs",
        "redoc": "/redoc",
        "openapi_json": "/openapi.json",
        "openapi_yaml": "/openapi.yaml",
    }
    return {"name": "Agent Platform", "version": __version__, "links": links}


async def get_health() -> Answer:
    return {"status": "ok"}


async def get_readiness(check_storage: Callable[[], Awaitable[None]], gate: Gate) -> Answer:
    gate.refuse_if_draining()
    await check_storage()
    return {"status": "ready"}


async def get_identity(tenant: Scope) -> Answer:
    return {"tenant_id": tenant.tenant_id, "key_id": tenant.key_id}


async def list_models(tenant: Scope, models: ModelRegistry) -> Answer:
    return {"items": [{"id": name} for name in models.names]}
