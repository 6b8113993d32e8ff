"""Runs the application on a socket until SIGINT or SIGTERM, and takes no longer over a slow client than it has to."""

import asyncio
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import uvloop
from aiohttp import web

from service import __version__
from service.auth import DEMO_KEYS
from service.config import Config
from service.logs import AccessLog
from service.problems import ACCESS_LOG
from service.protocol import Protocol, Server
from service.state import STATE

# A stop takes five seconds at the most. Requests under way get the first part to end by themselves; aiohttp takes the second
# part up to twice, once to wait and once to cancel.
_FINISH = 2.5
_GRACE = 1.0
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
        self._watch = asyncio.create_task(self._cut_off_the_slow(self.app[STATE].request_timeout))

    async def cleanup(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        await super().cleanup()

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        # aiohttp makes its Server without asking which; ours differs in one method
        server.__class__ = Server
        return server

    async def finish(self, patience: float) -> None:
        """Waits for the requests under way, for `patience` seconds at the most, and then takes no more connections.

        Meanwhile /ready says that the service is about to stop, and other requests are refused. aiohttp's own shutdown would
        begin by dropping whatever still arrives, the rest of a body that is being read included.
        """
        self.app[STATE].gate.draining = True
        deadline = time.monotonic() + patience
        busy = [connection for connection in self._connections() if connection._request_in_progress]
        while any(connection._request_in_progress for connection in busy) and time.monotonic() < deadline:  # noqa: ASYNC110  # no event is worth its cost per request
            await asyncio.sleep(0.01)
        for site in list(self.sites):
            await site.stop()

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
    _allow_many_connections()
    log = AccessLog(sys.stderr)
    if config.log_level in ("debug", "info"):
        app[ACCESS_LOG] = log
    runner = Runner(app, access_log=None, shutdown_timeout=_GRACE)
    try:
        await runner.setup()
        await web.TCPSite(runner, config.host, config.port).start()
        address = runner.addresses[0]
        origin = f"http://{f'[{config.host}]' if ':' in config.host else config.host}:{address[1]}"
        announce(f"Agent Platform {__version__} listens on {origin}")
        announce(f"Documentation: {origin}/docs and {origin}/redoc")
        announce(f"Database: {config.database}")
        if config.serves_demo:
            announce(f"Demo keys, for this try only: {' and '.join(DEMO_KEYS)}")
        await stop.wait()
        await runner.finish(_FINISH)
    finally:
        await runner.cleanup()
        log.flush()


def _allow_many_connections() -> None:
    """Lets the process have as many files as the system allows it: a connection is one, and 1,024 are soon used up."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
