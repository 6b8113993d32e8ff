"""Turns any failure of a handler into problem+json (RFC 9457), gives each answer its request id, and logs it.

What fails before a route is found, and what is no HTTP, protocol.py turns into a problem.
"""

import itertools
import logging
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from aiohttp import web
from aiohttp.client_exceptions import ClientPayloadError
from multidict import CIMultiDict

from service.errors import (
    Crash,
    Malformed,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    Problem,
    RequestTimeout,
    TooLarge,
    Unavailable,
    cut,
)
from service.logs import AccessLog, whereabouts
from service.metrics import METHODS, OTHER
from service.state import STATE, State
from service.storage.units import ForeignKeyViolation
from service.trace import REQUEST_ID, TRACE, trace_of

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

LARGEST_BODY = 2**20
# what contract.py found out about the answer before it knew the answer
ANSWER_HEADERS = web.RequestKey("ANSWER_HEADERS", dict[str, str])
# whose key the request has, as soon as that is known
TENANT_ID = web.RequestKey("TENANT_ID", str)
# what every answer has unless it says otherwise (OWASP REST Security Cheat Sheet): it is of the type that it says, loads
# nothing, is shown in no frame and kept by nobody; and aiohttp would name itself, Python and the version of each
_SAFE = CIMultiDict(
    {
        "Server": "agent-platform",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        "Cache-Control": "no-store",
    }
)
# where each answer is noted; nowhere unless it is set
ACCESS_LOG = web.AppKey("ACCESS_LOG", AccessLog)

# the route of all paths that no other one has
_ANY_PATH = "/{path}"
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}", re.ASCII)
_process = secrets.token_hex(10)
_count = itertools.count()
_log = logging.getLogger(__name__)


def safe_headers(more: Mapping[str, str]) -> CIMultiDict[str]:
    """The headers that every answer has, and `more`, which may say otherwise."""
    headers = _SAFE.copy()
    headers.update(more)
    return headers


def answering(handler: Handler) -> Handler:
    """Makes a handler that answers every request: with the response of `handler`, or with the problem it raised instead.

    Every route goes through it, those that stand for unknown paths and methods included (`answer_the_rest`).
    """

    async def answer(request: web.Request) -> web.StreamResponse:
        began = time.perf_counter()
        request_id = request_id_of(request)
        # the task is the request's own, and takes them with it
        REQUEST_ID.set(request_id)
        if "traceparent" in request.headers:
            TRACE.set(trace_of(request.headers.getall("traceparent"), request.headers.getall("tracestate", ())))
        try:
            response = await handler(request)
        except Exception as error:
            response = problem_response(_meant(error, request_id), request.rel_url.raw_path, request_id)
        headers = response.headers
        headers["X-Request-ID"] = request_id
        if more := request.get(ANSWER_HEADERS):
            headers.update(more)
        app = request.app
        state = app.get(STATE)
        if response.status == RequestTimeout.status or (state is not None and state.gate.closing):
            # what still comes of a body is no request; and the next request is for another process
            response.force_close()
        elif "Expect" in request.headers and not request.content.is_eof():
            # a body that was announced and not asked for may come or not: what follows could not be told from it
            response.force_close()
        if state is not None:
            _note(request, response, state, app.get(ACCESS_LOG), time.perf_counter() - began)
        return response

    return answer


def _note(request: web.Request, response: web.StreamResponse, state: State, log: AccessLog | None, seconds: float) -> None:
    """Counts an answer, and notes it in the log. Neither learns what a client made up: its path, or a method of its own."""
    resource = request.match_info.route.resource
    route = OTHER if resource is None or resource.canonical == _ANY_PATH else resource.canonical
    method = request.method if request.method in METHODS else OTHER
    state.metrics.requests.note(route, method, response.status, seconds)
    if log is not None:
        trace = TRACE.get()
        log.write(
            method,
            route,
            response.status,
            seconds,
            0 if method == "HEAD" else response.content_length or 0,
            request.get(TENANT_ID),
            response.headers["X-Request-ID"],
            None if trace is None else trace.trace_id,
        )


def answer_the_rest(app: web.Application) -> None:
    """Adds what answers unknown paths, and unknown methods of known ones. To be called when all routes are there."""
    for resource in list(app.router.resources()):
        methods = sorted({route.method for route in resource})
        resource.add_route("*", answering(_no_such_method(methods)), expect_handler=nothing_yet)  # type: ignore[attr-defined]  # not in the base class
    # a path may hold a line feed, which a plain dot does not match
    app.router.add_route("*", "/{path:(?s:.*)}", answering(_no_such_path), expect_handler=nothing_yet)


async def _no_such_path(request: web.Request) -> web.StreamResponse:
    raise NotFound("There is nothing at this path.")


def _no_such_method(methods: list[str]) -> Handler:
    allowed = ", ".join(methods)

    async def refuse(request: web.Request) -> web.StreamResponse:
        raise MethodNotAllowed(f"This path takes {allowed}.", headers={"Allow": allowed})

    return refuse


async def nothing_yet(request: web.Request) -> None:
    """Answers `Expect` with nothing: 100 Continue is sent when the body is wanted (RFC 9110 section 10.1.1)."""


def problem_response(problem: Problem, path: str, request_id: str) -> web.Response:
    """`problem` on the wire; `path` is the request's, escaped as it came."""
    body: dict[str, Any] = {
        "type": f"urn:agent-platform:problem:{problem.kind}",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "instance": cut(path),
        "request_id": request_id,
        **problem.members,
    }
    if problem.errors:
        body["errors"] = problem.errors
    return web.Response(
        body=orjson.dumps(body),
        status=problem.status,
        headers=safe_headers({**problem.headers, "X-Request-ID": request_id}),
        content_type="application/problem+json",
    )


def new_request_id() -> str:
    """Unlike any other of this process or another one: random bits from its start, and a count."""
    return f"{_process}{next(_count):012x}"


def _begin_anew() -> None:
    """A process that was forked off has ids of its own."""
    global _process, _count
    _process, _count = secrets.token_hex(10), itertools.count()


os.register_at_fork(after_in_child=_begin_anew)


def request_id_of(request: web.BaseRequest) -> str:
    """The client's own, where it is one sane value; else a new one."""
    given = request.headers.getall("X-Request-ID", [])
    return given[0] if len(given) == 1 and _SANE_ID.fullmatch(given[0]) else new_request_id()


def _meant(error: Exception, request_id: str) -> Problem:
    """The problem that `error` is to the client. What is no one's fault but ours is logged, and only there."""
    if isinstance(error, Problem):
        if error.status >= 500 and not isinstance(error, Overloaded):
            # no traceback: a full disk fails whole batches, and the log may stand on the same disk
            _log.warning("%s: %s (%r)", request_id, error.detail, error.__cause__)
        return error
    if isinstance(error, ForeignKeyViolation):
        # what refers to other things says what it misses; what is left is the tenant itself
        return Unavailable("The tenant is being deleted; please try again.")
    if isinstance(error, web.HTTPException):
        return _of_http(error)
    if isinstance(error, (ConnectionError, ClientPayloadError, web.RequestPayloadError, web.PayloadAccessError)):
        return Malformed("The body did not arrive whole.")
    _log.error("%s: the request failed: %s", request_id, whereabouts(error))
    return Crash("The service failed; the request id finds the cause in its log.")


def too_large() -> TooLarge:
    """What a body over the limit is answered with, whether it came so or was made so by its content coding."""
    return TooLarge(f"A body is at most {LARGEST_BODY} bytes.")


def _of_http(error: web.HTTPException) -> Problem:
    if error.status == 413:
        return too_large()
    return Malformed("The request is not one that this service understands.")
