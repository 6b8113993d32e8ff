"""The benchmark: `python -m tests.benchmarks [--quick] [--out FOLDER]`.

Starts the servers, drives them side by side, prints the table of figures with what each must reach, and writes `table.md`,
`figures.json` and `growth.svg` to the folder. It wants wrk, a C compiler and the extra `bench`, and some gigabytes beside
the results: the databases stand there while it runs, for a disk in memory would flush for free.
"""

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.benchmarks.chart import growth_chart
from tests.benchmarks.compare import ROUTES, RUN, against, check_bodies
from tests.benchmarks.history import copy, seed
from tests.benchmarks.load import Client, Traffic, drive, get, latencies, post_run, rounds
from tests.benchmarks.report import Figure, machine, table
from tests.benchmarks.servers import CEILING, CLASSIC, OURS, USUAL, Server, running, start, stop, wait_for

_MIX = Traffic("mix", "/agents/{agent_id}")
_AGAINST_CEILING = (0.8, 0.8, 1.0)
_COMPARED = ((CEILING, "the ceiling"), (USUAL, "the usual choice"), (CLASSIC, "the classic"))
_REQUIRED = {USUAL: 1.8, CLASSIC: 15.0}
_SMALLEST = 1_000
_STORED = 10_000


@dataclass(frozen=True)
class Scale:
    """How much is measured. Five rounds at least, so that a median is worth its name."""

    seconds: float
    rounds: int
    requests: int
    largest: int
    remembered: int

    @property
    def sizes(self) -> list[int]:
        return [size for size in (_SMALLEST, _STORED, 100_000, 1_000_000) if size <= self.largest]


_FULL = Scale(seconds=3, rounds=7, requests=500, largest=1_000_000, remembered=200_000)
_QUICK = Scale(seconds=1, rounds=5, requests=200, largest=100_000, remembered=40_000)


class Bench:
    """The measurements: each starts its servers on copies of the seeded databases, and ends them."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        self.folder = folder
        self.scale = scale
        self.databases = seed(folder, scale.sizes)

    def routes(self) -> list[Figure]:
        """The three routes against the three other servers, with 16 connections."""
        figures = []
        with ExitStack() as stack:
            servers = [self._serve(stack, name) for name in (OURS, CEILING, USUAL, CLASSIC)]
            check_bodies(servers)
            for (route, traffic), against_ceiling in zip(ROUTES, _AGAINST_CEILING, strict=True):
                loads = rounds(servers, traffic, 16, self.scale.seconds, self.scale.rounds)
                for other, called in _COMPARED:
                    least = _REQUIRED.get(other, against_ceiling)
                    figures.append(against(f"`{route}` against {called}", loads, other, least))
        return figures

    def slow_disk(self) -> list[Figure]:
        """Runs where a flush takes 5 ms more, against the ceiling, which commits each on its own."""
        library = self.folder / "slow_disk.so"
        source = Path(__file__).with_name("slow_disk.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
        with ExitStack() as stack:
            servers = [self._serve(stack, name, {"LD_PRELOAD": str(library)}) for name in (OURS, CEILING)]
            for server in servers:
                _check_slow(server)
            loads = rounds(servers, RUN, 64, self.scale.seconds, self.scale.rounds)
        return [against("`POST …/run`, 64 connections, flush + 5 ms, against one commit per request", loads, CEILING, 12)]

    def mix(self) -> list[Figure]:
        """How far the slowest of a hundred is from the middle one, with 64 connections that read and run."""
        with ExitStack() as stack:
            server = self._serve(stack, OURS)
            loads = rounds([server], _MIX, 64, self.scale.seconds, self.scale.rounds)[OURS]
        ratio = statistics.median(load.p99 / load.p50 for load in loads)
        p50, p99 = (statistics.median(values) for values in ([load.p50 for load in loads], [load.p99 for load in loads]))
        detail = f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, {statistics.median(load.rate for load in loads):,.0f}/s"
        return [Figure("p99 / p50, 64 connections, 80 % reads, 20 % runs", ratio, 5, at_most=True, detail=detail)]

    def growth(self) -> tuple[list[Figure], dict[str, dict[int, float]]]:
        """Four requests on databases of each size, one after the other in turn; the figures compare largest and smallest."""
        series: dict[str, dict[int, float]] = {}
        with ExitStack() as stack:
            servers = {size: self._serve(stack, OURS, size=size) for size in self.scale.sizes}
            clients: dict[int, Client] = {}
            for size, server in servers.items():
                clients[size] = Client(server.port)
                stack.callback(clients[size].close)
            # the smallest history has a page of 1,000 only where a page is one run
            before = {size: server.call("GET", "/runs?limit=1&offset=998")["next"] for size, server in servers.items()}
            choice = random.Random(3)
            requests = {
                "first page": lambda size: get("/runs?limit=10"),
                "page 1,000": lambda size: get(f"/runs?limit=1&cursor={before[size]}"),
                "one run": lambda size: get(f"/runs/{choice.randint(1, size)}"),
                "one more run": lambda size: post_run(),
            }
            for name, request in requests.items():
                series[name] = latencies(clients, request, self.scale.requests)
        routes = ("`GET /runs?limit=10`", "page 1,000 by cursor", "`GET /runs/{id}`", "one more run")
        figures = []
        for route, line in zip(routes, series.values(), strict=True):
            small, large = line[_SMALLEST], line[self.scale.largest]
            name = f"{route}: {self.scale.largest:,} runs against {_SMALLEST:,}"
            detail = f"{large:.2f} ms, {small:.2f} ms"
            figures.append(Figure(name, large / small, 1.25, at_most=True, detail=detail))
        return figures, series

    def memory(self) -> list[Figure]:
        """Resident memory before any load, and after so many runs were stored."""
        with ExitStack() as stack:
            server = self._serve(stack, OURS, size=_SMALLEST)
            time.sleep(1)
            idle = server.resident_mb()
            stored = 0
            while stored < self.scale.remembered:
                drive(server, RUN, 16, 5)
                stored = server.call("GET", "/runs?limit=1")["total"] - _SMALLEST
            after = server.resident_mb()
        return [
            Figure("resident memory, idle", idle, 90, " MB", at_most=True),
            Figure(f"resident memory after {self.scale.remembered:,} runs", after, 130, " MB", at_most=True),
        ]

    def first_answer(self) -> list[Figure]:
        """From spawning `serve` on an existing database to its first answer."""
        taken = []
        for number in range(5):
            file = copy(self.databases[_STORED], self.folder / f"start-{number}.db")
            began = time.perf_counter()
            server = start(OURS, file)
            try:
                wait_for(server, "/health")
                taken.append(time.perf_counter() - began)
            finally:
                stop(server)
        detail = f"of 5, {min(taken):.2f} to {max(taken):.2f} s"
        return [Figure("`serve` to first answer", statistics.median(taken), 1.2, " s", at_most=True, detail=detail)]

    def _serve(
        self, stack: ExitStack, name: str, environment: Mapping[str, str] | None = None, size: int = _STORED
    ) -> Server:
        own = Path(tempfile.mkdtemp(dir=self.folder))
        stack.callback(shutil.rmtree, own)
        file = copy(self.databases[size], own / "benchmark.db")
        return stack.enter_context(running(name, file, environment))


def _check_slow(server: Server) -> None:
    """Raises RuntimeError where a run is answered sooner than a slow flush takes: then nothing was slowed, or flushed."""
    client = Client(server.port)
    took = min(client.time(post_run()) for _ in range(5))
    client.close()
    if took < 5:
        raise RuntimeError(f"{server.name} answers a run in {took:.1f} ms: slow_disk.c has no effect.")


def main() -> None:
    """Runs every measurement, prints the table and writes the results."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short rounds, and 100,000 runs instead of 1,000,000")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("latest"), help="where the results go")
    options = parser.parse_args()
    for program in ("wrk", "cc"):
        if shutil.which(program) is None:
            parser.error(f"the program {program} is missing; Debian has it as {'wrk' if program == 'wrk' else 'gcc'}.")
    scale = _QUICK if options.quick else _FULL
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {text}", file=sys.stderr, flush=True)

    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        where = machine(Path(folder))
        say(f"writing histories of up to {scale.largest:,} runs")
        bench = Bench(Path(folder), scale)
        figures = []
        for text, measure in (
            ("the three routes against the three others", bench.routes),
            ("runs on a slow disk", bench.slow_disk),
            ("reads and runs together", bench.mix),
        ):
            say(text)
            figures += measure()
        say("the cost of a long history")
        flat, series = bench.growth()
        say("memory")
        figures += [*flat, *bench.memory()]
        say("first answers")
        figures += bench.first_answer()
        say("done")
    text = f"{table(figures)}\n\n{where}; {time.strftime('%Y-%m-%d')}{', quick' if options.quick else ''}.\n"
    print(text)
    (options.out / "table.md").write_text(text)
    facts = {
        "machine": where,
        "quick": options.quick,
        "figures": [asdict(figure) | {"reached": figure.reached} for figure in figures],
        "growth_ms": series,
    }
    (options.out / "figures.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    (options.out / "growth.svg").write_text(growth_chart(series))


if __name__ == "__main__":
    main()
