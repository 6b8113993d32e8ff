"""The service itself: name, health, readiness, identity, models."""

from service import __version__
from service.errors import Unavailable
from service.execution.models import ModelRegistry
from service.handlers import Answer
from service.storage.scope import Scope, Unscoped


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


async def get_readiness(unscoped: Unscoped, migrations: frozenset[str]) -> Answer:
    await unscoped.check()
    if {row["migration_id"] for row in await unscoped.many("list_migrations")} != migrations:
        raise Unavailable("The storage is not migrated to the version that this service knows.")
    return {"status": "ready"}


async def get_identity(tenant: Scope) -> Answer:
    return {"tenant_id": tenant.tenant_id, "key_id": tenant.key_id}


async def list_models(tenant: Scope, models: ModelRegistry) -> Answer:
    return {"items": [{"id": name} for name in models.names]}
