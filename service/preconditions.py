"""Versions on the wire: a tool's or agent's ETag, and what If-Match and If-None-Match say of it (RFC 9110 section 13)."""

import re
from typing import NoReturn

from multidict import CIMultiDictProxy

from service.errors import PreconditionFailed
from service.storage.units import Row

_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_VERSION = re.compile(r"[1-9][0-9]{0,15}", re.ASCII)


def tagged(row: Row, status: int = 200, headers: dict[str, str] | None = None) -> tuple[Row, int, dict[str, str]]:
    """The answer that shows `row`, its version as a strong ETag and not in the body."""
    etag = f'"{row.pop("version")}"'
    return row, status, {"ETag": etag, **(headers or {})}


def versions(if_match: str | None) -> str | None:
    """The versions that If-Match lets through, as in ',1,2,' for a query; None where any will do.

    The comparison is the strong one: a weak tag lets nothing through, and neither does one that was never given out.
    """
    if if_match is None or if_match == "*":
        return None
    strong = [opaque for weak, opaque in _TAG.findall(if_match) if not weak]
    return f",{','.join(opaque for opaque in strong if _VERSION.fullmatch(opaque))},"


def lets_through(versions: str | None, row: Row) -> bool:
    """Would a statement with these `versions` have written `row`? For a change that changes nothing."""
    return versions is None or f",{row['version']}," in versions


def is_known(headers: CIMultiDictProxy[str], etag: str) -> bool:
    """Does If-None-Match name the answer's ETag? The comparison is the weak one."""
    if_none_match = ", ".join(headers.getall("If-None-Match"))
    return if_none_match == "*" or etag.strip('"') in (opaque for _, opaque in _TAG.findall(if_none_match))


def has_changed(thing: str) -> NoReturn:
    """Raises the 412 for a write that If-Match does not let through; `thing` is the resource's name."""
    raise PreconditionFailed(f"The {thing} has another version than If-Match names: read it again.")
