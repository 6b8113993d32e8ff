"""Pages: limit, offset and the opaque cursor that follows a list."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from service.errors import Invalid
from service.storage.scope import Scope
from service.storage.units import Ask, Row, Unit, ask, ask_together

LARGEST_ID = 2**53 - 1
_CHECK_LENGTH = 12


@dataclass(frozen=True, slots=True)
class Listing:
    """One list: its route, two queries, their filters, and the parameter that says behind which item a page begins.

    The list query takes `limit`, `offset` and `key` beside the filters, the query for the total `total_filters` alone, which
    are the filters unless given.
    """

    route: str
    items: str
    total: str
    filters: Mapping[str, Any]
    key: str = "after"
    # where the list begins; its type is that of the items' keys: ids, or texts in printable ASCII
    start: int | str = 0
    # the field of an item that the list goes by
    field: str = "id"
    total_filters: Mapping[str, Any] | None = None
    # what the list hangs on: where this query says no, there is no list
    owner: Ask | None = None
    # is the total kept, and does what the filters let pass stand side by side? Then a long list's page is as quick as any
    is_quick: bool = False


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
    following = _sealed(items[-1][listing.field], passed + limit, tenant.tenant_id, listing) if more else None
    return {"items": items, "total": total, "limit": limit, "offset": passed, "next": following}


def page_of_one(item: Row, limit: int, offset: int | None, cursor: str | None) -> Row:
    """The page of a list that has this one item, always. Raises Invalid for any cursor: it has given none."""
    if cursor is not None:
        raise _not_of_this_list()
    return {"items": [] if offset else [item], "total": 1, "limit": limit, "offset": offset or 0, "next": None}


def _rows(listing: Listing, last: int | str, skip: int, most: int) -> Unit[tuple[int, list[Row]] | None]:
    total = ask(listing.total, **(listing.filters if listing.total_filters is None else listing.total_filters))
    items = ask(listing.items, **{listing.key: last}, limit=most, offset=skip, **listing.filters)
    owner = () if listing.owner is None else (listing.owner,)
    *is_there, total_found, found = yield ask_together(*owner, total, items, rows=skip + most if listing.is_quick else None)
    return (total_found, found) if all(is_there) else None


def _sealed(last: int | str, passed: int, tenant_id: str, listing: Listing) -> str:
    """The cursor behind the item with the key `last`, `passed` items into the list."""
    key = last.encode() if isinstance(last, str) else last.to_bytes(8, "big")
    place = key + passed.to_bytes(8, "big")
    return urlsafe_b64encode(place + _check(place, tenant_id, listing)).decode().rstrip("=")


def _opened(cursor: str, tenant_id: str, listing: Listing) -> tuple[int | str, int]:
    """The key and the count that a cursor of exactly this list was sealed with. Raises Invalid for any other text."""
    try:
        sealed = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    except ValueError:
        sealed = b""
    place, check = sealed[:-_CHECK_LENGTH], sealed[-_CHECK_LENGTH:]
    key, passed = place[:-8], int.from_bytes(place[-8:], "big")
    # base64 leaves bits unused at the end, so that two texts can stand for the same bytes: only one of them was given out
    genuine = urlsafe_b64encode(sealed).decode().rstrip("=") == cursor and check == _check(place, tenant_id, listing)
    # who made one up, in spite of the check, finds no way to a key that the storage can't take
    if isinstance(listing.start, str):
        last: int | str = key.decode("ascii", "replace")
        possible = all("!" <= sign <= "~" for sign in str(last))
    else:
        last = int.from_bytes(key, "big")
        possible = len(key) == 8 and last <= LARGEST_ID
    if not (genuine and possible and passed <= LARGEST_ID):
        raise _not_of_this_list()
    return last, passed


def _check(place: bytes, tenant_id: str, listing: Listing) -> bytes:
    """Ties a place to its list. No secret: a cursor only says where to go on in what its tenant may read anyway."""
    identity = repr((tenant_id, listing.route, sorted(listing.filters.items())))
    return blake2b(place + identity.encode(), digest_size=_CHECK_LENGTH).digest()


def _not_of_this_list() -> Invalid:
    return _refused("This is no cursor of this list: use `next` of a page with the same filters.", "cursor")


def _refused(detail: str, parameter: str) -> Invalid:
    return Invalid(detail, errors=[{"parameter": parameter, "detail": detail}])
