"""The fixed window, of one process and of several. Time passes when the tests say so."""

import gc
import math
import random
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import pytest
import redis

from service import shared_limiter
from service.errors import TooManyRuns
from service.limiter import FixedWindow, LocalLimiter, RunLimiter, TakeBack
from service.shared_limiter import SharedWindow, connections_to


def seconds_left(limiter: FixedWindow, tenant: str) -> int:
    """The `t` of the RateLimit header."""
    return int(limiter.headers(tenant)["RateLimit"].rpartition("=")[2])


class Clock:
    """Stands still, or goes on by `tick` seconds behind each look at it."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now
        self.tick = 0.0

    def __call__(self) -> float:
        seen = self.now
        self.now += self.tick
        return seen


class Tenant(str):
    """A tenant's id of which a test can see whether somebody still holds it."""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> FixedWindow:
    return FixedWindow(5, 60, clock)


class Time(Protocol):
    """Makes limiters, and lets time pass for all that they have counted."""

    def limiter(self, limit: int, seconds: int) -> RunLimiter: ...

    def passes(self, seconds: float) -> None: ...


class LocalTime:
    """The time of limiters that look at a clock of ours."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def limiter(self, limit: int, seconds: int) -> RunLimiter:
        return LocalLimiter(limit, seconds, self._clock)

    def passes(self, seconds: float) -> None:
        self._clock.now += seconds


class ServersTime:
    """The time of limiters that look at a server's clock. Nobody can turn it: windows are moved into the past instead."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._server = redis.Redis.from_url(url)
        self.made: list[SharedWindow] = []

    def limiter(self, limit: int, seconds: int) -> RunLimiter:
        self.made.append(SharedWindow(connections_to(self._url), limit, seconds))
        return self.made[-1]

    def passes(self, seconds: float) -> None:
        for key in self._server.scan_iter(f"{shared_limiter.PREFIX}*"):
            self._server.hincrby(key, "ends", -round(seconds * 1e6))
            self._server.pexpire(key, self._server.pttl(key) - round(seconds * 1e3))

    async def close(self) -> None:
        for each in self.made:
            await each.close()
        self._server.close()


@pytest.fixture
async def time(limiter_option: str, clock: Clock) -> AsyncIterator[Time]:
    if limiter_option == "local":
        yield LocalTime(clock)
    else:
        servers = ServersTime(limiter_option)
        yield servers
        await servers.close()


@pytest.fixture
def runs(time: Time) -> RunLimiter:
    return time.limiter(5, 60)


async def check(runs: RunLimiter, tenant: str = "a") -> None:
    await runs.quota(tenant).check()


async def admit(runs: RunLimiter, tenant: str = "a") -> TakeBack:
    return await runs.quota(tenant).admit()


async def said(runs: RunLimiter, tenant: str = "a") -> dict[str, str]:
    """The headers of a request that only looks."""
    quota = runs.quota(tenant)
    await quota.look()
    return quota.headers()


async def left(runs: RunLimiter, tenant: str = "a") -> str:
    return (await said(runs, tenant))["RateLimit"]


async def refused(asked: Awaitable[object]) -> TooManyRuns:
    with pytest.raises(TooManyRuns) as refused:
        await asked
    return refused.value


async def admitted(runs: RunLimiter, tenant: str, tries: int) -> int:
    """How many of so many runs the limiter lets through."""
    count = 0
    for _ in range(tries):
        try:
            await admit(runs, tenant)
        except TooManyRuns:
            continue
        count += 1
    return count


# Wherever runs are counted


@pytest.mark.parametrize("limit", [1, 2, 5, 100])
async def test_exactly_the_limit_is_admitted(limit: int, time: Time) -> None:
    assert await admitted(time.limiter(limit, 60), "a", limit + 50) == limit


async def test_a_window_opens_with_the_first_admitted_run(runs: RunLimiter, time: Time) -> None:
    time.passes(59)
    await check(runs)
    await said(runs)
    time.passes(2)
    assert await admitted(runs, "a", 9) == 5
    time.passes(59.5)
    await refused(admit(runs))
    time.passes(0.5)
    assert await admitted(runs, "a", 9) == 5


async def test_a_window_does_not_slide(runs: RunLimiter, time: Time) -> None:
    await admit(runs)
    time.passes(59)
    assert await admitted(runs, "a", 9) == 4
    time.passes(1)
    assert await admitted(runs, "a", 9) == 5


async def test_runs_that_were_not_used_up_are_not_saved(runs: RunLimiter, time: Time) -> None:
    await admit(runs)
    time.passes(600)
    assert await admitted(runs, "a", 20) == 5


async def test_the_next_window_opens_with_its_own_first_run(runs: RunLimiter, time: Time) -> None:
    await admitted(runs, "a", 5)
    time.passes(100)
    await admit(runs)
    assert await left(runs) == '"run";r=4;t=60'


async def test_a_check_counts_nothing(runs: RunLimiter) -> None:
    for _ in range(20):
        await check(runs)
    assert await admitted(runs, "a", 9) == 5


async def test_a_refused_run_counts_nothing_and_makes_no_window_longer(runs: RunLimiter, time: Time) -> None:
    await admitted(runs, "a", 5)
    time.passes(30)
    assert await admitted(runs, "a", 200) == 0
    assert await left(runs) == '"run";r=0;t=30'
    time.passes(30)
    assert await admitted(runs, "a", 9) == 5


async def test_a_run_that_is_taken_back_leaves_its_place_in_its_own_window(runs: RunLimiter, time: Time) -> None:
    take_back = await admit(runs)
    assert await admitted(runs, "a", 9) == 4
    await take_back()
    assert await admitted(runs, "a", 9) == 1
    take_back = await admit(runs, "b")
    time.passes(60)
    assert await admitted(runs, "b", 9) == 5
    await take_back()
    assert await admitted(runs, "b", 9) == 0


async def test_a_request_says_what_is_left_after_what_it_took_back(runs: RunLimiter) -> None:
    quota = runs.quota("a")
    take_back = await quota.admit()
    assert quota.headers()["RateLimit"] == '"run";r=4;t=60'
    await take_back()
    assert quota.headers()["RateLimit"] == '"run";r=5;t=60'


async def test_check_refuses_what_admit_would(runs: RunLimiter, time: Time) -> None:
    for _ in range(5):
        await check(runs)
        await admit(runs)
    time.passes(12.5)
    checked, told = await refused(check(runs)), await refused(admit(runs))
    assert checked.detail == told.detail == "The limit is 5 runs in 60 seconds; try again in 48 seconds."
    assert checked.headers == told.headers == {"Retry-After": "48"}


async def test_tenants_are_independent(runs: RunLimiter, time: Time) -> None:
    assert await admitted(runs, "a", 9) == 5
    time.passes(30)
    assert await left(runs, "b") == '"run";r=5;t=60'
    assert await admitted(runs, "b", 9) == 5
    time.passes(30)
    assert await left(runs, "a") == '"run";r=5;t=60'
    assert await left(runs, "b") == '"run";r=0;t=30'
    await admit(runs, "a")
    await refused(admit(runs, "b"))


async def test_headers_say_the_policy_and_what_is_left(time: Time) -> None:
    runs = time.limiter(3, 10)
    every = [await said(runs)]
    for _ in range(3):
        quota = runs.quota("a")
        await quota.admit()
        every.append(quota.headers())
        time.passes(2.5)
    time.passes(2.5)
    every.append(await said(runs))
    assert {headers["RateLimit-Policy"] for headers in every} == {'"run";q=3;w=10'}
    assert [headers["RateLimit"] for headers in every] == [
        '"run";r=3;t=10',
        '"run";r=2;t=10',
        '"run";r=1;t=8',
        '"run";r=0;t=5',
        '"run";r=3;t=10',
    ]
    assert all(headers.keys() == {"RateLimit-Policy", "RateLimit"} for headers in every)


# In one process, on a clock of ours


def refusal(check: Callable[[str], None], tenant: str = "a") -> TooManyRuns:
    with pytest.raises(TooManyRuns) as refused:
        check(tenant)
    return refused.value


@pytest.mark.parametrize(
    ("passed", "left"), [(0, 60), (0.001, 60), (1, 59), (29.999, 31), (59, 1), (59.001, 1), (59.999999, 1), (60, 60)]
)
def test_seconds_left_are_rounded_up(passed: float, left: int, clock: Clock) -> None:
    clock.now = 1_024.0
    limiter = FixedWindow(1, 60, clock)
    limiter.admit("a")
    clock.now += passed
    assert seconds_left(limiter, "a") == left


def test_a_client_that_waits_as_long_as_it_was_told_is_admitted_and_not_a_second_earlier() -> None:
    dice = random.Random(4)
    for _ in range(2_000):
        clock = Clock(dice.choice([dice.uniform(100, 1_000), dice.uniform(1e6, 1e9), float(dice.randrange(100, 10**6))]))
        limiter = FixedWindow(1, dice.choice([1, 7, 60]), clock)
        limiter.admit("a")
        clock.now += dice.uniform(0, limiter.seconds) * 0.999
        wait = int(refusal(limiter.check).headers["Retry-After"])
        assert 1 <= wait <= limiter.seconds
        told = clock.now
        clock.now = math.nextafter(told + wait - 1, 0)
        refusal(limiter.admit)
        clock.now = told + wait
        limiter.admit("a")


def test_a_window_that_ends_between_two_looks_at_the_clock_is_not_said_to_last_another_one(clock: Clock) -> None:
    limiter = FixedWindow(1, 60, clock)
    limiter.admit("a")
    clock.now, clock.tick = 1_059.9, 0.2
    assert limiter.headers("a")["RateLimit"] in ('"run";r=0;t=1', '"run";r=1;t=60')
    clock.now, clock.tick = 1_000.0, 0.0
    limiter = FixedWindow(1, 60, clock)
    limiter.admit("a")
    clock.now, clock.tick = 1_059.9, 0.2
    assert refusal(limiter.check).headers["Retry-After"] == "1"


def test_memory_holds_open_windows_and_no_others(limiter: FixedWindow, clock: Clock) -> None:
    held: list[weakref.ref[Tenant]] = []
    for number in range(100):
        tenant = Tenant(f"tenant {number}")
        held.append(weakref.ref(tenant))
        limiter.admit(tenant)
        clock.now += 1
    del tenant

    def remembered() -> int:
        gc.collect()
        return sum(each() is not None for each in held)

    assert remembered() == 60
    clock.now += 39
    limiter.check("another")
    assert remembered() == 20
    clock.now += 1_000
    limiter.headers("another")
    assert remembered() == 0


def test_asking_about_a_tenant_is_not_remembered(limiter: FixedWindow) -> None:
    tenant = Tenant("a")
    held = weakref.ref(tenant)
    limiter.check(tenant)
    limiter.headers(tenant)
    seconds_left(limiter, tenant)
    del tenant
    gc.collect()
    assert held() is None
