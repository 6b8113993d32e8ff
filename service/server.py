"""Runs the application on a socket until SIGINT or SIGTERM."""

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import uvloop
from aiohttp import web
from aiohttp.client_exceptions import ClientPayloadError
from aiohttp.http_exceptions import ContentEncodingError, PayloadEncodingError
from aiohttp.web_protocol import RequestHandler, RequestPayloadError
from aiohttp.web_request import BaseRequest

from service import __version__
from service.accesslog import AccessLog
from service.auth import DEMO_KEYS
from service.config import Config
from service.errors import Crash, Malformed, NotFound, Problem, UnsupportedMediaType
from service.problems import ACCESS_LOG, new_request_id, problem_response

# A stop takes five seconds at the most. Requests under way get the first part to end by themselves; aiohttp takes the second
# part up to twice, once to wait and once to cancel.
_FINISH = 2.5
_GRACE = 1.0

_log = logging.getLogger(__name__)


class _Protocol(RequestHandler):
    """aiohttp's HTTP protocol, but what is not even HTTP, or finds no route at all, is answered as a problem too."""

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        # CONNECT, `OPTIONS *` and a URL without a path match no route, not even that of unknown paths
        if not resp.prepared and "X-Request-ID" not in resp.headers:
            problem = NotFound("There is nothing at this path.")
            resp = problem_response(problem, request.rel_url.raw_path, new_request_id())
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("The answer has begun; it can only be cut off.")
        request_id = new_request_id()
        problem: Problem
        if isinstance(exc, ContentEncodingError):
            problem = UnsupportedMediaType("The body is in a content coding that this service does not take.")
        elif status < 500:
            problem = Malformed("The request is not HTTP that this service understands.")
        else:
            problem = Crash("The service failed; the request id finds the cause in its log.")
        if status < 500:
            _log.info("%s: a request was no HTTP (%s).", request_id, type(exc).__name__)
        else:
            _log.error("%s: the request failed outside of the application.", request_id, exc_info=exc)
        response = problem_response(problem, "", request_id)
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        # the rest of a body that is broken, thrown away behind an answer: the client's affair
        if isinstance(kw.get("exc_info"), (PayloadEncodingError, RequestPayloadError, ClientPayloadError)):
            self.log_debug(*args, **kw)
        else:
            super().log_exception(*args, **kw)


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """aiohttp's runner with our protocol, and an end that lets requests under way finish."""

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        # aiohttp makes its Server without asking which; ours differs in one method
        server.__class__ = _Server
        return server

    async def finish(self, patience: float) -> None:
        """Takes no more connections, and waits until no request is under way, for `patience` seconds at the most.

        aiohttp's own shutdown begins by dropping whatever still arrives, the rest of a body that is being read included.
        """
        for site in list(self.sites):
            await site.stop()
        deadline = time.monotonic() + patience
        while self._is_busy() and time.monotonic() < deadline:  # noqa: ASYNC110  # no event is worth its cost per request
            await asyncio.sleep(0.01)

    def _is_busy(self) -> bool:
        connections = self.server.connections if self.server else ()
        return any(connection._request_in_progress for connection in connections)


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
