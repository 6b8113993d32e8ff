"""How slow the machine is just now: bounds on time are for a quick one, and stretched by this."""

import time

_TURNS = 300_000
# seconds that so many turns take where the bounds were found
_QUICK = 0.011


def slowness() -> float:
    """How many times as long the same work takes here and now; at least 1."""
    began, total = time.perf_counter(), 0
    for turn in range(_TURNS):
        total += turn
    return max(1.0, (time.perf_counter() - began) / _QUICK)
