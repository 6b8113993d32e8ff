"""This version against an earlier one, on a file each: `python -m tests.benchmarks.earlier FOLDER [--quick] [--out FOLDER]`.

FOLDER is a checkout of the earlier version, whose own migrations make its database and whose own code fills it. Both are
driven in turn over the routes of the benchmark and with changes of a tool, and what came of it goes to `earlier.md`: so it
shows what the audit log, the metrics and the lines of the log cost, which that version had not, or less of.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.benchmarks.compare import ROUTES, against
from tests.benchmarks.load import Client, latencies, rounds
from tests.benchmarks.report import Figure, machine, table
from tests.benchmarks.servers import Server, _free_port, stop, wait_for
from tests.benchmarks.shared import KEY
from tests.support.process import ROOT, clean_environment

NOW, THEN = "this version", "the earlier one"
_RUNS = 1_000
_CHANGES = 1_000


@contextmanager
def serving(name: str, checkout: Path, folder: Path) -> Iterator[Server]:
    """A server of the version in `checkout`, on a database that it has filled itself, with all that it logs."""
    environment = clean_environment() | {"PYTHONPATH": str(checkout)}
    place = folder / name.replace(" ", "-")
    place.mkdir()
    fill = (
        "from pathlib import Path; from tests.benchmarks.history import seed; "
        f"print(seed(Path({str(place)!r}), [{_RUNS}])[{_RUNS}])"
    )
    program = [sys.executable, "-c", fill]
    filled = subprocess.run(program, cwd=checkout, env=environment, capture_output=True, text=True, check=True)
    port, log = _free_port(), place / "serve.log"
    arguments = [
        "-m",
        "service",
        "serve",
        "--rate-limit",
        "1000000",
        "--port",
        str(port),
        "--database",
        filled.stdout.strip(),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, *arguments], stdout=output, stderr=output, cwd=checkout, env=environment)
    server = Server(name, port, process, log)
    try:
        wait_for(server, "/agents/1")
        yield server
    finally:
        stop(server)


def change(number: int) -> bytes:
    """A change of a tool, ready to send."""
    body = f'{{"description":"changed {number}"}}'
    head = f"PATCH /tools/1 HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {KEY}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def main() -> None:
    """Drives both, prints the table and writes it."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.earlier", description=__doc__)
    parser.add_argument("checkout", type=Path, help="a checkout of the earlier version")
    parser.add_argument("--quick", action="store_true", help="shorter rounds")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("latest"), help="where the result goes")
    options = parser.parse_args()
    seconds, times = (1, 5) if options.quick else (3, 9)
    options.out.mkdir(parents=True, exist_ok=True)
    figures = []
    with tempfile.TemporaryDirectory(dir=options.out) as folder, ExitStack() as stack:
        where = machine(Path(folder))
        servers = [
            stack.enter_context(serving(name, checkout.resolve(), Path(folder)))
            for name, checkout in ((NOW, ROOT), (THEN, options.checkout))
        ]
        for route, traffic in ROUTES:
            loads = rounds(servers, traffic, 16, seconds, times)
            figures.append(against(f"`{route}`, requests a second", loads, THEN, 0.9, one=NOW))
        clients = {server.name: Client(server.port) for server in servers}
        for client in clients.values():
            stack.callback(client.close)
        numbers = iter(range(10**9))
        took = latencies(clients, lambda _: change(next(numbers)), _CHANGES)
        ratio, detail = took[NOW] / took[THEN], f"{took[NOW]:.2f} ms, {took[THEN]:.2f} ms"
        figures.append(Figure("`PATCH /tools/{id}`, how long one takes", ratio, 1.1, at_most=True, detail=detail))
    version = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=options.checkout, text=True).strip()
    quick = ", quick" if options.quick else ""
    text = f"{table(figures)}\n\nAgainst {version}. {where}; {time.strftime('%Y-%m-%d')}{quick}.\n"
    print(text)
    (options.out / "earlier.md").write_text(text)


if __name__ == "__main__":
    main()
