"""The fixed window, on a clock that the tests turn."""

import gc
import math
import random
import weakref
from collections.abc import Callable

import pytest

from service.errors import TooManyRuns
from service.limiter import FixedWindow


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


def refusal(check: Callable[[str], None], tenant: str = "a") -> TooManyRuns:
    with pytest.raises(TooManyRuns) as refused:
        check(tenant)
    return refused.value


def admitted(limiter: FixedWindow, tenant: str, tries: int) -> int:
    """How many of so many runs the limiter lets through."""
    count = 0
    for _ in range(tries):
        try:
            limiter.admit(tenant)
        except TooManyRuns:
            continue
        count += 1
    return count


@pytest.mark.parametrize("limit", [1, 2, 5, 100])
def test_exactly_the_limit_is_admitted(limit: int, clock: Clock) -> None:
    assert admitted(FixedWindow(limit, 60, clock), "a", limit + 50) == limit


def test_a_window_opens_with_the_first_admitted_run(limiter: FixedWindow, clock: Clock) -> None:
    clock.now += 59
    limiter.check("a")
    limiter.headers("a")
    seconds_left(limiter, "a")
    clock.now += 2
    assert admitted(limiter, "a", 9) == 5
    clock.now += 59.9
    refusal(limiter.admit)
    clock.now += 0.1
    assert admitted(limiter, "a", 9) == 5


def test_a_window_does_not_slide(limiter: FixedWindow, clock: Clock) -> None:
    limiter.admit("a")
    clock.now += 59
    assert admitted(limiter, "a", 9) == 4
    clock.now += 1
    assert admitted(limiter, "a", 9) == 5


def test_runs_that_were_not_used_up_are_not_saved(limiter: FixedWindow, clock: Clock) -> None:
    limiter.admit("a")
    clock.now += 600
    assert admitted(limiter, "a", 20) == 5


def test_the_next_window_opens_with_its_own_first_run(limiter: FixedWindow, clock: Clock) -> None:
    admitted(limiter, "a", 5)
    clock.now += 100
    limiter.admit("a")
    assert seconds_left(limiter, "a") == 60


def test_a_check_counts_nothing(limiter: FixedWindow) -> None:
    for _ in range(20):
        limiter.check("a")
    assert admitted(limiter, "a", 9) == 5


def test_a_refused_run_counts_nothing_and_makes_no_window_longer(limiter: FixedWindow, clock: Clock) -> None:
    admitted(limiter, "a", 5)
    clock.now += 30
    assert admitted(limiter, "a", 1_000) == 0
    assert seconds_left(limiter, "a") == 30
    clock.now += 30
    assert admitted(limiter, "a", 9) == 5


def test_a_run_that_is_taken_back_leaves_its_place_in_its_own_window(limiter: FixedWindow, clock: Clock) -> None:
    take_back = limiter.admit("a")
    assert admitted(limiter, "a", 9) == 4
    take_back()
    assert admitted(limiter, "a", 9) == 1
    take_back = limiter.admit("b")
    clock.now += 60
    assert admitted(limiter, "b", 9) == 5
    take_back()
    assert admitted(limiter, "b", 9) == 0


def test_check_refuses_what_admit_would(limiter: FixedWindow, clock: Clock) -> None:
    for _ in range(5):
        limiter.check("a")
        limiter.admit("a")
    clock.now += 12.5
    checked, refused = refusal(limiter.check), refusal(limiter.admit)
    assert checked.detail == refused.detail == "The limit is 5 runs in 60 seconds; try again in 48 seconds."
    assert checked.headers == refused.headers == {"Retry-After": "48"}


def test_tenants_are_independent(limiter: FixedWindow, clock: Clock) -> None:
    assert admitted(limiter, "a", 9) == 5
    clock.now += 30
    assert limiter.headers("b")["RateLimit"] == '"run";r=5;t=60'
    assert admitted(limiter, "b", 9) == 5
    clock.now += 30
    assert limiter.headers("a")["RateLimit"] == '"run";r=5;t=60'
    assert limiter.headers("b")["RateLimit"] == '"run";r=0;t=30'
    limiter.admit("a")
    refusal(limiter.admit, "b")


def test_headers_say_the_policy_and_what_is_left(clock: Clock) -> None:
    limiter = FixedWindow(3, 10, clock)
    said = [limiter.headers("a")]
    for _ in range(3):
        limiter.admit("a")
        said.append(limiter.headers("a"))
        clock.now += 2.5
    clock.now += 2.5
    said.append(limiter.headers("a"))
    assert {headers["RateLimit-Policy"] for headers in said} == {'"run";q=3;w=10'}
    assert [headers["RateLimit"] for headers in said] == [
        '"run";r=3;t=10',
        '"run";r=2;t=10',
        '"run";r=1;t=8',
        '"run";r=0;t=5',
        '"run";r=3;t=10',
    ]
    assert all(headers.keys() == {"RateLimit-Policy", "RateLimit"} for headers in said)


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
