"""Everything that we do to Connexion, in five sentences.

Connexion reads the spec, checks it, builds the routes, finds the handlers and asks for the key; what it would do to a
request's parameters and body, and to a handler's answer, is replaced here. `Api` and `Operation` are its classes with the
costly and the lenient parts taken out. `Inputs` is made once per operation, with compiled validators (validation.py): it
checks path, query and body, and collects every error. `respond` makes the response; the spec itself is served by pages.py.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import connexion
import orjson
import yaml
from aiohttp import web
from connexion.apis.aiohttp_api import AioHttpApi
from connexion.exceptions import OAuthProblem
from connexion.operations import OpenAPIOperation

from service.errors import Invalid, Malformed, Unauthorized, UnsupportedMediaType, cut
from service.problems import ANSWER_HEADERS, nothing_yet, problems
from service.state import STATE, State
from service.validation import MOST_PLACES, Parameter, Places, Schema, Validator, strict_json

# what aiohttp decodes without more packages; it would pass others on as they are
_CODINGS = ("identity", "gzip", "deflate")
_SEND_A_KEY = "Send a valid API key in the header X-API-Key."
_CHALLENGE = {"WWW-Authenticate": 'ApiKey realm="agent-platform", header="X-API-Key"'}


def load_spec(folder: Path) -> Schema:
    """openapi.yaml as a dict. Given as a path, Connexion would run it through Jinja2 first."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it
    spec: Schema = yaml.load((folder / "openapi.yaml").read_bytes(), Loader=loader)  # noqa: S506  # both are safe
    return spec


def build_app(spec: Schema) -> web.Application:
    """The aiohttp application whose routes are the spec's operations; STATE is still to be set on it."""
    app = connexion.AioHttpApp("service", only_one_api=True)
    app.api_cls = Api
    options = {"swagger_ui": False, "serve_spec": False}
    built: web.Application = app.add_api(spec, pass_context_arg_name="context", options=options)  # noqa: S106  # no password
    return built


@dataclass(slots=True)
class Exchange:
    """One request on its way. Connexion reads the key from `headers`; what `context` holds reaches the handler by name."""

    http: web.Request
    headers: Mapping[str, str]
    context: dict[str, Any]


async def authenticate(key: str, context: dict[str, Any]) -> dict[str, str]:
    """The spec's `x-apikeyInfoFunc`: puts the tenant's scope into the context, as the handler's `tenant`.

    Raises Unauthorized for whatever is not exactly one good key.
    """
    http: web.Request = context["http"]
    # of two keys Connexion sees the first; whose request would it be?
    alone = len(http.headers.getall("X-API-Key")) == 1
    scope = await http.app[STATE].authenticator.scope(key) if alone else None
    if scope is None:
        raise Unauthorized(_SEND_A_KEY, headers=_CHALLENGE)
    context["tenant"] = scope
    return {"sub": scope.tenant_id}


class Api(AioHttpApi):  # type: ignore[misc]  # Connexion ships no types
    """Connexion's API with our operations, our middleware alone, and no second route with a slash behind each path."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Connexion's own would redirect unknown paths and answer problems without type, Allow and request id
        self.subapp.middlewares[:] = [problems]

    def add_operation(self, path: str, method: str) -> None:
        operation = Operation.from_spec(
            self.specification,
            self,
            path=path,
            method=method,
            resolver=self.resolver,
            pass_context_arg_name=self.pass_context_arg_name,
        )
        handler = operation.function
        for each in ("GET", "HEAD") if method == "get" else (method.upper(),):
            self.subapp.router.add_route(each, path, handler, expect_handler=nothing_yet)


class Operation(OpenAPIOperation):  # type: ignore[misc]  # Connexion ships no types
    """One operation of the spec."""

    @property
    def function(self) -> Callable[[web.Request], Awaitable[web.Response]]:
        """What answers a request: Connexion's check of the key, then `Inputs`, then the handler, then `respond`."""
        secured = self.security_decorator(Inputs(self).pass_to_handler)

        async def answer(http: web.Request) -> web.Response:
            try:
                given = secured(Exchange(http, http.headers, {"http": http}))
                while asyncio.iscoroutine(given):
                    given = await given
            except OAuthProblem:
                # the one refusal that is left to Connexion: a request without the header
                raise Unauthorized(_SEND_A_KEY, headers=_CHALLENGE) from None
            return respond(given)

        return answer

    @property
    def body_definition(self) -> Schema:
        # PATCH takes two media types with one schema; Connexion would use the first as well, and warn of it each time
        content: dict[str, Schema] = self.request_body.get("content", {})
        return next(iter(content.values()), {})


def respond(answer: Any) -> web.Response:
    """The response for what a handler returns: body, (body, status) or (body, status, headers)."""
    body, status, headers = (*answer, *(200, None)[len(answer) - 1 :]) if isinstance(answer, tuple) else (answer, 200, None)
    if body is None:
        return web.Response(status=status, headers=headers)
    return web.Response(body=orjson.dumps(body), status=status, headers=headers, content_type="application/json")


class Inputs:
    """Checks the path, the query and the body of one operation's requests, and calls its handler with them."""

    def __init__(self, operation: Operation) -> None:
        defined = {place: [p for p in operation.parameters if p["in"] == place] for place in ("path", "query")}
        self._path = {parameter["name"]: Parameter(parameter) for parameter in defined["path"]}
        self._query = {parameter["name"]: Parameter(parameter) for parameter in defined["query"]}
        self._body = _Body(operation) if operation.request_body else None
        self._rate_limited = operation._operation.get("x-rate-limited", False)
        self._handler = operation._resolution.function
        wanted = inspect.signature(self._handler).parameters
        self._wants_tenant = "tenant" in wanted
        self._state_fields = tuple(name for name in wanted if name in State.__dataclass_fields__)

    async def pass_to_handler(self, exchange: Exchange) -> Any:
        """What the handler returns. Raises what it raises, Invalid with every place that breaks the contract, and
        TooManyRuns, before anything is read, where the operation is limited and the tenant over its limit.
        """
        http, state = exchange.http, exchange.http.app[STATE]
        if not self._rate_limited:
            return await self._handler(**await self._arguments(exchange, state))
        tenant_id = exchange.context["tenant"].tenant_id
        try:
            state.limiter.check(tenant_id)
            return await self._handler(**await self._arguments(exchange, state))
        finally:
            http[ANSWER_HEADERS] = state.limiter.headers(tenant_id)

    async def _arguments(self, exchange: Exchange, state: State) -> dict[str, Any]:
        http, errors = exchange.http, Places()
        arguments = {name: parameter.parse(http.match_info[name], errors) for name, parameter in self._path.items()}
        if self._query or http.rel_url.raw_query_string:
            arguments.update(self._parse_query(http.rel_url.raw_query_string, errors))
        if self._body is not None:
            arguments["body"] = await self._body.read(http, errors)
        if errors:
            count = f"{MOST_PLACES} places or more" if len(errors) >= MOST_PLACES else f"{len(errors)} places"
            places = "1 place" if len(errors) == 1 else count
            raise Invalid(f"The request breaks the contract in {places}.", errors=errors[:MOST_PLACES])
        if self._wants_tenant:
            arguments["tenant"] = exchange.context["tenant"]
        for name in self._state_fields:
            arguments[name] = getattr(state, name)
        return arguments

    def _parse_query(self, raw: str, errors: Places) -> dict[str, Any]:
        values = {name: parameter.default for name, parameter in self._query.items()}
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
                values[name] = parameter.parse(text, errors)
            seen.add(name)
        return values


class _Body:
    """The JSON body of one operation."""

    def __init__(self, operation: Operation) -> None:
        self._media_types = tuple(operation.consumes)
        self._validator = Validator(operation.body_schema)

    async def read(self, request: web.Request, errors: Places) -> Any:
        """The parsed body, and an error for each place where it breaks the schema.

        Raises UnsupportedMediaType, Malformed for what is no JSON, and aiohttp's own error where it is too large.
        """
        if not request.body_exists and "Content-Type" not in request.headers:
            raise Malformed(f"A body of the type {self._media_types[-1]} is required.")
        utf_8 = (request.charset or "utf-8").lower() in ("utf-8", "utf8")
        if request.content_type not in self._media_types or not utf_8:
            raise UnsupportedMediaType(f"Send the body as {' or '.join(self._media_types)}, in UTF-8.")
        if request.headers.get("Content-Encoding", "identity").lower() not in _CODINGS:
            raise UnsupportedMediaType(f"Send the body in one of the content codings {', '.join(_CODINGS)}.")
        if (request.content_length or 0) > request.client_max_size:
            raise web.HTTPRequestEntityTooLarge(request.client_max_size)
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = strict_json(await request.read())
        errors.extend({"pointer": pointer, "detail": sentence} for pointer, sentence in self._validator.errors(body))
        return body
