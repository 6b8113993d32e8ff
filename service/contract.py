"""Everything that we do to Connexion, in four sentences.

Connexion reads the spec, checks it, makes its operations, and finds the handlers and the function that knows the keys; what
it would do to a request on its way is replaced here. `Api` and `Operation` are its classes with the costly and the lenient
parts taken out. `Endpoint` is made once per operation, with compiled validators (validation.py): it takes a request from its
key through its inputs to the handler, and collects every error. `render` and `respond` make the response; pages.py serves
the spec.
"""

import asyncio
import inspect
import time
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import connexion
import orjson
import yaml
from aiohttp import HttpVersion11, web
from connexion.apis.aiohttp_api import AioHttpApi
from connexion.operations import OpenAPIOperation

from service.addresses import client_address, client_network
from service.auth import Caller
from service.errors import (
    Invalid,
    Malformed,
    MissingScope,
    RequestTimeout,
    TooManyRuns,
    UnsupportedMediaType,
    cut,
    unauthorized,
)
from service.idempotency import Rendered, fingerprint, key_of
from service.limiter import Quota
from service.preconditions import is_known
from service.problems import (
    ANSWER_HEADERS,
    LARGEST_BODY,
    TENANT_ID,
    Handler,
    answering,
    nothing_yet,
    safe_headers,
    too_large,
)
from service.state import STATE, State
from service.storage.scope import Scope
from service.trace import REQUEST_ID
from service.validation import MOST_PLACES, Parameter, Places, Schema, Validator, strict_json

# content codings (RFC 9110 section 8.4.1), each with what tells zlib its format
_CODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


def load_spec(folder: Path) -> Schema:
    """openapi.yaml as a dict. Given as a path, Connexion would run it through Jinja2 first."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the faster one, where PyYAML was built with it
    spec: Schema = yaml.load((folder / "openapi.yaml").read_bytes(), Loader=loader)  # noqa: S506  # both are safe
    return spec


def build_app(spec: Schema) -> web.Application:
    """The aiohttp application whose routes are the spec's operations; STATE is still to be set on it."""
    app = connexion.AioHttpApp("service", only_one_api=True)
    app.api_cls = Api
    options = {"swagger_ui": False, "serve_spec": False}
    built: web.Application = app.add_api(spec, options=options)
    # add_api replaces the application that could have been told
    built._client_max_size = LARGEST_BODY
    return built


async def authenticate(http: web.Request) -> Caller:
    """The spec's `x-apikeyInfoFunc`: who calls, the handler's `caller`, in whose scope its `tenant` is.

    Raises Unauthorized for whatever is not exactly one good key, and TooManyWrongKeys instead for an address that has sent
    too many wrong ones. A good key works from any address.
    """
    state = http.app[STATE]
    keys = http.headers.getall("X-API-Key", ())
    caller = await state.authenticator.caller(keys[0]) if len(keys) == 1 else None
    if caller is None:
        if keys:
            forwarded = http.headers.getall("X-Forwarded-For", ())
            state.wrong_keys.admit(client_network(client_address(http.remote, forwarded, state.trusted_proxies)))
        unauthorized()
    return caller


class Api(AioHttpApi):  # type: ignore[misc]  # Connexion ships no types
    """Connexion's API with our operations, without its middlewares and its second route with a slash behind each path."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # they would redirect unknown paths, and answer problems without type, Allow and request id
        self.subapp.middlewares.clear()

    def add_operation(self, path: str, method: str) -> None:
        operation = Operation.from_spec(self.specification, self, path=path, method=method, resolver=self.resolver)
        for each in ("GET", "HEAD") if method == "get" else (method.upper(),):
            self.subapp.router.add_route(each, path, operation.function, expect_handler=nothing_yet)


class Operation(OpenAPIOperation):  # type: ignore[misc]  # Connexion ships no types
    """One operation of the spec, with the function that Connexion found for its operationId."""

    @property
    def function(self) -> Handler:
        return answering(Endpoint(self).answer)

    @property
    def handler(self) -> Callable[..., Awaitable[Any]]:
        found: Callable[..., Awaitable[Any]] = self._resolution.function
        return found

    @property
    def rate_limited(self) -> bool:
        return bool(self._operation.get("x-rate-limited", False))

    @property
    def scope(self) -> str | None:
        """What a key must be allowed to do; None where any key will do."""
        found: str | None = self._operation.get("x-scope")
        return found

    @property
    def authenticate(self) -> Callable[[web.Request], Awaitable[Caller]] | None:
        """The function that the operation's security scheme names; None for an operation that says it is open."""
        if not self.security:
            return None
        ((name,),) = self.security
        found: Callable[[web.Request], Awaitable[Caller]]
        found = self.api.security_handler_factory.get_apikeyinfo_func(self.security_schemes[name])
        return found

    @property
    def body_definition(self) -> Schema:
        # PATCH takes two media types with one schema; Connexion would use the first as well, and warn of it each time
        content: dict[str, Schema] = self.request_body.get("content", {})
        return next(iter(content.values()), {})


def render(answer: Any) -> Rendered:
    """What a handler returns, body, (body, status) or (body, status, headers), as it is sent."""
    body, status, headers = (*answer, *(200, {})[len(answer) - 1 :]) if isinstance(answer, tuple) else (answer, 200, {})
    return Rendered(status, headers, b"" if body is None else orjson.dumps(body))


def respond(rendered: Rendered, http: web.Request) -> web.Response:
    """The response; without its body where the client has it (If-None-Match)."""
    headers = safe_headers(rendered.headers)
    if etag := headers.get("ETag"):
        # its client may keep it, and asks each time whether it still holds
        headers["Cache-Control"] = "private, no-cache"
        if "If-None-Match" in http.headers and http.method in ("GET", "HEAD") and is_known(http.headers, etag):
            return web.Response(status=304, headers=headers)
    if not rendered.body:
        return web.Response(status=rendered.status, headers=headers)
    return web.Response(body=rendered.body, status=rendered.status, headers=headers, content_type="application/json")


# seconds after which a caller is looked at again: with what a key is remembered for, it stops within two
_HELD = 0.5


class Endpoint:
    """One operation at work: the key, the limit, the inputs, the handler and the response, in this order.

    With an Idempotency-Key the inputs come before the limit: what is only said again is not counted.
    """

    def __init__(self, operation: Operation) -> None:
        defined = {place: [p for p in operation.parameters if p["in"] == place] for place in ("path", "query", "header")}
        self._path = {parameter["name"]: Parameter(parameter) for parameter in defined["path"]}
        self._query = {parameter["name"]: Parameter(parameter) for parameter in defined["query"]}
        self._headers = [(p["name"], p["name"].lower().replace("-", "_"), Parameter(p)) for p in defined["header"]]
        self._repeatable = any(name == "Idempotency-Key" for name, _, _ in self._headers)
        self._body = _Body(operation) if operation.request_body else None
        self._authenticate = operation.authenticate
        self._scope = operation.scope
        self._rate_limited = operation.rate_limited
        self._handler = operation.handler
        self._name = operation.operation_id
        self._wanted = inspect.signature(self._handler).parameters
        self._wants_tenant = "tenant" in self._wanted
        self._wants_caller = "caller" in self._wanted
        self._state_fields = tuple(name for name in self._wanted if name in State.__dataclass_fields__)

    async def answer(self, http: web.Request) -> web.Response:
        """The handler's answer as a response.

        Raises what the handler raises; Overloaded where the service is full or about to stop; Unauthorized and MissingScope
        before anything of the request but its key is looked at; TooManyRuns before the body is read; Invalid, or Malformed
        for a body that is no JSON, with every place that breaks the contract.
        """
        state = http.app[STATE]
        if self._authenticate is None:
            return respond(render(await self._handler(**await self._arguments(http, None, state))), http)
        state.gate.refuse_if_draining()
        # who tries wrong keys takes nobody's place
        began, caller = time.monotonic(), await self._admitted(http)
        http[TENANT_ID] = caller.tenant_id
        tenant = state.authenticator.scope(caller, REQUEST_ID.get())
        quota = state.limiter.quota(caller.tenant_id, caller.limit) if self._rate_limited else None
        try:
            with state.gate:
                if self._repeatable and "Idempotency-Key" in http.headers:
                    return await self._answer_once(http, tenant, state, quota, began)
                if quota is not None:
                    await quota.check()
                arguments = await self._arguments(http, tenant, state, quota)
                await self._still_admitted(http, began)
                if self._wants_caller:
                    arguments["caller"] = caller
                return respond(render(await self._handler(**arguments)), http)
        except TooManyRuns:
            state.metrics.limiter_refusals.inc()
            raise
        finally:
            if quota is not None:
                http[ANSWER_HEADERS] = quota.headers()

    async def _admitted(self, http: web.Request) -> Caller:
        """Who calls. Raises Unauthorized and MissingScope."""
        assert self._authenticate is not None  # noqa: S101  # only where it is set
        caller: Caller = await self._authenticate(http)
        if self._scope is not None and self._scope not in caller.scopes:
            raise MissingScope(f"This takes a key with the scope {self._scope}.")
        return caller

    async def _still_admitted(self, http: web.Request, began: float) -> None:
        """Is called before anything is done: a key may have ended while a body was on its way. Raises as `_admitted`."""
        if time.monotonic() - began > _HELD:
            await self._admitted(http)

    async def _answer_once(
        self, http: web.Request, tenant: Scope, state: State, quota: Quota | None, began: float
    ) -> web.Response:
        """The answer to a request with an Idempotency-Key: only what it has not had before is done, and counted."""
        if quota is not None:
            # an answer that is given again says what is left, too
            await quota.look()
        arguments = await self._arguments(http, tenant, state, quota)
        await self._still_admitted(http, began)

        async def work(keeping: Scope) -> Any:
            if quota is not None:
                await quota.check()
            return await self._handler(**arguments | {"tenant": keeping})

        key = key_of(http.headers["Idempotency-Key"])
        asked = fingerprint(self._name, {name: arguments[name] for name in self._path}, arguments["body"])
        rendered, replayed = await state.retries.once(tenant, key, asked, work)
        response = respond(rendered, http)
        if replayed:
            response.headers["Idempotency-Replayed"] = "true"
        return response

    async def _arguments(
        self, http: web.Request, tenant: Scope | None, state: State, quota: Quota | None = None
    ) -> dict[str, Any]:
        errors: Places = []
        matched, raw_query = http.match_info, http.rel_url.raw_query_string
        arguments = {name: parameter.parse(matched[name], errors) for name, parameter in self._path.items()}
        if self._query or raw_query:
            arguments.update(self._parse_query(raw_query, errors))
        for name, argument, parameter in self._headers:
            given = http.headers.getall(name, ())
            if len(given) > 1 and name == "Idempotency-Key":
                errors.append({"parameter": name, "detail": "This header is given more than once."})
            # a list in several lines is one list (RFC 9110 section 5.3)
            value = parameter.parse(", ".join(given), errors) if given else None
            if argument in self._wanted:
                arguments[argument] = value
        if self._body is not None:
            try:
                arguments["body"] = await self._body.read(http, state, errors)
            except Malformed as error:
                raise Malformed(error.detail, errors=[*errors, {"pointer": "#", "detail": error.detail}]) from None
        if errors:
            count = f"{MOST_PLACES} places or more" if len(errors) >= MOST_PLACES else f"{len(errors)} places"
            places = "1 place" if len(errors) == 1 else count
            raise Invalid(f"The request breaks the contract in {places}.", errors=errors[:MOST_PLACES])
        if self._wants_tenant:
            arguments["tenant"] = tenant
        if quota is not None:
            arguments["quota"] = quota
        for name in self._state_fields:
            arguments[name] = getattr(state, name)
        return arguments

    def _parse_query(self, raw: str, errors: Places) -> dict[str, Any]:
        values = {parameter.argument: parameter.default for parameter in self._query.values()}
        if not raw:
            return values
        try:
            pairs = parse_qsl(raw, keep_blank_values=True, errors="strict")
        except UnicodeDecodeError:
            raise Malformed("The query is not UTF-8.") from None
        seen: set[str] = set()
        for name, text in pairs:
            parameter = self._query.get(name)
            if parameter is None:
                errors.append({"parameter": cut(name), "detail": "This parameter is not known."})
            elif name in seen:
                errors.append({"parameter": name, "detail": "This parameter is given more than once."})
            else:
                values[parameter.argument] = parameter.parse(text, errors)
            seen.add(name)
        return values


class _Body:
    """The JSON body of one operation."""

    def __init__(self, operation: Operation) -> None:
        self._media_types = tuple(operation.consumes)
        self._required = operation.request_body.get("required", False)
        self._validator = Validator(operation.body_schema)

    async def read(self, request: web.Request, state: State, errors: Places) -> Any:
        """The parsed body, and an error for each place where it breaks the schema.

        Raises UnsupportedMediaType, Malformed for what is no JSON, RequestTimeout for what does not arrive in time, and
        aiohttp's own error where it is too large.
        """
        if not request.body_exists and not self._required:
            return {}
        if not request.body_exists and "Content-Type" not in request.headers:
            raise Malformed(f"A body of the type {self._media_types[-1]} is required.")
        if request.headers.get("Content-Type") not in self._media_types:  # else there is nothing to look into
            utf_8 = (request.charset or "utf-8").lower() in ("utf-8", "utf8")
            if request.content_type not in self._media_types or not utf_8:
                raise UnsupportedMediaType(f"Send the body as {' or '.join(self._media_types)}, in UTF-8.")
        coding = ", ".join(request.headers.getall("Content-Encoding", ("identity",))).lower()
        if coding != "identity" and coding not in _CODINGS:
            raise UnsupportedMediaType(f"Send the body as it is, or in one of the content codings {', '.join(_CODINGS)}.")
        if (request.content_length or 0) > request.client_max_size:
            raise web.HTTPRequestEntityTooLarge(request.client_max_size)
        if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        received = await _received(request, state)
        body = strict_json(received if coding == "identity" else _decoded(received, _CODINGS[coding]))
        errors.extend({"pointer": pointer, "detail": sentence} for pointer, sentence in self._validator.errors(body))
        return body


async def _received(request: web.Request, state: State) -> bytes:
    """The body's bytes. Who makes the service wait for them holds no place while it does, and not for long."""
    if request.content.is_eof():
        return await request.read()
    with state.gate.place_lent():
        try:
            async with asyncio.timeout(state.request_timeout):
                return await request.read()
        except TimeoutError:
            raise RequestTimeout(f"The body did not arrive within {state.request_timeout:g} seconds.") from None


def _decoded(received: bytes, format: int) -> bytes:
    """The body out of its content coding, of which no more is made than a body may have.

    Raises TooLarge, and Malformed for what is not in that coding or not whole.
    """
    inflate = zlib.decompressobj(format)
    try:
        body = inflate.decompress(received, LARGEST_BODY + 1)
    except zlib.error:
        raise Malformed("The body is not in the content coding that it is said to be in.") from None
    if len(body) > LARGEST_BODY:
        raise too_large()
    if not inflate.eof or inflate.unused_data:
        raise Malformed("The body does not end where its content coding does.")
    return body
