"""What keys may do and for how long: the units that make, rotate and revoke them, for the API and for the command line."""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from service.audit import noted
from service.auth import key_hash, key_prefix
from service.errors import Conflict, not_found, unauthorized
from service.storage.units import Row, Unit, ask
from service.times import utc_now

# how long the old key of a rotation works on, unless it is said
OVERLAP = "24h"


def has_ended(row: Row, now: str) -> bool:
    return row["revoked_at"] is not None or (row["expires_at"] is not None and row["expires_at"] <= now)


def end_of(key_id: int | None) -> Unit[str | None]:
    """When a caller's own key ends, as it stands now: what a server remembers of it may be a second old.

    None for a key that never ends, as a demo key, which has no id. Raises Unauthorized for one that has ended.
    """
    if key_id is None:
        return None
    row = yield ask("get_key", key_id=key_id)
    if row is None or has_ended(row, utc_now()):
        unauthorized()
    expires_at: str | None = row["expires_at"]
    return expires_at


def shown(row: Row) -> Row:
    """A key as the API shows it: its scopes are a list."""
    return row | {"scopes": row["scopes"].split()}


def create_key(key: str, label: str | None, scopes: Iterable[str], expires_at: str | None) -> Unit[Row]:
    """Stores what `key` is found by; the key as the API shows it."""
    row = yield ask(
        "create_key",
        prefix=key_prefix(key),
        hash=key_hash(key),
        label=label,
        scopes=" ".join(sorted(set(scopes))),
        expires_at=expires_at,
        now=utc_now(),
    )
    yield noted("create", "key", None, shown(row))
    return shown(row)


def rotate_key(key_id: int, key: str, overlap: timedelta, check: Callable[[Row, str | None], None]) -> Unit[Row]:
    """Puts `key` in the place of the one with this id, which works on for so long, or until its end if that is earlier.

    The new one has the same label and scopes, and lives as long as the old one was to, from now on. `check` is given the old
    one and the end of the new one, and raises where whoever asks may not have it. Raises NotFound, and Conflict for a key
    that no longer works, or was rotated before and lives on for the overlap alone.
    """
    row = (yield ask("get_key", key_id=key_id)) or not_found("key")
    now = utc_now()
    if has_ended(row, now):
        raise Conflict("The key no longer works: create another one.")
    if (yield ask("is_rotated", key=key_id)):
        raise Conflict("The key was rotated already: rotate the one that took its place.")
    old = shown(row)
    expires_at = None
    if old["expires_at"] is not None:
        expires_at = utc_now(datetime.fromisoformat(old["expires_at"]) - datetime.fromisoformat(old["created_at"]))
    check(old, expires_at)
    ended = (yield ask("end_key", key_id=key_id, expires_at=utc_now(overlap))) or not_found("key")
    yield noted("rotate", "key", old, shown(ended))
    return (yield from create_key(key, old["label"], old["scopes"], expires_at))


def revoke_key(key_id: int) -> Unit[Row]:
    """Ends a key for good; one that is revoked already stays so. Raises NotFound."""
    row = (yield ask("get_key", key_id=key_id)) or not_found("key")
    if row["revoked_at"] is None:
        before, row = row, (yield ask("revoke_key", key_id=key_id, now=utc_now())) or not_found("key")
        yield noted("revoke", "key", shown(before), shown(row))
    return shown(row)
