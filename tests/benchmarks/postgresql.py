"""The benchmark of PostgreSQL: `python -m tests.benchmarks.postgresql [--quick] [--out FOLDER]`.

Makes databases of its own on the server that AGENT_PLATFORM_TEST_DATABASE names, else on the one of the standard local port,
fills them, drives the servers on them side by side, and prints the table of figures with what each must reach. Writes
`postgresql.md`, `postgresql.json` and, with the arithmetic of growing, `growing.md` to the folder. It wants wrk and the
extras `test` and `bench`.
"""

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tests.benchmarks.compare import ROUTES, RUN, WHOAMI, against, check_bodies
from tests.benchmarks.costs import cost
from tests.benchmarks.filling import Filled, filled
from tests.benchmarks.growing import growing
from tests.benchmarks.history import seed
from tests.benchmarks.load import Client, Load, get, latencies, post_run, rounds
from tests.benchmarks.report import Figure, machine, table
from tests.benchmarks.servers import (
    EMBEDDED,
    HAS_SHARED_LIMITER,
    ONE_OF_MANY,
    OURS,
    TWO_WORKERS,
    USUAL_POSTGRESQL,
    Server,
    running,
)
from tests.support import postgresql

_LEAST = (1.5, 1.5, 1.3)
_RUNS_EACH = 1_000
# of those that are driven side by side, as many as there are connections
_TENANTS = 16
# how many tenants of a large database are asked
_ASKED = 100


@dataclass(frozen=True)
class Scale:
    """How much is measured. Five rounds at least, so that a median is worth its name."""

    seconds: float
    rounds: int
    requests: int
    tenants: int

    @property
    def largest(self) -> int:
        return self.tenants * _RUNS_EACH


_FULL = Scale(seconds=3, rounds=7, requests=500, tenants=1_000)
_QUICK = Scale(seconds=1, rounds=5, requests=200, tenants=100)


class Bench:
    """The measurements: each starts its servers on databases that nobody else uses meanwhile, and ends them."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        self.folder = folder
        self.scale = scale
        # what the arithmetic of growing wants
        self.facts: dict[str, Any] = {"routes": {}, "one_tenant": [], "embedded": [], "two_workers": []}
        self.ours, self.others = (filled(name, _TENANTS, _TENANTS * _RUNS_EACH) for name in ("ours", "others"))

    def routes(self) -> list[Figure]:
        """The three routes against FastAPI on asyncpg and our own embedded engine, one process each, with 16 connections."""
        figures = []
        file = seed(self.folder, [_RUNS_EACH])[_RUNS_EACH]
        with ExitStack() as stack:
            servers = [self._serve(stack, OURS, self.ours), self._serve(stack, USUAL_POSTGRESQL, self.others)]
            embedded = stack.enter_context(running(EMBEDDED, file))
            check_bodies(servers)
            for (route, traffic), least in zip(ROUTES, _LEAST, strict=True):
                loads = rounds([*servers, embedded], traffic, 16, self.scale.seconds, self.scale.rounds)
                figures.append(against(f"`{route}` against FastAPI on asyncpg", loads, USUAL_POSTGRESQL, least))
                figures.append(against(f"`{route}` against ours on SQLite", loads, EMBEDDED, None))
                self.facts["one_tenant"].append(_median(loads[OURS]))
                self.facts["embedded"].append(_median(loads[EMBEDDED]))
            for route, traffic in ROUTES:
                spread = replace(traffic, callers=self.ours.callers)
                loads = rounds(servers, spread, 16, self.scale.seconds, self.scale.rounds)
                figures.append(against(f"`{route}` of 16 tenants against FastAPI on asyncpg", loads, USUAL_POSTGRESQL, None))
                taken = cost(servers[0], self.ours, spread, 16, self.scale.seconds)
                self.facts["routes"][route] = {
                    "rate": _median(loads[OURS]),
                    "service_ms": taken.service,
                    "database_ms": taken.database,
                }
            # the databases know who is connected, and each has one server
            connected = (
                "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
            )
            self.facts["connections_per_process"] = {
                "ours": self.ours.ask(connected)[0],
                "FastAPI on asyncpg": self.others.ask(connected)[0],
            }
        return figures

    def workers(self) -> list[Figure]:
        """Two processes on one port against one, on as many cores as there are for all."""
        figures = []
        with ExitStack() as stack:
            servers = [self._serve(stack, TWO_WORKERS, self.ours), self._serve(stack, ONE_OF_MANY, self.others)]
            for route, traffic in ROUTES:
                spread = replace(traffic, callers=self.ours.callers)
                loads = rounds(servers, spread, 16, self.scale.seconds, self.scale.rounds)
                name = f"`{route}` of 16 tenants, two workers against one"
                figures.append(against(name, loads, ONE_OF_MANY, 1.3, one=TWO_WORKERS))
                self.facts["two_workers"].append(_median(loads[TWO_WORKERS]))
            # what needs no database shows what the workers add where it does not share their cores
            loads = rounds(servers, WHOAMI, 16, self.scale.seconds, self.scale.rounds)
            figures.append(against("`GET /whoami`, two workers against one", loads, ONE_OF_MANY, None, one=TWO_WORKERS))
        return figures

    def limiter(self) -> list[Figure]:
        """What a run takes longer where the limit is shared: of the server's time under load, of a caller's time alone."""
        traffic = replace(RUN, callers=self.ours.callers)
        with ExitStack() as stack:
            servers = [self._serve(stack, OURS, self.ours), self._serve(stack, ONE_OF_MANY, self.others)]
            loads = rounds(servers, traffic, 16, self.scale.seconds, self.scale.rounds)
            clients = {server.name: self._client(stack, server) for server in servers}
            alone = latencies(clients, lambda _: post_run(), 2 * self.scale.requests)
        each = [[1000 / load.rate for load in loads[name]] for name in (ONE_OF_MANY, OURS)]
        more = statistics.median(shared - local for shared, local in zip(*each, strict=True))
        shared, local = map(statistics.median, each)
        return [
            Figure(
                "the shared limiter's cost per run, 16 connections",
                more,
                0.3,
                " ms",
                at_most=True,
                detail=f"{shared:.2f} ms, {local:.2f} ms",
            ),
            Figure(
                "how much longer a run takes with it that nobody else is beside",
                alone[ONE_OF_MANY] - alone[OURS],
                None,
                " ms",
                detail=f"{alone[ONE_OF_MANY]:.2f} ms, {alone[OURS]:.2f} ms",
            ),
        ]

    def growth(self) -> list[Figure]:
        """Three requests of any tenant of many and of the only one, one after the other in turn."""
        small, large = filled("small", 1, _RUNS_EACH), filled("large", self.scale.tenants, self.scale.largest)
        self.facts["bytes_per_run"] = _bytes_per_run(large)
        choice = random.Random(3)
        asked = {_RUNS_EACH: [0], self.scale.largest: choice.sample(range(self.scale.tenants), _ASKED)}
        taken = {}
        with ExitStack() as stack:
            databases = {_RUNS_EACH: small, self.scale.largest: large}
            servers = {size: self._serve(stack, OURS, database) for size, database in databases.items()}
            clients = {size: self._client(stack, server) for size, server in servers.items()}
            # a tenant has a page of 1,000 only where a page is one run
            before = {
                (size, tenant): servers[size].call("GET", "/runs?limit=1&offset=998", key=databases[size].keys[tenant])[
                    "next"
                ]
                for size, tenants in asked.items()
                for tenant in tenants
            }

            def of_any_tenant(request: Callable[[int, int, str], bytes]) -> Callable[[int], bytes]:
                def ready(size: int) -> bytes:
                    tenant = choice.choice(asked[size])
                    key = databases[size].keys[tenant]
                    # whose key it is, is remembered for a second: what is measured is the history
                    clients[size].time(get("/whoami", key))
                    return request(size, tenant, key)

                return ready

            requests = {
                "`GET /runs?limit=10`": lambda size, tenant, key: get("/runs?limit=10", key),
                "page 1,000 by cursor": lambda size, tenant, key: get(f"/runs?limit=1&cursor={before[size, tenant]}", key),
                "one more run": lambda size, tenant, key: post_run(databases[size].first_agent(tenant), key),
            }
            for name, request in requests.items():
                taken[name] = latencies(clients, of_any_tenant(request), self.scale.requests)
        self.facts["growth_ms"] = taken
        figures = []
        for name, line in taken.items():
            few, many = line[_RUNS_EACH], line[self.scale.largest]
            told = f"{name}: {self.scale.largest:,} runs of {self.scale.tenants:,} tenants against {_RUNS_EACH:,} of one"
            figures.append(Figure(told, many / few, 1.3, at_most=True, detail=f"{many:.2f} ms, {few:.2f} ms"))
        return figures

    def _serve(self, stack: ExitStack, name: str, database: Filled) -> Server:
        return stack.enter_context(running(name, database.url, folder=self.folder))

    def _client(self, stack: ExitStack, server: Server) -> Client:
        client = Client(server.port)
        stack.callback(client.close)
        return client


def _median(loads: Sequence[Load]) -> float:
    """Requests a second."""
    return statistics.median(load.rate for load in loads)


def _bytes_per_run(database: Filled) -> dict[str, float]:
    """What a run takes of the disk, in its table and in the indexes."""
    runs, in_table, in_indexes = database.ask("select count(*), pg_table_size('runs'), pg_indexes_size('runs') from runs")
    return {"table": round(in_table / runs), "indexes": round(in_indexes / runs)}


def main() -> None:
    """Runs every measurement, prints the table and writes the results."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.postgresql", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short rounds, and 100 tenants instead of 1,000")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("latest"), help="where the results go")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("the program wrk is missing; Debian has it as wrk.")
    if postgresql.server() is None:
        parser.error(postgresql.HOW_TO_RUN)
    scale = _QUICK if options.quick else _FULL
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {text}", file=sys.stderr, flush=True)

    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        where = machine(Path(folder))
        say("writing two short histories")
        bench = Bench(Path(folder), scale)
        where += f", PostgreSQL {bench.ours.ask('show server_version')[0].split()[0]}"
        say("the three routes against FastAPI on asyncpg")
        figures = bench.routes()
        say("two workers against one")
        figures += bench.workers()
        if HAS_SHARED_LIMITER:
            say("the shared limiter")
            figures += bench.limiter()
        else:
            say("there is no shared limiter yet: its cost is not measured")
        say(f"the cost of {scale.largest:,} runs of {scale.tenants:,} tenants")
        figures += bench.growth()
        say("done")
    text = f"{table(figures)}\n\n{where}; {time.strftime('%Y-%m-%d')}{', quick' if options.quick else ''}.\n"
    print(text)
    (options.out / "postgresql.md").write_text(text)
    (options.out / "growing.md").write_text(f"{growing(bench.facts)}\n")
    facts = {
        "machine": where,
        "quick": options.quick,
        "figures": [asdict(figure) | {"reached": figure.reached} for figure in figures],
        **bench.facts,
    }
    (options.out / "postgresql.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
