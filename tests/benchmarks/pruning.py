"""What requests notice while old runs are deleted: python -m tests.benchmarks.pruning [--quick] [--postgresql]

A server is driven with reads and runs while half of a long history goes: once by `agent-platform runs prune` beside it, once
by the server itself, as `--keep-runs` has it. How long requests take meanwhile is compared with before and after. The result
goes to `pruning.md` in the folder that --out names, or to `pruning_postgresql.md`.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks.filling import filled
from tests.benchmarks.history import seed
from tests.benchmarks.load import Client, Traffic, drive, get, post_run
from tests.benchmarks.report import Figure, machine, table
from tests.benchmarks.servers import OURS, Server, running
from tests.benchmarks.shared import KEY
from tests.support import postgresql
from tests.support.process import ROOT, clean_environment

_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
_PAGE = "/agents/1/runs?limit=10"
# connections that read, and that run
_READERS, _RUNNERS = 8, 4
# seconds between two requests of the one client that is watched
_BEAT = 0.01
_BOUND = 2.0


@dataclass
class Seen:
    """The p99 of each round's reads and runs, and the longest that the watched client had to wait for either."""

    reads: list[float] = field(default_factory=list)
    runs: list[float] = field(default_factory=list)
    longest: float = 0.0


def round_of(server: Server, seconds: float, seen: Seen, key: str) -> None:
    """Drives the server with reads and runs at once, for so long."""
    callers = ((key, 1),)
    with ThreadPoolExecutor() as pool, watched(server, seen, key):
        reads = pool.submit(drive, server, Traffic("get", _PAGE, callers), _READERS, seconds)
        runs = pool.submit(drive, server, Traffic("run", callers=callers), _RUNNERS, seconds)
        seen.reads.append(reads.result().p99)
        seen.runs.append(runs.result().p99)


@contextmanager
def watched(server: Server, seen: Seen, key: str) -> Iterator[None]:
    """One client more, who is patient, and notes the longest that he waited."""
    is_over = threading.Event()

    def live() -> None:
        client = Client(server.port)
        while not is_over.wait(_BEAT):
            seen.longest = max(seen.longest, client.time(post_run(key=key)), client.time(get(_PAGE, key)))
        client.close()

    watcher = threading.Thread(target=live)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()


def older_than(runs: int) -> str:
    """The age of the first half of the history, to the minute."""
    seconds = (datetime.now(UTC) - _BEGAN).total_seconds() - runs / 2
    return f"{int(seconds // 60)}m"


def while_it_lasts(server: Server, seconds: float, is_over: Callable[[], bool], key: str) -> tuple[Seen, float]:
    """Rounds until it is over, the last of them left out where it ended within; and how many seconds that took."""
    seen, began, took = Seen(), time.monotonic(), 0.0
    while not is_over():
        one = Seen()
        round_of(server, seconds, one, key)
        took = time.monotonic() - began
        if not is_over() or not seen.reads:
            seen.reads += one.reads
            seen.runs += one.runs
            seen.longest = max(seen.longest, one.longest)
    return seen, took


def figures(how: str, without: Seen, within: Seen) -> list[Figure]:
    def compared(what: str, one: list[float], other: list[float]) -> Figure:
        before, meanwhile = statistics.median(one), statistics.median(other)
        detail = f"{meanwhile:.1f} ms, {before:.1f} ms"
        return Figure(f"p99 of {what} while {how}, against without", meanwhile / before, _BOUND, at_most=True, detail=detail)

    longest = f"{without.longest:.1f} ms without"
    return [
        compared("reads", without.reads, within.reads),
        compared("runs", without.runs, within.runs),
        Figure(f"the longest that one client waited while {how}", within.longest, None, " ms", detail=longest),
    ]


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "service", "runs", "prune", *options]


def beside(database: Path | str, folder: Path, runs: int, seconds: float, rounds: int, key: str) -> list[Figure]:
    """The command beside a server."""
    without = Seen()
    with running(OURS, database, folder=folder) as server:
        round_of(server, 1, Seen(), key)
        for _ in range(rounds):
            round_of(server, seconds, without, key)
        call = command("--older-than", older_than(runs), "--database", str(database))
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(call, cwd=ROOT, env=clean_environment(), **quiet) as process:
            within, took = while_it_lasts(server, seconds, lambda: process.poll() is not None, key)
        if process.returncode:
            raise RuntimeError(f"runs prune ended with {process.returncode}.")
        for _ in range(rounds):
            round_of(server, seconds, without, key)
    rate = Figure("runs deleted a second by the command", runs / 2 / took, None, detail=f"{runs // 2:,} in {took:.0f} s")
    return [*figures("the command deletes", without, within), rate]


def by_itself(database: Path | str, folder: Path, runs: int, seconds: float, rounds: int, key: str) -> list[Figure]:
    """The server with `--keep-runs`."""
    without = Seen()
    with running(OURS, database, {"AGENT_PLATFORM_KEEP_RUNS": older_than(runs)}, folder) as server:
        # a server's first requests take longer, whatever else it does
        round_of(server, 1, Seen(), key)
        within, _ = while_it_lasts(server, seconds, lambda: b"older than they are kept" in server.log.read_bytes(), key)
        for _ in range(2 * rounds):
            round_of(server, seconds, without, key)
    return figures("the server deletes", without, within)


def sizes(file: Path) -> Figure:
    """What a file has lost by `--vacuum`."""
    before = file.stat().st_size
    call = command("--older-than", "36500d", "--vacuum", "--database", str(file))
    subprocess.run(call, check=True, capture_output=True, cwd=ROOT, env=clean_environment())
    after = file.stat().st_size
    detail = f"{before / 2**20:.0f} MB, {after / 2**20:.0f} MB with --vacuum"
    return Figure("size of the file after --vacuum, against before", after / before, None, detail=detail)


def main() -> None:
    """Deletes half of a history twice."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.pruning", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="50,000 of 100,000 runs instead of 500,000 of 1,000,000")
    parser.add_argument("--postgresql", action="store_true", help="on the server that the tests use, instead of a file")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("latest"), help="where the result goes")
    options = parser.parse_args()
    if options.postgresql and postgresql.server() is None:
        parser.error(postgresql.HOW_TO_RUN)
    runs, seconds, rounds = (100_000, 2, 3) if options.quick else (1_000_000, 10, 3)
    options.out.mkdir(parents=True, exist_ok=True)
    found: list[Figure] = []
    with tempfile.TemporaryDirectory(dir=options.out) as name:
        folder = Path(name)
        where = machine(folder)
        for measure in (beside, by_itself):
            if options.postgresql:
                database = filled(measure.__name__, 1, runs)
                found += measure(database.url, folder, runs, seconds, rounds, database.keys[0])
            else:
                file = seed(folder, [runs])[runs]
                found += measure(file, folder, runs, seconds, rounds, KEY)
                if measure is by_itself:
                    found.append(sizes(file))
                os.remove(file)
    engine = "PostgreSQL" if options.postgresql else "SQLite"
    text = f"{table(found)}\n\n{engine}, {runs:,} runs; {where}; {datetime.now(UTC):%Y-%m-%d}.\n"
    (options.out / f"pruning{'_postgresql' * options.postgresql}.md").write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
