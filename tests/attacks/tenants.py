"""Two tenants and a stranger against a model: sequences of every operation, compared with dictionaries after each step.

`Machine` is a Hypothesis state machine. Its rules stand in tenants_things.py, _history.py, _lists.py, _retries.py and
_keys.py, what they share in _base.py, the service they drive in _world.py, and what it must answer in model.py and
_oracle.py. After each step all lists of both tenants are compared whole, and at the end of a sequence each thing by itself.
Every answer to a rule is held against openapi.yaml, and every answer is searched for the marker of the other tenant, which
stands in all that it sends.

To run it by itself: `python -m tests.attacks.tenants SEED AMOUNT ENGINE`.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.stateful import run_state_machine_as_test

from tests.attacks.tenants_keys import Keys
from tests.attacks.tenants_lists import Lists
from tests.attacks.tenants_retries import Retries
from tests.attacks.tenants_world import World, contract

STEPS = 50
# sequences in one database; then comes a fresh one
_IN_ONE_DATABASE = 100
# so many sequences let every operation succeed, and so many try each, at least
_MANY, _SOME = 200, 20


class Machine(Retries, Lists, Keys):
    """All rules."""


def attack(seed: int, amount: int, folder: Path, engine: str = "sqlite", *, shrink: bool = True) -> dict[str, int]:
    """Runs at least `amount` sequences of 50 steps, with databases in `folder`; how often what was done.

    Raises AssertionError with the shortest sequence that it finds to fail, or with the first one unless `shrink`; and where
    an operation of openapi.yaml has not been reached, unless there are few.
    """
    counts: Counter[str] = Counter()
    set_hypothesis_home_dir(folder / "hypothesis")
    part = 0
    # Hypothesis ends a sequence early now and then, and that is none of those asked for
    while (missing := amount - counts[f"sequences of {STEPS} steps"]) > 0:
        place = folder / f"{part}"
        place.mkdir()
        some_sequences(seed * 10_000 + part, min(missing, _IN_ONE_DATABASE), place, engine, counts, shrink=shrink)
        part += 1
        assert part <= 10 + amount // 10, f"too many sequences end early: {counts}"
    if amount >= _SOME:
        cover_the_spec(counts, "operation" if amount < _MANY else "succeeded")
    return dict(sorted(counts.items()))


def cover_the_spec(counts: Mapping[str, int], how: str) -> None:
    """Fails where an operation of openapi.yaml was never tried, or never `succeeded`: one without a rule, for example."""
    named = {operation["operationId"].rpartition(".")[2] for _, _, operation in contract().operations()}
    missing = sorted(name for name in named if not counts.get(f"{how} {name}"))
    assert not missing, f"no sequence has reached {missing}"


def some_sequences(number: int, amount: int, folder: Path, engine: str, counts: Counter[str], *, shrink: bool) -> None:
    """Runs `amount` sequences in one database, under the seed `number`; adds to `counts` what was done."""
    with World(folder, number, counts, engine) as world:
        machine = seed(number)(type("Tenants", (Machine,), {"world": world}))
        options = settings(
            max_examples=amount,
            stateful_step_count=STEPS + 1,  # and the furnishing
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
            report_multiple_bugs=False,
            # a sequence is hundreds of requests: to be slow is what it is for
            suppress_health_check=[HealthCheck.too_slow],
        )
        try:
            run_state_machine_as_test(machine, settings=options)
        except Exception as error:
            # Hypothesis tells of the sequence that it has come to in the end
            sequence = [str(error), *getattr(error, "__notes__", ())]
            told = [f"Under the seed {number}, {world.failure}", "The sequence:", *sequence]
            raise AssertionError("\n".join(told)) from error


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        for name, number in attack(int(sys.argv[1]), int(sys.argv[2]), Path(temporary), sys.argv[3]).items():
            print(f"{number:>9,}  {name}")
