"""API key -> tenant. contract.py asks `Authenticator.scope` for each request that needs a key."""

import re
import secrets
import string
import time
import zlib
from collections import OrderedDict
from hashlib import sha256

from service.errors import Overloaded
from service.storage.scope import Database, Scope, Unscoped

_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SECRET_LENGTH = 33  # log2(62 ** 33) = 196 random bits, 160 of them beyond the prefix that is shown
_CHECKSUM_LENGTH = 6  # 62 ** 6 > 2 ** 32
_PREFIX_LENGTH = 9
_KEY = re.compile(rf"mk_[0-9A-Za-z]{{{_SECRET_LENGTH + _CHECKSUM_LENGTH}}}", re.ASCII)

DEMO_KEYS = {"key_tenant_a": "tenant_a", "key_tenant_b": "tenant_b"}


def new_key() -> str:
    """A fresh API key: `mk_`, 33 random base62 characters, and 6 of a checksum (CRC-32)."""
    secret = "".join(secrets.choice(_BASE62) for _ in range(_SECRET_LENGTH))
    return f"mk_{secret}{_checksum(secret)}"


def is_well_formed(key: str) -> bool:
    """Could `key` have been issued? Says so without the database, so that a typing error costs nothing."""
    return _KEY.fullmatch(key) is not None and _checksum(key[3:-_CHECKSUM_LENGTH]) == key[-_CHECKSUM_LENGTH:]


def key_hash(key: str) -> str:
    """What is stored of a key: its SHA-256, in hexadecimal."""
    return sha256(key.encode()).hexdigest()


def key_prefix(key: str) -> str:
    """What a stored key is recognised by."""
    return key[:_PREFIX_LENGTH]


def _checksum(secret: str) -> str:
    number = zlib.crc32(secret.encode())
    digits = []
    for _ in range(_CHECKSUM_LENGTH):
        number, digit = divmod(number, 62)
        digits.append(_BASE62[digit])
    return "".join(reversed(digits))


class Authenticator:
    """Finds the tenant of a key. Found keys are remembered for `memory` seconds, at most `most` of them.

    So a revoked key works for at most that long, in every process. Unknown keys are not remembered: a key works as soon
    as it is made. Beyond `most_asked` keys that the storage is asked about at once, the service is full.
    """

    def __init__(
        self, database: Database, *, demo: bool, memory: float = 1.0, most: int = 10_000, most_asked: int = 1_024
    ) -> None:
        self._database = database
        self._unscoped = Unscoped(database)
        self._demo = DEMO_KEYS if demo else {}
        self._memory = memory
        self._most = most
        self._most_asked = most_asked
        self._asked = 0
        # oldest first: all are remembered equally long
        self._found: OrderedDict[str, tuple[float, Scope]] = OrderedDict()

    async def scope(self, key: str) -> Scope | None:
        """The scope of the tenant that `key` belongs to, None where it opens nothing. Raises Unavailable and Overloaded."""
        if tenant_id := self._demo.get(key):
            return Scope(self._database, tenant_id, None)
        if not is_well_formed(key):
            return None
        hashed, now = key_hash(key), time.monotonic()
        while self._found and next(iter(self._found.values()))[0] <= now:
            self._found.popitem(last=False)
        if remembered := self._found.get(hashed):
            return remembered[1]
        if self._asked >= self._most_asked:
            raise Overloaded
        self._asked += 1
        try:
            row = await self._unscoped.one("find_api_key", hash=hashed)
        finally:
            self._asked -= 1
        if row is None:
            return None
        scope = Scope(self._database, row["tenant_id"], row["key_id"])
        # counted from when it was asked for: the key may have been revoked since
        self._found[hashed] = (now + self._memory, scope)
        self._found.move_to_end(hashed)
        if len(self._found) > self._most:
            self._found.popitem(last=False)
        return scope
