"""What the attackers did: their counts, what these must be at the least, and the table of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Counts = Mapping[str, int]


@dataclass(frozen=True)
class Attacker:
    """One attacker: a module of this package. `figures` is the text of its row, with the names of its counts.

    `least` are the counts without which a long run has not done its work, `most` what others may not exceed; `equal` are
    pairs of counts that must be the same.
    """

    name: str
    what: str
    figures: str
    amount: int
    small: int
    least: Counts = field(default_factory=dict)
    most: Counts = field(default_factory=dict)
    equal: tuple[tuple[str, str], ...] = ()

    def lacks(self, counts: Counts) -> list[str]:
        """What the counts of a long run lack, a sentence each."""
        short = [
            f"{self.name}: {name} is {counts.get(name, 0):,}, at least {least:,} are required"
            for name, least in self.least.items()
            if counts.get(name, 0) < least
        ]
        long = [
            f"{self.name}: {name} is {counts.get(name, 0):,}, at most {most:,} are allowed"
            for name, most in self.most.items()
            if counts.get(name, 0) > most
        ]
        unequal = [
            f"{self.name}: {one} is {counts.get(one, 0):,}, {other} is {counts.get(other, 0):,}"
            for one, other in self.equal
            if counts.get(one, 0) != counts.get(other, 0)
        ]
        return short + long + unequal


# the longest first
ATTACKERS = (
    Attacker(
        "tenants",
        "two tenants and a stranger against a model, in random sequences",
        "{sequences of 50 steps} sequences of 50 steps, and shorter ones: {steps} steps in all, of which {idle steps} found "
        "nothing to do; {requests} requests, {comparisons} comparisons",
        amount=1_000,
        small=20,
        least={"sequences of 50 steps": 1_000, "steps": 50_000},
    ),
    Attacker(
        "crashes",
        "the server killed with SIGKILL, and what it had acknowledged",
        "{kills} kills survived ({kills_load} under load, {kills_recovery} in the recovery, {kills_start_up} at the start, "
        "{kills_migrations} in migrations); {acknowledged} writes acknowledged, {found} found; {replays} replays; "
        "ready again after {slowest_start_ms} ms at the most ({repeated_starts} starts were slower once, on a busy machine)",
        amount=200,
        small=8,
        least={"kills": 200, "acknowledged": 1_000, "kills_migrations": 20, "kills_recovery": 20, "kills_start_up": 10},
        # a start that others on the machine have slowed down is repeated; more of them would be the service's own
        most={"slowest_start_ms": 2_000, "repeated_starts": 10},
        equal=(("acknowledged", "found"),),
    ),
    Attacker(
        "generated",
        "requests generated from `openapi.yaml`",
        "{requests} requests, {checks} checks, {links_followed} links followed, {stateful_sequences} stateful sequences: no "
        "5xx, no undocumented status, no answer beside its schema, nothing invalid taken and nothing valid refused",
        amount=10_000,
        small=300,
        least={"requests": 10_000, "operations": 21, "check_kinds": 15, "links": 40, "stateful_sequences": 300},
    ),
    Attacker(
        "hangups",
        "requests cut off at random moments, many at once",
        "{cancellations} cancellations: {done} done whole, {not_done} not at all; {found} of {acknowledged} others found",
        amount=2_000,
        small=60,
        least={"cancellations": 2_000, "done": 100, "not_done": 100},
        equal=(("acknowledged", "found"),),
    ),
    Attacker(
        "retries",
        "50 retries or changes at once",
        "{bursts} bursts, {effects} effects; {replays} replays, {over_limit} of them over the limit; {under_way} told 409, "
        "{reused} 422, {changed} 412; {hung_up} clients hung up",
        amount=100,
        small=12,
        least={"bursts": 100, "replays": 1_000, "changed": 100, "hung_up": 100},
    ),
)


def command(name: str, seed: int, *, small: bool = False) -> str:
    """The command that repeats one attacker's part of a run."""
    return f"python -m tests.attacks --only {name} --seed {seed}{' --small' if small else ''}"


def table(results: Sequence[tuple[Attacker, Counts]], seed: int, *, small: bool = False) -> str:
    """The attackers' counts as a Markdown table."""
    lines = ["| what | figures | command |", "|---|---|---|"]
    for attacker, counts in results:
        figures = attacker.figures.format_map({name: f"{count:,}" for name, count in counts.items()})
        lines.append(f"| {attacker.what} | {figures} | `{command(attacker.name, seed, small=small)}` |")
    return "\n".join(lines)
