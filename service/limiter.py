"""The fixed window: so many runs a tenant, or wrong keys an address, counted from the first one."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from service.errors import Problem, TooManyRuns, TooManyWrongKeys


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
        return {
            "RateLimit-Policy": f'"run";q={self.limit};w={self.seconds}',
            "RateLimit": f'"run";r={remaining};t={self._left(window, now)}',
        }

    def _open_window(self, tenant_id: str, now: float) -> _Window | None:
        while self._windows and next(iter(self._windows.values())).ends <= now:
            self._windows.popitem(last=False)
        return self._windows.get(tenant_id)

    def _left(self, window: _Window | None, now: float) -> int:
        return self.seconds if window is None else max(1, math.ceil(window.ends - now))

    def _refuse_if_full(self, window: _Window | None, now: float) -> None:
        if window is not None and window.used >= self.limit:
            wait = self._left(window, now)
            raise self._refusal(
                f"The limit is {self.limit} {self._counted} in {self.seconds} seconds; try again in {wait} seconds.",
                headers={"Retry-After": str(wait)},
            )


def _take_back(window: _Window) -> None:
    # one that has ended meanwhile is nobody's any more
    window.used -= 1


def wrong_keys(limit: int) -> FixedWindow:
    """Lets an address send `limit` wrong keys a minute. It remembers the last 10,000 addresses: they can be made up."""
    return FixedWindow(limit, 60, counted="wrong keys", refusal=TooManyWrongKeys, most=10_000)
