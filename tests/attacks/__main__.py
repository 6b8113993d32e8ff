"""The long run: `python -m tests.attacks [--seed N] [--budget MINUTES] [--out FOLDER] [--small] [--only NAME] [--engine E]`.

Runs every attacker on every engine, each in a process of its own, two at a time, prints what they did as a table, and writes
`table.md` and `figures.json` to the folder if one is named. It fails where an attacker does, where one has done less than it
must (but with `--small`), where the time is over, and where there is no PostgreSQL, unless `--engine sqlite` is asked for.
`--only` and `--engine` leave others out; where one is left, it runs in this process.
"""

import argparse
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.attacks.databases import ENGINES
from tests.attacks.databases_postgresql import forget
from tests.attacks.report import ATTACKERS, Attacker, Counts, command, facts, table
from tests.support import postgresql

ROOT = Path(__file__).parents[2]

_AT_ONCE = 2


@dataclass(frozen=True)
class _Running:
    attacker: Attacker
    process: "subprocess.Popen[bytes]"
    log: Path
    began: float

    def counts(self) -> Counts:
        """The last line of the output."""
        counts: Counts = json.loads(self.log.read_text().splitlines()[-1])
        return counts

    def end(self) -> None:
        """Ends the process and those that it has started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            forget(self.process.pid)


def run_all(
    attackers: Sequence[Attacker], seed: int, budget: float, folder: Path, *, small: bool
) -> list[tuple[Attacker, Counts]] | None:
    """Runs attackers, for `budget` minutes at the most; their counts, or None where anything is not as it must be.

    `folder` holds their databases and logs.
    """
    began = time.monotonic()
    waiting, running, results, failed = deque(attackers), [], {}, False

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {text}", flush=True)

    try:
        while waiting or running:
            while waiting and len(running) < _AT_ONCE:
                running.append(_start(waiting.popleft(), seed, folder, small=small))
            time.sleep(0.1)
            for each in [each for each in running if each.process.poll() is not None]:
                running.remove(each)
                name, took = str(each.attacker), f"{time.monotonic() - each.began:.0f} s"
                if each.process.returncode == 0:
                    results[name] = each.counts()
                    say(f"{name}: green after {took}: {json.dumps(results[name])}")
                else:
                    failed = True
                    say(f"{name}: FAILED after {took}")
                    print(each.log.read_text(), f"\nTo repeat it: {command(each.attacker, seed, small=small)}", flush=True)
            if time.monotonic() - began > budget * 60 and (waiting or running):
                names = [str(each.attacker) for each in running] + [str(each) for each in waiting]
                say(f"FAILED: the time is over, {budget:g} minutes; not done: {', '.join(names)}")
                return None
    finally:
        for each in running:
            each.end()
    done = [(attacker, results[str(attacker)]) for attacker in attackers if str(attacker) in results]
    for attacker, counts in done:
        for lack in [] if small else attacker.lacks(counts):
            failed = True
            say(f"FAILED: {lack}")
    return None if failed else done


def _start(attacker: Attacker, seed: int, folder: Path, *, small: bool) -> _Running:
    log = folder / f"{attacker.name}-{attacker.engine}.txt"
    which = ["--only", attacker.name, "--engine", attacker.engine]
    arguments = [sys.executable, "-m", "tests.attacks", *which, "--seed", str(seed)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            arguments + ["--small"] * small,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(folder)},
            # a group of its own, so that its end is that of its servers too
            start_new_session=True,
        )
    return _Running(attacker, process, log, time.monotonic())


def run_one(attacker: Attacker, seed: int, *, small: bool) -> Counts:
    """Runs one attacker here. Raises AssertionError for a defect."""
    with tempfile.TemporaryDirectory() as folder:
        module = importlib.import_module(f"tests.attacks.{attacker.name}")
        counts: Counts = module.attack(seed, attacker.small if small else attacker.amount, Path(folder), attacker.engine)
        return counts


def main() -> None:
    """The command line; exit code 1 where anything is not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks", description=__doc__)
    parser.add_argument("--seed", type=int, help="random unless given")
    parser.add_argument("--budget", type=float, default=25, metavar="MINUTES", help="what takes longer is ended, and fails")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where table.md and figures.json go")
    parser.add_argument("--small", action="store_true", help="a minute's worth, without required counts")
    names = list(dict.fromkeys(attacker.name for attacker in ATTACKERS))
    parser.add_argument("--only", choices=names, help="one attacker alone")
    parser.add_argument("--engine", choices=ENGINES, help="one engine alone")
    options = parser.parse_args()
    if options.engine != "sqlite" and postgresql.server() is None:
        sys.exit(f"{postgresql.HOW_TO_RUN} --engine sqlite does without.")
    attackers = [
        attacker
        for attacker in ATTACKERS
        if options.only in (None, attacker.name) and options.engine in (None, attacker.engine)
    ]
    seed = random.randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    if len(attackers) == 1:
        (attacker,) = attackers
        counts = run_one(attacker, seed, small=options.small)
        lacks = [] if options.small else attacker.lacks(counts)
        for lack in lacks:
            print(lack, file=sys.stderr)
        print(json.dumps(counts), flush=True)
        sys.exit(1 if lacks else 0)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        results = run_all(attackers, seed, options.budget, Path(folder), small=options.small)
    if results is None:
        sys.exit(1)
    minutes = (time.monotonic() - began) / 60
    about = f"Seed {seed}, {minutes:.1f} minutes, {time.strftime('%Y-%m-%d')}{', small' if options.small else ''}."
    text = f"{table(results, seed, small=options.small)}\n\n{about}\n"
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "table.md").write_text(text)
        said = {"seed": seed, "small": options.small, "minutes": round(minutes, 1), "attackers": facts(results)}
        (options.out / "figures.json").write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
