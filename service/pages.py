"""The documentation pages and the served spec: everything from this process, nothing from another host."""

import functools
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from swagger_ui_bundle import swagger_ui_path

from service.preconditions import is_known
from service.problems import ACCESS_LOG, Handler, answer_the_rest, answering, nothing_yet, safe_headers
from service.state import STATE

# the browser itself holds the pages to what they promise: no request leaves for another host
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; font-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": _POLICY,
    # what a reader of the documentation follows a link to need not know where it stood
    "Referrer-Policy": "no-referrer",
    # for scanners and old browsers; frame-ancestors says the same
    "X-Frame-Options": "DENY",
}
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Agent Platform</title>
<link rel="icon" href="data:,">
<style>body {{ margin: 0; }}</style>
{head}
</head>
<body>
<div id="page"></div>
{scripts}
</body>
</html>
"""
_SWAGGER_PAGE = _PAGE.format(
    head='<link rel="stylesheet" href="/docs/swagger-ui.css">',
    scripts='<script src="/docs/swagger-ui-bundle.js"></script>\n<script src="/docs/start.js"></script>',
)
_SWAGGER_START = """SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#page",
  deepLinking: true,
  persistAuthorization: true,
  displayRequestDuration: true,
  validatorUrl: null,
});
"""
_REDOC_PAGE = _PAGE.format(head="", scripts='<script type="module" src="/redoc/start.js"></script>')
_REDOC_START = """import { init } from "/redoc/redoc.js";
init("/openapi.json", { disableTelemetry: true }, document.getElementById("page"));
"""
# ReDoc's bundle shows its maker's logos from a CDN; here they are this word
_REDOC_CDN = b"https://cdn.redoc.ly/redoc/"
_REDOC_LOGO = (
    b"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 36 12'>"
    b"<text y='10' font-family='sans-serif' font-size='11' fill='%234d8bf5'>ReDoc</text></svg>#"
)


def add_pages(app: web.Application, openapi: Path, spec: dict[str, Any]) -> None:
    """Adds /docs, /redoc, /openapi.yaml and /openapi.json to `app`, none of which asks for a key."""
    swagger = Path(str(swagger_ui_path))
    served: dict[str, Handler] = {
        "/openapi.yaml": _bytes((openapi / "openapi.yaml").read_bytes(), "application/yaml"),
        "/openapi.json": _bytes(orjson.dumps(spec), "application/json"),
        "/docs": _bytes(_SWAGGER_PAGE.encode(), "text/html"),
        "/docs/start.js": _bytes(_SWAGGER_START.encode(), "text/javascript"),
        "/docs/swagger-ui.css": _asset(swagger / "swagger-ui.css", "text/css"),
        "/docs/swagger-ui-bundle.js": _asset(swagger / "swagger-ui-bundle.js", "text/javascript"),
        "/redoc": _bytes(_REDOC_PAGE.encode(), "text/html"),
        "/redoc/start.js": _bytes(_REDOC_START.encode(), "text/javascript"),
        "/redoc/redoc.js": _asset(_offapi() / "redoc.js", "text/javascript", (_REDOC_CDN, _REDOC_LOGO)),
    }
    for path, handler in served.items():
        app.router.add_get(path, answering(handler), expect_handler=nothing_yet)


def add_metrics(app: web.Application, registry: CollectorRegistry) -> None:
    """Adds /metrics to `app`: what `registry` knows, as Prometheus reads it. It asks for no key."""

    async def serve(request: web.Request) -> web.StreamResponse:
        headers = safe_headers({"Content-Type": CONTENT_TYPE_LATEST})
        return web.Response(body=generate_latest(registry), headers=headers)

    app.router.add_get("/metrics", answering(serve), expect_handler=nothing_yet)


def metrics_app(app: web.Application) -> web.Application:
    """An application that has /metrics of the started `app` and nothing else, for a port of its own."""
    own = web.Application()
    own[STATE] = app[STATE]
    if ACCESS_LOG in app:
        own[ACCESS_LOG] = app[ACCESS_LOG]
    add_metrics(own, app[STATE].metrics.registry)
    answer_the_rest(own)
    return own


def _bytes(body: bytes, content_type: str) -> Handler:
    """Serves bytes that never change while the process lives, with an ETag (RFC 9110 section 8.8.3)."""
    etag = f'"{sha256(body).hexdigest()[:32]}"'
    charset = "utf-8" if content_type.startswith("text/") else None

    async def serve(request: web.Request) -> web.StreamResponse:
        headers = safe_headers({**_HEADERS, "ETag": etag})
        if "If-None-Match" in request.headers and is_known(request.headers, etag):
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, content_type=content_type, charset=charset, headers=headers)

    return serve


def _asset(path: Path, content_type: str, replacing: tuple[bytes, bytes] = (b"", b"")) -> Handler:
    """Serves a file as `_bytes` does, read when it is first asked for: megabytes that few servers ever show."""

    @functools.cache
    def read() -> Handler:
        body = path.read_bytes()
        return _bytes(body.replace(*replacing) if replacing[0] else body, content_type)

    async def serve(request: web.Request) -> web.StreamResponse:
        return await read()(request)

    return serve


def _offapi() -> Path:
    """The folder of the package that carries ReDoc. It is not imported: that would load all its pages."""
    (folder,) = find_spec("offapi").submodule_search_locations  # type: ignore[union-attr,misc]  # it is a dependency
    return Path(folder)
