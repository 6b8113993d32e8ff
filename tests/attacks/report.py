"""What the attackers did: their counts, what these must be at the least, and the table of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Counts = Mapping[str, int]

_SHOWN = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}


@dataclass(frozen=True)
class Attacker:
    """One attacker, a module of this package, on one engine. `figures` is the text of its row, with the names of its counts.

    `least` are the counts without which a long run has not done its work, `most` what others may not exceed; `equal` are
    pairs of counts that must be the same.
    """

    name: str
    engine: str
    what: str
    figures: str
    amount: int
    small: int
    least: Counts = field(default_factory=dict)
    most: Counts = field(default_factory=dict)
    equal: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.name} on {self.engine}"

    def lacks(self, counts: Counts) -> list[str]:
        """What the counts of a long run lack, a sentence each."""
        short = [
            f"{self}: {name} is {counts.get(name, 0):,}, at least {least:,} are required"
            for name, least in self.least.items()
            if counts.get(name, 0) < least
        ]
        long = [
            f"{self}: {name} is {counts.get(name, 0):,}, at most {most:,} are allowed"
            for name, most in self.most.items()
            if counts.get(name, 0) > most
        ]
        unequal = [
            f"{self}: {one} is {counts.get(one, 0):,}, {other} is {counts.get(other, 0):,}"
            for one, other in self.equal
            if counts.get(one, 0) != counts.get(other, 0)
        ]
        return short + long + unequal


@dataclass(frozen=True)
class _Share:
    """What of an attacker's work is done on one engine; `figures` is what that engine adds to the text."""

    amount: int
    small: int
    least: Counts
    figures: str = ""


def _on_both(
    name: str,
    what: str,
    figures: str,
    sqlite: _Share,
    postgresql: _Share,
    most: Counts | None = None,
    equal: tuple[tuple[str, str], ...] = (),
) -> tuple[Attacker, ...]:
    return tuple(
        Attacker(name, engine, what, figures + share.figures, share.amount, share.small, share.least, most or {}, equal)
        for engine, share in (("sqlite", sqlite), ("postgresql", postgresql))
    )


# the longest first
ATTACKERS = (
    *_on_both(
        "tenants",
        "two tenants and a stranger against a model, in random sequences",
        "{sequences of 50 steps} sequences of 50 steps, and shorter ones: {steps} steps in all, of which {idle steps} found "
        "nothing to do; {requests} requests, {comparisons} comparisons",
        sqlite=_Share(1_000, 20, {"sequences of 50 steps": 1_000, "steps": 50_000}),
        postgresql=_Share(150, 10, {"sequences of 50 steps": 150, "steps": 7_500}),
    ),
    *_on_both(
        "crashes",
        "the server killed with SIGKILL, and what it had acknowledged",
        "{kills} kills survived ({kills_load} under load, {kills_recovery} at the start after a kill, {kills_start_up} at "
        "another start, {kills_migrations} in migrations); {acknowledged} writes acknowledged, {found} found; {replays} "
        "replays; ready again after {slowest_start_ms} ms at the most ({repeated_starts} starts were slower once, on a busy "
        "machine)",
        sqlite=_Share(
            200,
            8,
            {"kills": 200, "acknowledged": 1_000, "kills_migrations": 20, "kills_recovery": 20, "kills_start_up": 10},
        ),
        postgresql=_Share(
            50,
            8,
            {
                "kills": 50,
                "acknowledged": 250,
                "kills_migrations": 5,
                "kills_recovery": 5,
                "kills_start_up": 2,
                "migrations_beside": 1,
            },
            "; {migrations_beside} migrators were killed with another one waiting",
        ),
        # a start that others on the machine have slowed down is repeated; more of them would be the service's own
        most={"slowest_start_ms": 2_000, "repeated_starts": 30},
        equal=(("acknowledged", "found"),),
    ),
    *_on_both(
        "generated",
        "requests generated from `openapi.yaml`",
        "{requests} requests, {checks} checks, {links_followed} links followed, {stateful_sequences} stateful sequences: no "
        "5xx, no undocumented status, no answer beside its schema, nothing invalid taken and nothing valid refused",
        sqlite=_Share(
            10_000,
            300,
            {"requests": 10_000, "operations": 28, "check_kinds": 15, "links": 40, "stateful_sequences": 300},
        ),
        postgresql=_Share(
            5_000,
            300,
            {"requests": 5_000, "operations": 28, "check_kinds": 15, "links": 30, "stateful_sequences": 75},
        ),
    ),
    *_on_both(
        "hangups",
        "requests cut off at random moments, many at once",
        "{cancellations} cancellations: {done} done whole, {not_done} not at all; {found} of {acknowledged} others found",
        sqlite=_Share(2_000, 60, {"cancellations": 2_000, "done": 100, "not_done": 100}),
        postgresql=_Share(500, 60, {"cancellations": 500, "done": 25, "not_done": 25}),
        equal=(("acknowledged", "found"),),
    ),
    *_on_both(
        "retries",
        "50 retries or changes at once",
        "{bursts} bursts, {effects} effects; {replays} replays, {over_limit} of them over the limit; {under_way} told 409, "
        "{reused} 422, {changed} 412; {hung_up} clients hung up",
        sqlite=_Share(100, 12, {"bursts": 100, "replays": 1_000, "changed": 100, "hung_up": 100}),
        postgresql=_Share(
            50,
            18,
            {"bursts": 50, "replays": 500, "changed": 50, "hung_up": 50, "elsewhere": 5},
            "; {elsewhere} bursts came to two servers at once",
        ),
    ),
)


def command(attacker: Attacker, seed: int, *, small: bool = False) -> str:
    """The command that repeats one attacker's part of a run."""
    which = f"--only {attacker.name} --engine {attacker.engine}"
    return f"python -m tests.attacks {which} --seed {seed}{' --small' if small else ''}"


def table(results: Sequence[tuple[Attacker, Counts]], seed: int, *, small: bool = False) -> str:
    """The attackers' counts as a Markdown table."""
    lines = ["| what | engine | figures | command |", "|---|---|---|---|"]
    for attacker, counts in results:
        figures = attacker.figures.format_map({name: f"{count:,}" for name, count in counts.items()})
        lines.append(
            f"| {attacker.what} | {_SHOWN[attacker.engine]} | {figures} | `{command(attacker, seed, small=small)}` |"
        )
    return "\n".join(lines)


def facts(results: Sequence[tuple[Attacker, Counts]]) -> dict[str, dict[str, dict[str, int]]]:
    """The attackers' counts by their names and engines, as figures.json has them."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for attacker, counts in results:
        found.setdefault(attacker.name, {})[attacker.engine] = dict(counts)
    return found
