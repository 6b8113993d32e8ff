"""Pages: limit, offset and the opaque cursor that follows a list."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from service.errors import Invalid
from service.storage.scope import Scope
from service.storage.units import Ask, Row, Unit, ask

LARGEST_ID = 2**53 - 1
_CHECK_LENGTH = 12


@dataclass(frozen=True, slots=True)
class Listing:
    """One list: its route, two queries, their filters, and the parameter that says behind which id a page begins.

    The list query takes `limit`, `offset` and `key` beside the filters, the query for the total `total_filters` alone, which
    are the filters unless given.
    """

    route: str
    items: str
    total: str
    filters: Mapping[str, Any]
    key: str = "after"
    start: int = 0
    total_filters: Mapping[str, Any] | None = None
    # what the list hangs on: where this query says no, there is no list
    owner: Ask | None = None


async def page(tenant: Scope, listing: Listing, limit: int, offset: int | None, cursor: str | None) -> Row | None:
    """`{items, total, limit, offset, next}`, items and total as of one moment; None where the list's owner is not there.

    Raises Invalid for a cursor of another list, an altered one, and one given together with an offset.
    """
    skip, passed, last = offset or 0, offset or 0, listing.start
    if cursor is not None:
        if offset is not None:
            raise _refused("A cursor says where the page begins: leave out the offset.", "offset")
        last, passed = _opened(cursor, tenant.tenant_id, listing)
        skip = 0
    rows = await tenant.read(_rows(listing, last, skip, limit + 1))
    if rows is None:
        return None
    total, items = rows
    more = len(items) > limit
    items = items[:limit]
    following = _sealed(items[-1]["id"], passed + limit, tenant.tenant_id, listing) if more else None
    return {"items": items, "total": total, "limit": limit, "offset": passed, "next": following}


def _rows(listing: Listing, last: int, skip: int, most: int) -> Unit[tuple[int, list[Row]] | None]:
    if listing.owner is not None and not (yield listing.owner):
        return None
    total = yield ask(listing.total, **(listing.filters if listing.total_filters is None else listing.total_filters))
    items = yield ask(listing.items, **{listing.key: last}, limit=most, offset=skip, **listing.filters)
    return total, items


def _sealed(last: int, passed: int, tenant_id: str, listing: Listing) -> str:
    """The cursor behind the item `last`, `passed` items into the list."""
    place = last.to_bytes(8, "big") + passed.to_bytes(8, "big")
    return urlsafe_b64encode(place + _check(place, tenant_id, listing)).decode().rstrip("=")


def _opened(cursor: str, tenant_id: str, listing: Listing) -> tuple[int, int]:
    """The id and the count that a cursor of exactly this list was sealed with. Raises Invalid for any other text."""
    try:
        sealed = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    except ValueError:
        sealed = b""
    place, check = sealed[:16], sealed[16:]
    # base64 leaves bits unused at the end, so that two texts can stand for the same bytes: only one of them was given out
    genuine = len(place) == 16 and urlsafe_b64encode(sealed).decode().rstrip("=") == cursor
    last, passed = int.from_bytes(place[:8], "big"), int.from_bytes(place[8:], "big")
    # who made one up, in spite of the check, finds no way to a number that the storage can't take
    genuine = genuine and max(last, passed) <= LARGEST_ID
    if not genuine or check != _check(place, tenant_id, listing):
        raise _refused("This is no cursor of this list: use `next` of a page with the same filters.", "cursor")
    return last, passed


def _check(place: bytes, tenant_id: str, listing: Listing) -> bytes:
    """Ties a place to its list. No secret: a cursor only says where to go on in what its tenant may read anyway."""
    identity = repr((tenant_id, listing.route, sorted(listing.filters.items())))
    return blake2b(place + identity.encode(), digest_size=_CHECK_LENGTH).digest()


def _refused(detail: str, parameter: str) -> Invalid:
    return Invalid(detail, errors=[{"parameter": parameter, "detail": detail}])
