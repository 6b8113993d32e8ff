"""Usage: what was used, by day, model or agent."""

from service.errors import Invalid
from service.handlers import Answer
from service.paging import Listing, page, page_of_one
from service.storage.scope import Scope

_NOTHING = dict.fromkeys(("runs", "failures", "prompt_tokens", "completion_tokens", "total_tokens", "duration_ms"), 0)
# the field that the items are told apart by, and what comes before its first value
_GROUPS: dict[str, tuple[str, int | str]] = {"day": ("day", ""), "model": ("model", ""), "agent": ("agent_id", 0)}
_FIRST_DAY, _LAST_DAY = "0001-01-01", "9999-12-31"


async def list_usage(
    tenant: Scope,
    limit: int,
    offset: int | None,
    cursor: str | None,
    from_: str | None,
    to: str | None,
    group_by: str | None,
) -> Answer:
    span = {"first": from_ or _FIRST_DAY, "last": to or _LAST_DAY}
    if span["first"] > span["last"]:
        places = [{"parameter": "from", "detail": "Must not be later than `to`."}]
        raise Invalid("The request breaks the contract in 1 place.", errors=places)
    if group_by is None:
        return page_of_one(await tenant.one("get_usage", **span) or _NOTHING, limit, offset, cursor)
    field, start = _GROUPS[group_by]
    listing = Listing(
        f"/usage by {group_by}",
        f"list_usage_by_{group_by}",
        f"count_usage_by_{group_by}",
        span,
        start=start,
        field=field,
    )
    return await page(tenant, listing, limit, offset, cursor)
