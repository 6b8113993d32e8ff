"""Keys: what a tenant is known by. A key is shown once, when it is made, and no key gives what it hasn't got."""

from typing import Any

from service import access
from service.auth import Caller, new_key
from service.errors import MissingScope, not_found
from service.handlers import Answer
from service.paging import Listing, page
from service.storage.scope import Scope
from service.storage.units import Row, Unit
from service.times import duration, utc_now


async def list_keys(tenant: Scope, limit: int, offset: int | None, cursor: str | None) -> Answer:
    found = await page(tenant, Listing("/keys", "list_keys", "count_keys", {}), limit, offset, cursor)
    assert found is not None  # noqa: S101  # the list hangs on nothing
    return found | {"items": [access.shown(row) for row in found["items"]]}


async def get_key(tenant: Scope, key_id: int) -> Answer:
    return access.shown(await tenant.one("get_key", key_id=key_id) or not_found("key"))


async def create_key(tenant: Scope, caller: Caller, body: dict[str, Any]) -> Answer:
    """Everything that it is not told, the new key has of the one that asks."""
    key, scopes = new_key(), body.get("scopes", caller.scopes)

    def unit() -> Unit[Row]:
        ends = yield from access.end_of(caller.key_id)
        expires_at = utc_now(duration(body["expires_in"])) if "expires_in" in body else ends
        _refuse_more_than(caller, ends, scopes, expires_at)
        return (yield from access.create_key(key, body.get("label"), scopes, expires_at))

    return _made(key, await tenant.write(unit()))


async def rotate_key(tenant: Scope, caller: Caller, key_id: int, body: dict[str, Any]) -> Answer:
    key, overlap = new_key(), duration(body.get("overlap", access.OVERLAP))

    def unit() -> Unit[Row]:
        ends = yield from access.end_of(caller.key_id)

        def check(old: Row, expires_at: str | None) -> None:
            # a key may put another one in its own place, once
            _refuse_more_than(caller, ends, old["scopes"], ends if old["id"] == caller.key_id else expires_at)

        return (yield from access.rotate_key(key_id, key, overlap, check))

    return _made(key, await tenant.write(unit()))


async def delete_key(tenant: Scope, key_id: int) -> Answer:
    await tenant.write(access.revoke_key(key_id))
    return None, 204


def _refuse_more_than(caller: Caller, ends: str | None, scopes: Any, expires_at: str | None) -> None:
    if more := sorted(set(scopes) - caller.scopes):
        raise MissingScope(f"A key gives no scope that it hasn't got: {' '.join(more)}.")
    if ends is not None and (expires_at is None or expires_at > ends):
        raise MissingScope("A key gives no more time than it has itself.")


def _made(key: str, row: Row) -> Answer:
    return {**row, "key": key}, 201, {"Location": f"/keys/{row['id']}"}
