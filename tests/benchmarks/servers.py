"""Starts, waits for and stops the servers, each a process of its own on the loopback address."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from service.config import Config
from tests.benchmarks.shared import KEY
from tests.support.process import ROOT, clean_environment

# the benchmark sends more than any customer may; the limiter counts all the same
_OURS = ("-m", "service", "serve", "--rate-limit", "1000000")
_PATIENCE = 60.0

OURS, CEILING, USUAL, CLASSIC = "ours", "ceiling", "usual", "classic"
# beside ours on PostgreSQL: ours on a file, ours with a limiter that processes share, two of these, and the usual choice
EMBEDDED, ONE_OF_MANY, TWO_WORKERS, USUAL_POSTGRESQL = "embedded", "one of many", "two workers", "usual_postgresql"

HAS_SHARED_LIMITER = any(field.name == "limiter" for field in fields(Config))
_LIMITER = os.environ.get("AGENT_PLATFORM_TEST_LIMITER", "redis://127.0.0.1:6379/9")
_SHARED = ("--limiter", _LIMITER) if HAS_SHARED_LIMITER else ()
_OPTIONS = {OURS: (), EMBEDDED: (), ONE_OF_MANY: _SHARED, TWO_WORKERS: ("--workers", "2", *_SHARED)}


@dataclass(frozen=True)
class Server:
    """A server that answers, and its process."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def call(self, method: str, path: str, body: Any = None, key: str = KEY) -> Any:
        """The parsed body of an answer, which must be a 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_PATIENCE)
        try:
            headers = {"X-API-Key": key, "Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{self.name}: {method} {path} answered {answer.status}: {content[:500]!r}")
        return json.loads(content)

    def resident_mb(self) -> float:
        """The resident memory of the process, in megabytes of 2**20 bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@contextmanager
def running(
    name: str, database: Path | str, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Iterator[Server]:
    """The server `name` on `database`, answering; its output goes to a file in `folder`, or beside the database."""
    server = start(name, database, environment, folder)
    try:
        wait_for(server, "/agents/1")
        yield server
    finally:
        stop(server)


def start(
    name: str, database: Path | str, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Server:
    """Spawns a server on a free port and returns at once."""
    port = _free_port()
    if name in _OPTIONS:
        arguments = [*_OURS, "--port", str(port), "--database", str(database), *_OPTIONS[name]]
    else:
        arguments = ["-m", f"tests.benchmarks.{name}", str(database), str(port)]
    log = (folder or Path(database).parent) / f"{name}-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=output, stderr=output, cwd=ROOT, env=clean_environment(**environment or {})
        )
    return Server(name, port, process, log)


def wait_for(server: Server, path: str) -> None:
    """Returns when `path` answers 200. Raises RuntimeError where the process ends or takes too long."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            server.call("GET", path)
            return
        except (OSError, http.client.HTTPException):
            if server.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{server.name} did not start:\n{server.log.read_text()[-2000:]}") from None
            time.sleep(0.003)


def stop(server: Server) -> None:
    """Ends the process as an operator would, and waits for it."""
    server.process.terminate()
    try:
        server.process.wait(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
