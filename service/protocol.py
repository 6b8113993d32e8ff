"""One connection: aiohttp's HTTP protocol, with problems for what is no HTTP, and an end for what is too slow."""

import asyncio
import logging
import socket
from typing import Any

from aiohttp import web
from aiohttp.client_exceptions import ClientPayloadError
from aiohttp.http_exceptions import PayloadEncodingError
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo
from aiohttp.web_request import BaseRequest

from service.errors import Crash, Malformed, NotFound, Problem, RequestTimeout
from service.logs import whereabouts
from service.metrics import OTHER
from service.problems import ACCESS_LOG, new_request_id, problem_response, request_id_of
from service.state import STATE

# how many bytes of all answers may wait for clients that take them slowly; looked at by the watch, and before a large one
_MOST_UNSENT = 2**28
_LARGE = 2**19
# unsent bytes of one connection
_HELD_BY_THE_SYSTEM = 2**17
_log = logging.getLogger(__name__)


class Protocol(RequestHandler):
    """What is not even HTTP, or finds no route at all, is answered as a problem too.

    It also knows since when a request has been arriving, and since when an answer has been waiting for its client, so that
    the server can cut off who is too slow.
    """

    # since when, on the loop's clock, the head of a request has been arriving; None while none is
    _arriving: float | None = None
    _has_sent = False
    # the last bytes that came
    _tail = b""
    # how much the client had not taken at some time, in bytes, and when that was
    _unsent = (0, 0.0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # what the system holds of an answer hides whether its client takes any: it is to hold little (tcp(7))
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _HELD_BY_THE_SYSTEM)
        # who opens a connection is expected to say something
        self._arriving = self._loop.time()

    def data_received(self, data: bytes) -> None:
        is_awaited = self._waiter is not None
        self._has_sent = True
        self._tail = (self._tail + data[-4:])[-4:]
        super().data_received(data)
        if self._messages:
            # behind a whole request without a body, half of the next one may have come
            whole = self._messages[-1][1] is not EMPTY_PAYLOAD or self._tail == b"\r\n\r\n"
            self._arriving = None if whole else self._loop.time()
            if self._request_in_progress and isinstance(self._messages[-1][0], _ErrInfo):
                self._break_body()
        elif is_awaited and self._arriving is None:
            self._arriving = self._loop.time()

    def _break_body(self) -> None:
        """Tells the request whose body is being read that it is broken: aiohttp would tell the next one."""
        if self._current_request is not None and not self._current_request.content.is_eof():
            self._messages.pop()
            self._current_request.content.set_exception(RequestPayloadError("The body is broken."))
            self.close()

    @property
    def unsent(self) -> int:
        """How much of its answers is waiting here until the client takes it, in bytes."""
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    def cut_off(self) -> None:
        """Ends the connection, and throws away what is unsent."""
        if self.transport is not None:
            self.transport.abort()

    def cut_off_if_slow(self, patience: float) -> None:
        """Ends the connection where its client has let it wait for longer than `patience` seconds.

        A request whose head does not arrive is answered with 408; an answer of which nothing is taken is thrown away.
        """
        now, waiter, unsent = self._loop.time(), self._waiter, self.unsent
        if self._arriving is not None and now - self._arriving > patience and waiter is not None and not waiter.done():
            self._refuse_head(waiter, patience)
        had, since = self._unsent
        if not 0 < had <= unsent:
            self._unsent = (unsent, now)
        elif now - since > patience:
            self.cut_off()

    def _refuse_head(self, waiter: asyncio.Future[None], patience: float) -> None:
        self._arriving = None
        if not self._has_sent:
            self.force_close()
            return
        error = RequestTimeout(f"The head of the request did not arrive within {patience:g} seconds.")
        self._messages.append((_ErrInfo(status=error.status, exc=error, message=""), EMPTY_PAYLOAD))
        waiter.set_result(None)

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        # CONNECT, `OPTIONS *` and a URL without a path match no route, not even that of unknown paths
        if not resp.prepared and "X-Request-ID" not in resp.headers:
            problem = NotFound("There is nothing at this path.")
            resp = problem_response(problem, request.rel_url.raw_path, request_id_of(request))
            self._note_unread(resp)
        if isinstance(self._manager, Server) and (resp.content_length or 0) > _LARGE:
            self._manager.make_room()
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
        if isinstance(exc, Problem):
            problem = exc
        elif status < 500:
            problem = Malformed("The request is not HTTP that this service understands.")
        else:
            problem = Crash("The service failed; the request id finds the cause in its log.")
        if status < 500:
            _log.debug("%s: a request was refused unread (%s).", request_id, type(exc).__name__)
        else:
            _log.error("%s: the request failed outside of the application: %s", request_id, whereabouts(exc))
        response = problem_response(problem, "", request_id)
        response.force_close()
        self._note_unread(response)
        return response

    def _note_unread(self, response: web.Response) -> None:
        """Counts and logs an answer that the application knows nothing of; what was asked is the client's own."""
        if isinstance(self._manager, Server):
            app = self._manager.app
            app[STATE].metrics.requests.note_unread(response.status)
            if (log := app.get(ACCESS_LOG)) is not None:
                size, request_id = response.content_length or 0, response.headers["X-Request-ID"]
                log.write(OTHER, OTHER, response.status, 0.0, size, None, request_id, None)

    def log_exception(self, *args: Any, **kw: Any) -> None:
        error = kw.get("exc_info")
        # the rest of a body that is broken, thrown away behind an answer: the client's affair
        if not isinstance(error, (PayloadEncodingError, RequestPayloadError, ClientPayloadError)):
            _log.error("A connection failed: %s", whereabouts(error))


class Server(web.Server):
    """aiohttp's server with our protocol, and an eye on all its connections."""

    # whose answers they are
    app: web.Application

    def __call__(self) -> RequestHandler:
        return Protocol(self, loop=self._loop, **self._kwargs)

    @property
    def protocols(self) -> list[Protocol]:
        return [each for each in self.connections if isinstance(each, Protocol)]

    def make_room(self) -> None:
        """Ends the connections for which most is waiting, until the others' answers have room in the memory."""
        protocols = self.protocols
        waiting = sum(each.unsent for each in protocols)
        if waiting <= _MOST_UNSENT:
            return
        for each in sorted(protocols, key=lambda each: each.unsent, reverse=True):
            waiting -= each.unsent
            each.cut_off()
            if waiting <= _MOST_UNSENT:
                return
