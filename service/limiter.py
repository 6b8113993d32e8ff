"""The fixed window: so many runs a tenant, or wrong keys an address, counted from the first one."""

import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from service.errors import Problem, TooManyRuns, TooManyWrongKeys

TakeBack = Callable[[], Awaitable[None]]


class Quota(Protocol):
    """The limit as one request meets it: what its tenant has left. Its methods raise Unavailable where nobody can say."""

    async def look(self) -> None:
        """Sees how the window stands, for `headers`."""

    async def check(self) -> None:
        """Raises the refusal where `admit` would; a client that waits as long as it says is admitted."""

    async def admit(self) -> TakeBack:
        """Counts the run. Raises the refusal, and counts nothing, where the window is full.

        What it returns takes the run back, for one that came to nothing, and raises nothing.
        """

    def headers(self) -> dict[str, str]:
        """RateLimit-Policy and RateLimit, after what this request has counted; none where nobody has been asked."""


@dataclass(frozen=True, slots=True)
class Limit:
    """So many runs in a window of so many seconds."""

    runs: int
    seconds: int


class RunLimiter(Protocol):
    """Where the runs of all tenants are counted."""

    def quota(self, tenant_id: str, limit: Limit | None = None) -> Quota:
        """For one request of the tenant, which may have a limit of its own."""


@dataclass(slots=True)
class _Window:
    ends: float
    used: int


class FixedWindow:
    """Admits `limit` runs per tenant and window of `seconds`, which opens with the tenant's first admitted run.

    It awaits nothing, so that of any number of requests at once exactly `limit` are admitted. It remembers only open
    windows, and no more than `most` of them: all are equally long, so the oldest ends first. What it counts, and what it
    raises, can be something else than runs (`wrong_keys`).
    """

    def __init__(
        self,
        limit: int,
        seconds: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        counted: str = "runs",
        refusal: type[Problem] = TooManyRuns,
        most: int | None = None,
    ) -> None:
        self.limit = limit
        self.seconds = seconds
        self._clock = clock
        self._counted = counted
        self._refusal = refusal
        self._most = most
        self._windows: OrderedDict[str, _Window] = OrderedDict()

    def admit(self, tenant_id: str) -> Callable[[], None]:
        """Counts one run of the tenant. Raises the refusal, and counts nothing, where its window is full.

        What it returns takes the run back, for one that came to nothing.
        """
        now = self._clock()
        window = self._open_window(tenant_id, now)
        self._refuse_if_full(window, now)
        if window is None:
            window = self._windows[tenant_id] = _Window(ends=now + self.seconds, used=0)
            if self._most is not None and len(self._windows) > self._most:
                self._windows.popitem(last=False)
        window.used += 1
        return partial(_take_back, window)

    def check(self, tenant_id: str) -> None:
        """Raises the refusal where `admit` would; a client that waits as long as it says is admitted."""
        now = self._clock()
        self._refuse_if_full(self._open_window(tenant_id, now), now)

    def headers(self, tenant_id: str) -> dict[str, str]:
        """RateLimit-Policy and RateLimit (draft-ietf-httpapi-ratelimit-headers-10), after what was counted so far."""
        now = self._clock()
        window = self._open_window(tenant_id, now)
        remaining = self.limit - (0 if window is None else window.used)
        return rate_limit_headers(self.limit, self.seconds, remaining, self._left(window, now))

    def _open_window(self, tenant_id: str, now: float) -> _Window | None:
        while self._windows and next(iter(self._windows.values())).ends <= now:
            self._windows.popitem(last=False)
        return self._windows.get(tenant_id)

    def _left(self, window: _Window | None, now: float) -> int:
        return self.seconds if window is None else max(1, math.ceil(window.ends - now))

    def _refuse_if_full(self, window: _Window | None, now: float) -> None:
        if window is not None and window.used >= self.limit:
            raise over_the_limit(self.limit, self.seconds, self._left(window, now), self._counted, self._refusal)


def _take_back(window: _Window) -> None:
    # one that has ended meanwhile is nobody's any more
    window.used -= 1


class LocalLimiter:
    """Counts the runs in this process. A tenant whose limit is changed begins a window of the new kind."""

    def __init__(self, limit: int, seconds: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._usual = Limit(limit, seconds)
        self._clock = clock
        # those of each kind are equally long
        self._windows: dict[Limit, FixedWindow] = {}

    def quota(self, tenant_id: str, limit: Limit | None = None) -> Quota:
        limit = limit or self._usual
        windows = self._windows.get(limit)
        if windows is None:
            windows = self._windows[limit] = FixedWindow(limit.runs, limit.seconds, self._clock)
        return _LocalQuota(windows, tenant_id)


class _LocalQuota:
    """What FixedWindow says to one request. It awaits nothing either."""

    __slots__ = ("_tenant_id", "_window")

    def __init__(self, window: FixedWindow, tenant_id: str) -> None:
        self._window = window
        self._tenant_id = tenant_id

    async def look(self) -> None:
        pass

    async def check(self) -> None:
        self._window.check(self._tenant_id)

    async def admit(self) -> TakeBack:
        take_back = self._window.admit(self._tenant_id)

        async def awaited() -> None:
            take_back()

        return awaited

    def headers(self) -> dict[str, str]:
        return self._window.headers(self._tenant_id)


def rate_limit_headers(limit: int, seconds: int, remaining: int, left: int) -> dict[str, str]:
    """What is `remaining` of the limit until the window ends in `left` seconds, as every limiter says it."""
    return {"RateLimit-Policy": f'"run";q={limit};w={seconds}', "RateLimit": f'"run";r={remaining};t={left}'}


def over_the_limit(
    limit: int, seconds: int, wait: int, counted: str = "runs", refusal: type[Problem] = TooManyRuns
) -> Problem:
    """The refusal of what is over the limit, as every limiter says it."""
    detail = f"The limit is {limit} {counted} in {seconds} seconds; try again in {wait} seconds."
    return refusal(detail, headers={"Retry-After": str(wait)})


def wrong_keys(limit: int) -> FixedWindow:
    """Lets an address send `limit` wrong keys a minute. It remembers the last 10,000 addresses: they can be made up."""
    return FixedWindow(limit, 60, counted="wrong keys", refusal=TooManyWrongKeys, most=10_000)
