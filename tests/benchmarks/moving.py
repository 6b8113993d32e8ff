"""A large history moved from PostgreSQL to a file and back: `python -m tests.benchmarks.moving [--quick] [--out FOLDER]`.

Fills a database of its own on the server that the tests use, moves it with `agent-platform copy` as an operator would, and
writes what that took to `moving.md` in the folder. The command compares counts and checksums of each tenant, and here the
checksums of the whole are compared once more.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.filling import filled
from tests.benchmarks.report import machine
from tests.support import postgresql
from tests.support.process import ROOT, clean_environment

_RUNS_EACH = 1_000


def move(source: str, target: str) -> tuple[float, str, int]:
    """Moves a database; the seconds that it took, the checksum that both have, and how many rows there are."""
    command = [sys.executable, "-m", "service", "copy", "--from", source, "--to", target]
    began = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, env=clean_environment())
    took = time.monotonic() - began
    found = re.search(r"with (\d+) rows .* both have the checksum (\w+)", done.stdout)
    if found is None:
        raise RuntimeError(f"copy said: {done.stdout}")
    return took, found[2], int(found[1])


def main() -> None:
    """Moves it there and back. Raises RuntimeError where the checksums differ."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.moving", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10 tenants instead of 1,000")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("latest"), help="where the result goes")
    options = parser.parse_args()
    if postgresql.server() is None:
        parser.error(postgresql.HOW_TO_RUN)
    tenants = 10 if options.quick else 1_000
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        where = machine(Path(folder))
        source = filled("source", tenants, tenants * _RUNS_EACH).url
        file, back = Path(folder) / "moved.db", postgresql.create(f"agent_platform_back_{os.getpid()}")
        there_s, there, rows = move(source, str(file))
        size = file.stat().st_size / 1e9
        back_s, again, rows_again = move(str(file), back)
    if (there, rows) != (again, rows_again):
        raise RuntimeError(f"There {rows} rows with the checksum {there}, back {rows_again} with {again}.")
    text = (
        f"{tenants * _RUNS_EACH:,} runs of {tenants:,} tenants, {rows:,} rows in all: from PostgreSQL to a file of "
        f"{size:.2f} GB in {there_s:,.0f} s, and from there to another database in {back_s:,.0f} s; all three have the "
        f"checksum `{there[:16]}…`. {where}; {time.strftime('%Y-%m-%d')}{', quick' if options.quick else ''}.\n"
    )
    print(text)
    (options.out / "moving.md").write_text(text)


if __name__ == "__main__":
    main()
