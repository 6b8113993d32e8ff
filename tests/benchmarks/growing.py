"""The arithmetic of growing: what each step carries, from what was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from service.config import Config
from service.storage.postgresql import CONNECTIONS

_CORES = 8
_DATABASE_CORES = 16
# what PostgreSQL allows unless it is told otherwise, and keeps for superusers
_ALLOWED, _KEPT = 100, 3
_TB = 10**12

_HEAD = ("step", "carries", "connections", "breaks first", "what moves it")


def growing(facts: Mapping[str, Any]) -> str:
    """A Markdown table; what follows from a measured figure, and was not measured itself, is marked as inferred."""
    routes = list(facts["routes"].values())
    of_service, of_database = ([each[of] for each in routes] for of in ("service_ms", "database_ms"))
    seen = facts["connections_per_process"]["ours"]
    workers = (_ALLOWED - _KEPT) // CONNECTIONS
    limit, window = Config.rate_limit, Config.rate_window
    size = sum(facts["bytes_per_run"].values())
    one_process = [each["rate"] for each in routes]
    busy_tenants = one_process[2] * window / limit
    one_machine = [_CORES * 1000 / sum(both) for both in zip(of_service, of_database, strict=True)]
    one_database = [_DATABASE_CORES * 1000 / each for each in of_database]
    steps = [
        (
            "one process, one file",
            f"{_rates(facts['embedded'])} (measured, one tenant)",
            "none",
            "its core",
            "`--database postgresql://…`",
        ),
        (
            "one process on PostgreSQL",
            f"{_rates(one_process)} (measured, 16 tenants, the database beside it); so many runs are what "
            f"{_few(busy_tenants)} tenants get that use up {limit} in {window} s all the time (inferred)",
            f"{CONNECTIONS} at the most, {seen} for these three (measured)",
            f"its core, of which a run takes {of_service[2]:.2f} ms (measured)",
            "`--workers`, `--limiter redis://…`",
        ),
        (
            "one machine",
            f"{_rates(facts['two_workers'])} with two workers on two cores, which the database and the load generator "
            f"use, too (measured); with {_CORES} cores {_rates(one_machine)} (inferred: a run takes {of_service[2]:.2f} ms "
            f"of a core in the service and {of_database[2]:.2f} ms in the database, measured)",
            f"{CONNECTIONS} a worker",
            "its cores",
            "a machine of its own for the database, and more with workers",
        ),
        (
            "one database",
            f"with {_DATABASE_CORES} cores {_rates(one_database)} (inferred); a run takes {size:,.0f} bytes with its "
            f"indexes (measured), so that 1 TB holds {_TB / size / 1e6:,.0f} million (inferred)",
            f"PostgreSQL's {_ALLOWED} are enough for {workers} workers (inferred)",
            "`max_connections`; then its cores and its disk; one tenant's writes wait for each other: "
            f"{_few(facts['one_tenant'][2])} runs a second (measured)",
            "`max_connections`; then `migrate --print-distribution`",
        ),
        (
            "a database spread by tenant",
            "on n nodes, n times the tenants (inferred; it has not been tried)",
            f"{CONNECTIONS} a worker",
            "a tenant that is larger than a node",
            "nothing here",
        ),
    ]
    return "\n".join(map(_line, (_HEAD, ["---"] * len(_HEAD), *steps)))


def _rates(rates: Sequence[float]) -> str:
    """Of the three routes, a second."""
    read, page, run = map(_few, rates)
    return f"{read} reads, {page} pages or {run} runs a second"


def _few(number: float) -> str:
    """With two digits that count: what is inferred is no better than that."""
    return f"{float(f'{number:.2g}'):,.0f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
