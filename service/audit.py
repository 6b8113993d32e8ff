"""The audit log: each change says itself what it was, in the transaction that makes it. Who asks, the scope knows."""

import orjson

from service.storage.units import Ask, Row, ask
from service.times import utc_now

ACTIONS = ("create", "change", "delete", "rotate", "revoke", "disable", "enable", "limit")
RESOURCES = ("tool", "agent", "key", "tenant")


def noted(action: str, resource: str, before: Row | None, after: Row | None) -> Ask:
    """What a unit yields when it has made a change: one of ACTIONS, of one of RESOURCES, which was and is now as given."""
    there = after or before or {}
    return ask(
        "write_audit",
        action=action,
        resource=resource,
        resource_id=there["id"],
        old=_shown(before),
        new=_shown(after),
        now=utc_now(),
    )


def noted_of_tenant(action: str, before: Row | None, after: Row | None) -> Ask:
    """The same for what an operator does to a tenant itself, which is in no tenant's scope."""
    there = after or before or {}
    # whose log it stands in says which tenant it is
    was, is_now = (row and {name: value for name, value in row.items() if name != "id"} for row in (before, after))
    return ask("write_operator_audit", tenant=there["id"], action=action, old=_shown(was), new=_shown(is_now), now=utc_now())


def _shown(row: Row | None) -> str | None:
    """The resource as the API shows it: its version is in the ETag."""
    if row is None:
        return None
    return orjson.dumps({name: value for name, value in row.items() if name != "version"}).decode()
