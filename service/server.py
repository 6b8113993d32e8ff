"""Runs the application on a socket until SIGINT or SIGTERM, and takes no longer over a slow client than it has to."""

import asyncio
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import uvloop
from aiohttp import web

from service import __version__
from service.auth import DEMO_KEYS
from service.config import Config
from service.logs import AccessLog, writes_json
from service.pages import metrics_app
from service.problems import ACCESS_LOG
from service.protocol import Protocol, Server
from service.state import STATE
from service.storage.engines import engine_of

# A stop takes five seconds at the most. Requests under way get the first part to end by themselves; aiohttp takes the second
# part up to twice, once to wait and once to cancel.
FINISH = 2.5
GRACE = 1.0
# how long an idle connection is kept, and how long the rest of a body that nobody wants is read before it is cut off: a
# client that is still sending would lose the answer
_KEPT_ALIVE = 75.0
_LINGER = 2.0


class Runner(web.AppRunner):
    """aiohttp's runner with our protocol, deadlines for slow clients, and an end that lets requests under way finish."""

    def __init__(self, app: web.Application, **settings: Any) -> None:
        # a body is decoded where it is read: aiohttp would do it, and fail, before the key is known
        own = {"keepalive_timeout": _KEPT_ALIVE, "lingering_time": _LINGER, "auto_decompress": False}
        super().__init__(app, **own | settings)
        self._watch: asyncio.Task[None] | None = None

    async def setup(self) -> None:
        await super().setup()
        self.app[STATE].metrics.count_connections(lambda: len(self._connections()))
        self._watch = asyncio.create_task(self._cut_off_the_slow(self.app[STATE].request_timeout))

    async def cleanup(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        await super().cleanup()

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        # aiohttp makes its Server without asking which; ours differs in one method
        server.__class__ = Server
        cast("Server", server).app = self.app
        return server

    async def finish(self, patience: float) -> None:
        """Waits for the requests under way, for `patience` seconds at the most, and then takes no more connections.

        Meanwhile /ready says that the service is about to stop, and other requests are refused. aiohttp's own shutdown would
        begin by dropping whatever still arrives, the rest of a body that is being read included.
        """
        gate = self.app[STATE].gate
        gate.closing = gate.draining = True
        busy = [connection for connection in self._connections() if connection._request_in_progress]
        await _wait_while(lambda: any(connection._request_in_progress for connection in busy), patience)
        for site in list(self.sites):
            await site.stop()

    async def hand_over(self, patience: float) -> None:
        """Takes no more connections, for other processes do, and serves those that it has until they end.

        Each ends with its next answer; one that asks for nothing more is kept for `patience` seconds.
        """
        self.app[STATE].gate.closing = True
        for site in list(self.sites):
            await site.stop()
        await _wait_while(lambda: bool(self._connections()), patience)

    def _connections(self) -> list[Protocol]:
        return self.server.protocols if isinstance(self.server, Server) else []

    async def _cut_off_the_slow(self, patience: float) -> None:
        """One watch for all connections: a timer for each request would cost more than most requests do."""
        while True:
            await asyncio.sleep(patience / 10)
            for connection in self._connections():
                connection.cut_off_if_slow(patience)
            if isinstance(self.server, Server):
                self.server.make_room()


async def _wait_while(something_is_left: Callable[[], bool], patience: float) -> None:
    deadline = time.monotonic() + patience
    while something_is_left() and time.monotonic() < deadline:  # noqa: ASYNC110  # no event is worth its cost per request
        await asyncio.sleep(0.01)


def serve(app: web.Application, config: Config, announce: Callable[[str], None]) -> None:
    """Serves `app` until SIGINT or SIGTERM, then finishes what is under way, for at most five seconds in all.

    `announce` gets the lines that say where. Raises OSError where the address can't be had, and what starting `app` raises.
    """
    uvloop.run(_serve(app, config, announce))


async def _serve(app: web.Application, config: Config, announce: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    allow_many_connections()
    log = AccessLog(sys.stderr, as_json=writes_json(config.log_format, sys.stderr))
    if config.log_level in ("debug", "info"):
        app[ACCESS_LOG] = log
    runner, watched = Runner(app, access_log=None, shutdown_timeout=GRACE), None
    try:
        await runner.setup()
        await web.TCPSite(runner, config.host, config.port).start()
        if config.metrics_port is not None:
            watched = Runner(metrics_app(app), access_log=None, shutdown_timeout=GRACE)
            await watched.setup()
            await web.TCPSite(watched, config.host, config.metrics_port).start()
        for line in announcement(config, *(each.addresses[0][1] for each in (runner, watched) if each is not None)):
            announce(line)
        await stop.wait()
        await runner.finish(FINISH)
    finally:
        await asyncio.gather(*(each.cleanup() for each in (watched, runner) if each is not None))
        log.flush()


def announcement(config: Config, port: int, metrics_port: int | None = None) -> Iterator[str]:
    """The lines that say where the service is, and what it serves."""
    host = f"http://{f'[{config.host}]' if ':' in config.host else config.host}"
    origin = f"{host}:{port}"
    yield f"Agent Platform {__version__} listens on {origin}"
    yield f"Documentation: {origin}/docs and {origin}/redoc"
    if metrics_port is not None:
        yield f"Metrics: {host}:{metrics_port}/metrics"
    yield f"Database: {engine_of(config.database)}"
    if config.serves_demo:
        yield f"Demo keys, for this try only: {' and '.join(DEMO_KEYS)}"


def allow_many_connections() -> None:
    """Lets the process have as many files as the system allows it: a connection is one, and 1,024 are soon used up."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
