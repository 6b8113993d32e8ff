"""A real server in a process of its own."""

import os
import re
import signal
import tempfile
from pathlib import Path
from types import TracebackType

from tests.support.forked import Forked
from tests.support.secrets import leaks

ROOT = Path(__file__).parents[2]


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without settings of the service's own."""
    # nor one that would have every process compile us again
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AGENT_PLATFORM_", "PYTHONDONT"))}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | more


class Service:
    """`serve` on a free port, on a file or a URL; `origin` is where it listens."""

    def __init__(self, database: Path | str, *options: str) -> None:
        self.database = database
        at_length = () if "--log-level" in options else ("--log-level", "debug")
        command = ["serve", "--port", "0", "--database", str(database), *at_length, *options]
        folder = tempfile.mkdtemp() if isinstance(database, str) else database.parent
        self.log = Path(folder) / f"{'serve' if isinstance(database, str) else database.stem}.log"
        with self.log.open("wb") as log:
            self.process = Forked("service.__main__", command, clean_environment(), log)
        self.announced: list[str] = []
        self.origin = ""

    def __enter__(self) -> "Service":
        for raw in self.process.stdout:
            self.announced.append(raw.decode().rstrip())
            if found := re.search(r"listens on (http://\S+)", self.announced[-1]):
                self.origin = found[1]
            if self.announced[-1].startswith("Database:"):
                return self
        self.process.wait(timeout=10)
        self.process.stdout.close()
        raise AssertionError(f"The service did not start: {self.log.read_text()}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=10)
        finally:
            # one that did not end would disturb the tests that come after
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
        # a test may have taken its folder away
        log = self.log.read_text() if self.log.exists() else ""
        assert code == 0, log
        assert leaks(log) == []
