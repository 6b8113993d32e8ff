"""API key -> tenant. contract.py asks `Authenticator.caller` for each request that needs a key."""

import asyncio
import re
import secrets
import string
import time
import zlib
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256

from service.errors import Overloaded, Unavailable
from service.limiter import Limit
from service.storage.scope import Database, Scope, Unscoped
from service.storage.units import Row, Unit, ask
from service.times import utc_now

_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SECRET_LENGTH = 33  # log2(62 ** 33) = 196 random bits, 160 of them beyond the prefix that is shown
_CHECKSUM_LENGTH = 6  # 62 ** 6 > 2 ** 32
_PREFIX_LENGTH = 9
_KEY = re.compile(rf"mk_[0-9A-Za-z]{{{_SECRET_LENGTH + _CHECKSUM_LENGTH}}}", re.ASCII)

# what a key can open, in the order in which they are stored
SCOPES = ("keys", "read", "run", "write")
# how exactly the time of a key's last use is known
_NOTED_FOR = timedelta(minutes=1)

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


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose key it is and what it opens. `key_id` is None for a demo key."""

    tenant_id: str
    key_id: int | None
    scopes: frozenset[str]
    # None: what the service is told for all
    limit: Limit | None


class Authenticator:
    """Finds out who calls. Found keys are remembered for `memory` seconds, at most `most` of them.

    So a key that is revoked, has expired or whose tenant is shut out works for at most that long, in every process. Unknown
    keys are not remembered: a key works as soon as it is made. Beyond `most_asked` keys that the storage is asked about at
    once, the service is full.
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
        self._found: OrderedDict[str, tuple[float, Caller]] = OrderedDict()
        # the keys whose use is to be noted, with their tenants and when that was
        self._used: dict[int, tuple[str, str]] = {}

    async def caller(self, key: str) -> Caller | None:
        """Whose `key` it is, None where it opens nothing. Raises Unavailable and Overloaded."""
        is_demo = key in self._demo
        if not is_demo and not is_well_formed(key):
            return None
        hashed, now = key if is_demo else key_hash(key), time.monotonic()
        while self._found and next(iter(self._found.values()))[0] <= now:
            self._found.popitem(last=False)
        if remembered := self._found.get(hashed):
            return remembered[1]
        if self._asked >= self._most_asked:
            raise Overloaded
        self._asked += 1
        try:
            caller = await (self._find_demo(key) if is_demo else self._find(hashed))
        finally:
            self._asked -= 1
        if caller is None:
            return None
        # counted from when it was asked for: the key may have been revoked since
        self._found[hashed] = (now + self._memory, caller)
        self._found.move_to_end(hashed)
        if len(self._found) > self._most:
            self._found.popitem(last=False)
        return caller

    def scope(self, caller: Caller, request_id: str | None) -> Scope:
        """What the caller sees of the storage, for one request."""
        return Scope(self._database, caller.tenant_id, caller.key_id, request_id)

    async def _find(self, hashed: str) -> Caller | None:
        now = utc_now()
        row = await self._unscoped.one("find_api_key", hash=hashed, now=now)
        if row is None:
            return None
        if row["last_used_at"] is None or row["last_used_at"] < utc_now(-_NOTED_FOR):
            self._used[row["key_id"]] = (row["tenant_id"], now)
        scopes = frozenset(row["scopes"].split())
        return Caller(row["tenant_id"], row["key_id"], scopes, _limit(row))

    async def _find_demo(self, key: str) -> Caller | None:
        row = await self._unscoped.one("find_demo_tenant", id=self._demo[key])
        return None if row is None else Caller(row["tenant_id"], None, frozenset(SCOPES), _limit(row))

    async def note_uses(self, pause: float = 1.0) -> None:
        """Notes which keys were used, every `pause` seconds and all in one transaction, until it is cancelled."""
        with suppress(asyncio.CancelledError):
            while True:
                await asyncio.sleep(pause)
                await self._note_uses()
        await self._note_uses()

    async def _note_uses(self) -> None:
        used, self._used = self._used, {}
        if used:
            # a storage that is away has other worries
            with suppress(Unavailable):
                await self._unscoped.write(_uses(used))


def _limit(row: Row) -> Limit | None:
    return None if row["run_limit"] is None else Limit(row["run_limit"], row["run_window"])


def _uses(used: dict[int, tuple[str, str]]) -> Unit[None]:
    for key_id, (tenant_id, now) in sorted(used.items()):
        yield ask("note_key_use", tenant=tenant_id, key_id=key_id, now=now)
