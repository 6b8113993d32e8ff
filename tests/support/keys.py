"""API keys that a test stores itself."""

from typing import Any

from service.auth import SCOPES, key_hash, key_prefix
from service.storage.scope import Database, Scope
from service.storage.units import Row
from service.times import utc_now


def parts(key: str, **more: Any) -> dict[str, Any]:
    """What the query create_key wants of a key that opens everything for ever, or as `more` says."""
    usual = {"label": None, "scopes": " ".join(SCOPES), "expires_at": None, "now": utc_now()}
    return {"prefix": key_prefix(key), "hash": key_hash(key)} | usual | more


async def store(database: Database, tenant_id: str, key: str, **more: Any) -> Row:
    """Gives the tenant, which is there, a key."""
    row = await Scope(database, tenant_id, None, is_operator=True).one("create_key", **parts(key, **more))
    assert row is not None
    return row


async def revoke(database: Database, tenant_id: str, key_id: int) -> None:
    """Revokes one of the tenant's keys."""
    scope = Scope(database, tenant_id, None, is_operator=True)
    assert await scope.one("revoke_key", key_id=key_id, now=utc_now()) is not None
