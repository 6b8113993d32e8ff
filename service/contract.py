"""Everything that we do to Connexion, in five sentences.

Connexion reads the spec, checks it, builds the routes, finds the handlers and asks for the key; what it would do to a
request's parameters and body, and to a handler's answer, is replaced here. `Api` and `Operation` are its classes with the
costly or lenient parts taken out. `Inputs` is made once per operation, with compiled validators (validation.py): it checks
path, query and body, and collects every error. `respond` makes the response.
The spec is served by pages.py, from bytes made at start.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import connexion
import orjson
import yaml
from aiohttp import web
from connexion.apis.aiohttp_api import AioHttpApi
from connexion.exceptions import OAuthProblem
from connexion.lifecycle import ConnexionRequest
from connexion.operations import OpenAPIOperation

from service.errors import Invalid, Malformed, Unauthorized, UnsupportedMediaType, cut
from service.problems import ANSWER_HEADERS, problems
from service.state import STATE, State
from service.validation import Parameter, Places, Schema, Validator, strict_json

_MOST_ERRORS = 1000
_STATE_FIELDS = frozenset(State.__dataclass_fields__)
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


class Context(dict[str, Any]):
    """What Connexion carries along beside a request; what is put in reaches the handler by the argument's name."""

    def __init__(self, http: web.Request) -> None:
        super().__init__()
        self.http = http


async def authenticate(key: str, context: Context) -> dict[str, str]:
    """The spec's `x-apikeyInfoFunc`: puts the tenant's scope into the context, as the handler's `tenant`.

    Raises Unauthorized for whatever is not exactly one good key.
    """
    # of two keys Connexion sees the first; whose request would it be?
    alone = len(context.http.headers.getall("X-API-Key")) == 1
    scope = await context.http.app[STATE].authenticator.scope(key) if alone else None
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
            validator_map={"parameter": _already_checked, "body": _already_checked},
            pass_context_arg_name=self.pass_context_arg_name,
        )
        self._add_operation_internal(method, path, operation)

    def _add_operation_internal(self, method: str, path: str, operation: "Operation") -> None:
        function = operation.function

        @functools.wraps(function)
        async def handler(request: web.Request) -> web.StreamResponse:
            try:
                response: web.StreamResponse = await function(request)
            except OAuthProblem:
                # the one refusal that is left to Connexion: a request without the header
                raise Unauthorized(_SEND_A_KEY, headers=_CHALLENGE) from None
            return response

        methods = ("GET", "HEAD") if method == "get" else (method.upper(),)
        for each in methods:
            self.subapp.router.add_route(each, path, handler, expect_handler=_nothing_yet)

    @classmethod
    async def get_request(cls, request: web.Request) -> ConnexionRequest:
        """What Connexion passes along. The body is not read: the key comes first."""
        context = Context(request)
        return ConnexionRequest("", request.method, headers=request.headers, json_getter=lambda: None, context=context)

    @classmethod
    async def get_response(cls, response: Any, mimetype: str | None = None, request: Any = None) -> web.Response:
        return respond(response)


def respond(answer: Any) -> web.Response:
    """The response for what a handler returns: body, (body, status) or (body, status, headers)."""
    body, status, headers = (*answer, *(200, None)[len(answer) - 1 :]) if isinstance(answer, tuple) else (answer, 200, None)
    if body is None:
        return web.Response(status=status, headers=headers)
    return web.Response(body=orjson.dumps(body), status=status, headers=headers, content_type="application/json")


class Operation(OpenAPIOperation):  # type: ignore[misc]  # Connexion ships no types
    """One operation of the spec: its inputs are checked by `Inputs` and reach the handler as they left it."""

    @property
    def _uri_parsing_decorator(self) -> "Inputs":
        # the one decorator that Connexion gives to every operation, with parameters and without, behind the key
        return Inputs(self)

    @property
    def body_definition(self) -> Schema:
        # PATCH takes two media types with one schema; Connexion would use the first as well, and warn of it each time
        content: dict[str, Schema] = self.request_body.get("content", {})
        return next(iter(content.values()), {})

    def get_arguments(self, path_params: Mapping[str, Any], query_params: Mapping[str, Any], body: Any, *_: Any) -> Any:
        arguments = {**path_params, **query_params}
        if self.request_body:
            arguments["body"] = body
        return arguments


def _already_checked(*_: Any, **__: Any) -> Callable[[Any], Any]:
    return lambda function: function


async def _nothing_yet(request: web.Request) -> None:
    """Answers `Expect` with nothing: 100 Continue is sent when the body is wanted (RFC 9110 section 10.1.1)."""


class Inputs:
    """Checks the path, the query and the body of one operation's requests."""

    def __init__(self, operation: Operation) -> None:
        defined = {place: [p for p in operation.parameters if p["in"] == place] for place in ("path", "query")}
        self._path = {parameter["name"]: Parameter(parameter) for parameter in defined["path"]}
        self._query = {parameter["name"]: Parameter(parameter) for parameter in defined["query"]}
        self._body = _Body(operation) if operation.request_body else None
        self._rate_limited = operation._operation.get("x-rate-limited", False)
        handler = operation._resolution.function
        self._state_fields = tuple(_STATE_FIELDS.intersection(handler.__code__.co_varnames[: handler.__code__.co_argcount]))

    def __call__(self, function: Callable[[Any], Any]) -> Callable[[Any], Awaitable[Any]]:
        @functools.wraps(function)
        async def checked(request: ConnexionRequest) -> Any:
            context = request.context
            state = context.http.app[STATE]
            for name in self._state_fields:
                context[name] = getattr(state, name)
            if not self._rate_limited:
                return await self._answer(function, request)
            tenant_id = context["tenant"].tenant_id
            try:
                state.limiter.check(tenant_id)
                return await self._answer(function, request)
            finally:
                context.http[ANSWER_HEADERS] = state.limiter.headers(tenant_id)

        return checked

    async def _answer(self, function: Callable[[Any], Any], request: ConnexionRequest) -> Any:
        errors: Places = []
        http = request.context.http
        request.path_params = self._parse_path(http.match_info, errors)
        request.query = self._parse_query(http.rel_url.raw_query_string, errors)
        if self._body is not None:
            request._json = await self._body.read(http, errors)
        if errors:
            places = "1 place" if len(errors) == 1 else f"{len(errors)} places"
            raise Invalid(f"The request breaks the contract in {places}.", errors=errors[:_MOST_ERRORS])
        answer = function(request)
        while asyncio.iscoroutine(answer):
            answer = await answer
        return answer

    def _parse_path(self, matched: Mapping[str, str], errors: Places) -> dict[str, Any]:
        return {name: parameter.parse(matched[name], errors) for name, parameter in self._path.items()}

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
        if request.content_type not in self._media_types or (request.charset or "utf-8").lower() != "utf-8":
            raise UnsupportedMediaType(f"Send the body as {' or '.join(self._media_types)}, in UTF-8.")
        if (request.content_length or 0) > request.client_max_size:
            raise web.HTTPRequestEntityTooLarge(request.client_max_size)
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = strict_json(await request.read())
        errors.extend({"pointer": pointer, "detail": sentence} for pointer, sentence in self._validator.errors(body))
        return body
