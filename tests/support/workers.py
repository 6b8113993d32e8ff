"""`serve --workers N` as an operator sees it: one process, its workers, and what becomes of them.

`python -m tests.support.workers URL WORKERS HOLD BIRTH` serves with a model that is held up for as long as the file HOLD is
there, and each worker takes BIRTH seconds before it handles anything.
"""

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType

from aiohttp import ClientSession, TCPConnector

from tests.conftest import KEY_A
from tests.support.forked import Forked
from tests.support.process import clean_environment
from tests.support.secrets import leaks

# what is awaited of a process, in seconds, before it counts as hanging
_PATIENCE = 10.0
# so many connections at once, that each worker gets some
BURST = 40


def serve_command(database: str, limiter: str, workers: int) -> list[str]:
    """What starts several processes on one port."""
    limits = ("--limiter", limiter, "--rate-limit", "1000000", "--wrong-key-limit", "1000000")
    return ["service.__main__", "serve", "--port", "0", "--database", database, *limits, "--workers", str(workers)]


class Group:
    """The processes of one service, started by `python -m COMMAND`; to be left as a context manager, which ends them all."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        # where a process would leave what nobody asked for
        self.home = log.with_suffix(".home")
        self.home.mkdir()
        own = clean_environment(HOME=str(self.home), XDG_RUNTIME_DIR=str(self.home))
        with log.open("wb") as errors:
            self.process = Forked(command[0], command[1:], own, errors)
        line = self.process.stdout.readline().decode()
        found = re.search(r"listens on (http://\S+)", line)
        assert found, f"The service did not start: {log.read_text()}"
        self.origin = found[1]
        self._seen: set[int] = set()

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.pids()
        for pid in (self.process.pid, *self._seen):
            if is_there(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()
        assert leaks(self.log.read_text()) == []
        assert list(self.home.iterdir()) == []

    def pids(self) -> set[int]:
        """The workers' processes."""
        pid = self.process.pid
        with suppress(OSError):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            found = {child for child in map(int, children) if is_there(child)}
            self._seen |= found
            return found
        return set()

    async def ends(self) -> int:
        """The exit code of a service that ends by itself, and no worker is left behind then."""
        self.pids()
        code = await asyncio.to_thread(self.process.wait, _PATIENCE)
        assert not any(map(is_there, self._seen)), self._seen
        return code

    async def are_gone(self, pids: set[int]) -> None:
        """Waits until these processes have ended."""
        async with asyncio.timeout(_PATIENCE):
            while any(map(is_there, pids)):  # noqa: ASYNC110  # nothing announces it
                await asyncio.sleep(0.05)

    async def answers(
        self, path: str, key: Mapping[str, str] = KEY_A, body: Mapping[str, str] | None = None
    ) -> list[tuple[int, str]]:
        """The status and request id of many requests at once, each on a connection of its own; a POST if there is a body."""

        async def ask() -> tuple[int, str]:
            method = "GET" if body is None else "POST"
            async with session.request(method, self.origin + path, headers=key, json=body) as response:
                await response.read()
                return response.status, response.headers["X-Request-ID"]

        async with ClientSession(connector=TCPConnector(limit=0, force_close=True)) as session:
            return list(await asyncio.gather(*(ask() for _ in range(BURST))))

    async def processes(self, count: int, known: frozenset[str] | set[str] = frozenset()) -> set[str]:
        """Asks until so many processes that are not `known` have answered; the beginnings of their request ids."""
        found: set[str] = set()
        async with asyncio.timeout(_PATIENCE):
            while len(found) < count:
                found |= {request_id[:20] for _, request_id in await self.answers("/whoami")} - known
        return found


def is_there(pid: int) -> bool:
    """Does this process run? One that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def main() -> None:
    from service import workers
    from service.app import make_app
    from service.config import Config
    from service.execution.models import ModelRegistry
    from service.resources import resource
    from service.storage.engines import engine_of
    from tests.attacks.held_server import Held

    database, count, hold, birth = sys.argv[1:]
    config = Config(port=0, database=database, workers=int(count), rate_limit=1_000_000, log_level="warning")
    engine_of(database).migrate(resource("migrations"))
    begins = workers.Worker.init_process

    def later(self: workers.Worker) -> None:
        time.sleep(float(birth))
        begins(self)

    workers.Worker.init_process = later
    workers.make_app = partial(make_app, models=ModelRegistry({"gpt-4o": Held(Path(hold))}))
    workers.serve(config, partial(print, flush=True))


if __name__ == "__main__":
    main()
