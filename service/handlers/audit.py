"""The audit log: who changed what."""

from service.handlers import Answer
from service.paging import LARGEST_ID, Listing, page
from service.storage.scope import Scope


async def list_audit(
    tenant: Scope,
    limit: int,
    offset: int | None,
    cursor: str | None,
    action: str | None,
    resource: str | None,
    resource_id: int | None,
    key_id: int | None,
    created_after: str | None,
    created_before: str | None,
) -> Answer:
    filters = {
        "action": action,
        "resource": resource,
        "resource_id": resource_id,
        "key_id": key_id,
        "created_after": created_after,
        "created_before": created_before,
    }
    listing = Listing("/audit", "list_audit", "count_audit", filters, key="before", start=LARGEST_ID + 1)
    return await page(tenant, listing, limit, offset, cursor)
