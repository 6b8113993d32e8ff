"""The fixed window of runs, counted in a Redis or Valkey server for all processes that are told of it.

One script looks, counts and takes back, each in one round trip and by the server's clock alone; a tenant that had room a
moment ago is counted without a look. What it is sent and what it answers stands in `_SCRIPT`; how an unreachable server is
met, in `SharedWindow`.
"""

import asyncio
import logging
import math
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha1
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, NoScriptError, RedisError

from service.errors import Problem, Unavailable
from service.limiter import Limit, Quota, RunLimiter, TakeBack, over_the_limit, rate_limit_headers

PREFIX = "agent-platform:run:"

# A window ends at the moment that it says, to the microsecond; that its key expires only cleans up, a millisecond later.
# One that would last longer than a window does is from before the clock was set back, and closed.
_SCRIPT = """
-- KEYS[1]: the tenant's window, a hash: when it ends (microseconds of this server's clock), how many runs it has counted
-- ARGV: what to do, the limit, a window's length in microseconds, and the end of the window that a run is taken back from
-- Answers whether a run was counted, how many are, in how many microseconds the window ends, and when, by this clock
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local limit, length = tonumber(ARGV[2]), tonumber(ARGV[3])
local window = redis.call('HMGET', KEYS[1], 'ends', 'used')
local ends, used = tonumber(window[1]), tonumber(window[2])
if not ends or ends <= now or ends - now > length then
  ends, used = now + length, 0
end
local counted = 0
if ARGV[1] == 'admit' and used < limit then
  counted, used = 1, used + 1
  redis.call('HSET', KEYS[1], 'ends', ends, 'used', used)
  redis.call('PEXPIRE', KEYS[1], math.ceil((ends - now) / 1000) + 1)
elseif ARGV[1] == 'take back' and used > 0 and ends == tonumber(ARGV[4]) then
  used = used - 1
  redis.call('HSET', KEYS[1], 'used', used)
end
return {counted, used, ends - now, ends}
"""

_SHA = sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()
_DATABASE = re.compile(r"/?[0-9]*", re.ASCII)

# Seconds: how long an answer is waited for, with all that it takes, and how long a server that does not answer is left
# alone, which is what Retry-After says then.
_PATIENCE = 1.0
_PAUSE = 1.0
_CONNECTIONS = 32
# for so long a tenant that had room is taken to have some still, and is not asked about before its run is counted
_FRESH = 1.0

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def connections_to(url: str) -> Callable[[], Connection]:
    """What makes connections to the server that a redis://, rediss:// (TLS), valkey:// or valkeys:// URL names.

    Raises ValueError for a URL that can't be used. What it says holds nothing of the URL, which may hold a password.
    """
    try:
        parts = urlsplit(url)
        scheme = parts.scheme.replace("valkey", "redis")
        # a name that no resolver could be asked for raises here and not with each run
        (parts.hostname or "").encode("idna")
        if scheme not in ("redis", "rediss") or not parts.hostname or not _DATABASE.fullmatch(parts.path):
            raise ValueError
        pool = ConnectionPool.from_url(
            parts._replace(scheme=scheme).geturl(),
            # `SharedWindow` bounds the whole; the driver would make a timer for each read
            socket_timeout=None,
            socket_connect_timeout=None,
            # a run that is sent twice may be counted twice
            retry=Retry(NoBackoff(), 0),
            # with the third one the driver does not look whether a connection that waits has been closed
            protocol=2,
        )
        # a setting that is none is found where a connection is made
        pool.connection_class(**pool.connection_kwargs)
    except (TypeError, ValueError):
        raise ValueError("The URL of the limiter can't be used.") from None
    return cast("Callable[[], Connection]", pool.make_connection)


@dataclass(frozen=True, slots=True)
class _Told:
    """What the server told: `left` is in seconds at the moment `at` of our clock, `ends` its own name for the window."""

    counted: bool
    used: int
    left: float
    ends: int
    at: float


class SharedWindow:
    """Admits `limit` runs per tenant and window of `seconds`, or as the tenant's own limit says, in all processes together.

    A server that does not answer is left alone for a second, in which everyone is refused at once; then one request tries it
    again. The log says when that begins and when it ends, with `meanwhile` for what becomes of the runs, and `tell` gets 1
    and 0.
    """

    def __init__(
        self,
        connections: Callable[[], Connection],
        limit: int,
        seconds: int,
        *,
        meanwhile: str = "are refused",
        tell: Callable[[float], None] = lambda lost: None,
    ) -> None:
        self._usual = Limit(limit, seconds)
        self._make = connections
        # connected and free, the one that was used last at the end
        self._idle: list[Connection] = []
        self._meanwhile = meanwhile
        self._tell = tell
        self._room = asyncio.Semaphore(_CONNECTIONS)
        self._lost = False
        self._left_alone_until = -math.inf
        # by tenant, the oldest first, and none that is not fresh
        self._told: OrderedDict[str, _Told] = OrderedDict()

    def quota(self, tenant_id: str, limit: Limit | None = None) -> Quota:
        return _SharedQuota(self, tenant_id, limit or self._usual)

    def has_room(self, tenant_id: str, limit: Limit) -> _Told | None:
        """What was told of the tenant a moment ago, if it had room then: to look again would be one round trip more.

        Whether a run is admitted is for `admit` to say. Where other processes have used up the rest since then, the database
        is asked for a run that is refused after all: for that moment, and no longer in a window.
        """
        told = self._told.get(tenant_id)
        is_fresh = told is not None and time.monotonic() - told.at < _FRESH and _left(told) > 0
        return told if told is not None and is_fresh and told.used < limit.runs else None

    async def look(self, tenant_id: str, limit: Limit) -> _Told:
        """How the tenant's window stands. Asked twice where a connection breaks, for it counts nothing."""
        return await self._reach(tenant_id, limit, "look", tries=2)

    async def admit(self, tenant_id: str, limit: Limit) -> _Told:
        """Counts a run where there is room. Asked once: a run whose answer was lost may have been counted."""
        return await self._reach(tenant_id, limit, "admit")

    async def take_back(self, tenant_id: str, limit: Limit, ends: int) -> _Told:
        """Takes one run back from the window that ends at `ends`; from one that has ended meanwhile, nothing."""
        return await self._reach(tenant_id, limit, "take back", ends)

    async def open(self) -> None:
        """Connects; a server that does not answer is for the log to say, and may be there when the first run is."""
        with suppress(Unavailable):
            await self.look("", self._usual)

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().disconnect()

    async def _ask(self, tenant_id: str, limit: Limit, what: str, ends: int) -> _Told:
        asked = (1, PREFIX + tenant_id, what, limit.runs, limit.seconds * 1_000_000, ends)
        connection = self._idle.pop() if self._idle else self._make()
        try:
            await _make_ready(connection)
            try:
                answer = await _call(connection, "EVALSHA", _SHA, *asked)
            except NoScriptError:
                # a server that was started again, or told to forget: it has done nothing yet, and keeps what it is sent now
                answer = await _call(connection, "EVAL", _SCRIPT, *asked)
        except BaseException:
            # what it still has to say would be taken for the answer to the next one
            await connection.disconnect(nowait=True)
            raise
        self._idle.append(connection)
        counted, used, left, ends = answer
        return _Told(bool(counted), used, left / 1e6, ends, time.monotonic())

    async def _ask_again(self, tries: int, tenant_id: str, limit: Limit, what: str, ends: int) -> _Told:
        try:
            return await self._ask(tenant_id, limit, what, ends)
        except ConnectionError:
            if tries == 1:
                raise
            return await self._ask_again(tries - 1, tenant_id, limit, what, ends)

    async def _reach(self, tenant_id: str, limit: Limit, what: str, ends: int = 0, *, tries: int = 1) -> _Told:
        """What the server tells. Raises Unavailable where it does not answer, or not with what it was asked for."""
        now = time.monotonic()
        if now < self._left_alone_until:
            raise _unreachable()
        if self._lost:
            self._left_alone_until = now + _PAUSE
        try:
            async with asyncio.timeout(_PATIENCE), self._room:
                told = await self._ask_again(tries, tenant_id, limit, what, ends)
        except (RedisError, OSError) as error:
            self._left_alone_until = time.monotonic() + _PAUSE
            if not self._lost:
                self._lost = True
                self._tell(1)
                _log.warning("The shared limiter does not answer (%r); until it does, runs %s.", error, self._meanwhile)
            raise _unreachable() from error
        if self._lost:
            self._lost = False
            self._tell(0)
            self._left_alone_until = -math.inf
            _log.warning("The shared limiter answers again, and counts the runs.")
        self._remember(tenant_id, told)
        return told

    def _remember(self, tenant_id: str, told: _Told) -> None:
        self._told[tenant_id] = told
        self._told.move_to_end(tenant_id)
        while told.at - next(iter(self._told.values())).at >= _FRESH:
            self._told.popitem(last=False)


async def _make_ready(connection: Connection) -> None:
    """Connects it, anew where the server has closed it or has something to say that nobody asked for.

    What the driver's own pool does, but at half the cost: it takes most of the time of such a call.
    """
    try:
        is_stale = connection.is_connected and await connection.can_read()
    except (ConnectionError, OSError):
        is_stale = True
    if is_stale:
        await connection.disconnect(nowait=True)
    if not connection.is_connected:
        await cast("Awaitable[None]", connection.connect())  # type: ignore[no-untyped-call]  # the driver does not say


async def _call(connection: Connection, *command: str | int) -> Any:
    await connection.send_command(*command)
    return await connection.read_response()


def _unreachable() -> Unavailable:
    return Unavailable("The limit on runs can't be looked up at the moment; please try again.")


class _SharedQuota:
    """What the server told one request. It asks for nobody else, so that it never says what another request was told."""

    __slots__ = ("_limit", "_tenant_id", "_told", "_window")

    def __init__(self, window: SharedWindow, tenant_id: str, limit: Limit) -> None:
        self._window = window
        self._tenant_id = tenant_id
        self._limit = limit
        self._told: _Told | None = None

    async def look(self) -> None:
        self._told = await self._window.look(self._tenant_id, self._limit)

    async def check(self) -> None:
        self._told = self._window.has_room(self._tenant_id, self._limit) or await self._window.look(
            self._tenant_id, self._limit
        )
        if self._told.used >= self._limit.runs:
            raise self._refusal(self._told)

    async def admit(self) -> TakeBack:
        self._told = await self._window.admit(self._tenant_id, self._limit)
        if not self._told.counted:
            raise self._refusal(self._told)
        return partial(self._take_back, self._told.ends)

    def headers(self) -> dict[str, str]:
        if self._told is None:
            return {}
        limit, seconds = self._limit.runs, self._limit.seconds
        left = _left(self._told)
        if left <= 0:
            return rate_limit_headers(limit, seconds, limit, seconds)
        return rate_limit_headers(limit, seconds, max(0, limit - self._told.used), math.ceil(left))

    async def _take_back(self, ends: int) -> None:
        try:
            self._told = await self._window.take_back(self._tenant_id, self._limit, ends)
        except Unavailable:
            # it stays counted until its window ends
            _log.warning("A run of nothing could not be taken back from the shared limiter.")

    def _refusal(self, told: _Told) -> Problem:
        return over_the_limit(self._limit.runs, self._limit.seconds, max(1, math.ceil(_left(told))))


def _left(told: _Told) -> float:
    """Seconds until the window ends: no fewer than there are, for the answer took its time to come."""
    return told.left - (time.monotonic() - told.at)


class Fallback:
    """Counts with `shared`, and with `local` while that is unavailable; each run that it admits there is `told`."""

    def __init__(self, shared: RunLimiter, local: RunLimiter, told: Callable[[], None] = lambda: None) -> None:
        self._shared = shared
        self._local = local
        self._told = told

    def quota(self, tenant_id: str, limit: Limit | None = None) -> Quota:
        return _FallbackQuota(self._shared.quota(tenant_id, limit), self._local.quota(tenant_id, limit), self._told)


class _FallbackQuota:
    """Asks the shared one, then the local one. Its headers are those of the one that answered last."""

    __slots__ = ("_answered", "_local", "_shared", "_tell")

    def __init__(self, shared: Quota, local: Quota, tell: Callable[[], None]) -> None:
        self._shared = shared
        self._local = local
        self._tell = tell
        self._answered = shared

    async def look(self) -> None:
        await self._ask(lambda quota: quota.look())

    async def check(self) -> None:
        await self._ask(lambda quota: quota.check())

    async def admit(self) -> TakeBack:
        take_back = await self._ask(lambda quota: quota.admit())
        if self._answered is self._local:
            self._tell()
        return take_back

    def headers(self) -> dict[str, str]:
        return self._answered.headers()

    async def _ask(self, ask: Callable[[Quota], Awaitable[_T]]) -> _T:
        try:
            self._answered = self._shared
            return await ask(self._shared)
        except Unavailable:
            self._answered = self._local
            return await ask(self._local)
