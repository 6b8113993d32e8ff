"""Every correction of Connexion, each shown beside what Connexion does by itself with the same spec and handlers.

One small spec is served twice: by `build_app`, and by Connexion as it comes. For each correction the two answer differently;
the day that Connexion answers as we do, its test fails here and the correction can go.
"""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import connexion
import jsonschema_rs
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from service.contract import build_app
from service.gate import Gate
from service.limiter import wrong_keys
from service.metrics import Metrics
from service.problems import answer_the_rest
from service.state import STATE

# Connexion as it comes puts plain strings on aiohttp's requests
pytestmark = pytest.mark.filterwarnings("ignore::aiohttp.web.NotAppKeyWarning")

HERE = "tests.contract.test_connexion"
KEY = {"X-API-Key": "good"}
JSON = {"Content-Type": "application/json"}


async def get_item(limit: int = 0, name: str = "") -> dict[str, Any]:
    return {"limit": limit, "name": name}


async def get_plain() -> dict[str, Any]:
    return {}


async def post_item(body: dict[str, Any]) -> tuple[dict[str, Any], int]:
    return {"read": len(str(body))}, 201


async def patch_item(body: dict[str, Any]) -> dict[str, Any]:
    return body


async def get_secret() -> dict[str, Any]:
    return {}


async def check_key(key: str) -> dict[str, Any] | None:
    """Connexion's way to know a key; ours is service.contract.authenticate."""
    return {"sub": key} if key == "good" else None


def small_spec(key_function: str) -> dict[str, Any]:
    text = {"type": "string", "maxLength": 10}
    body = {
        "type": "object",
        "additionalProperties": False,
        "required": ["name"],
        "properties": {"name": text, "note": text},
    }
    answer = {"description": "ok", "content": {"application/json": {"schema": {"type": "object"}}}}
    query = [
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "default": 5}},
        {"name": "name", "in": "query", "schema": text},
    ]
    content = {"application/json": {"schema": body}}
    both = {"application/merge-patch+json": {"schema": body}, "application/json": {"schema": body}}

    def operation(name: str, **more: Any) -> dict[str, Any]:
        return {"operationId": f"{HERE}.{name}", "security": [], "responses": {"200": answer}, **more}

    return {
        "openapi": "3.0.3",
        "info": {"title": "{{ 6 * 7 }}", "version": "1"},
        "servers": [{"url": "/"}],
        "paths": {
            "/items": {
                "get": operation("get_item", parameters=query),
                "post": operation("post_item", requestBody={"required": True, "content": content}),
                "patch": operation("patch_item", requestBody={"required": True, "content": both}),
            },
            "/plain": {"get": operation("get_plain")},
            "/secret": {
                "get": operation("get_secret", security=[{"key": []}]),
                "post": operation("post_item", security=[{"key": []}], requestBody={"required": True, "content": content}),
            },
        },
        "components": {
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "x-apikeyInfoFunc": key_function}
            }
        },
    }


class Keys:
    async def caller(self, key: str) -> Any:
        return SimpleNamespace(tenant_id=key) if key == "good" else None


@pytest.fixture
async def ours() -> AsyncIterator[TestClient]:
    app = build_app(small_spec("service.contract.authenticate"))
    answer_the_rest(app)
    # the parts that are asked for
    parts = SimpleNamespace(
        authenticator=Keys(),
        wrong_keys=wrong_keys(60),
        trusted_proxies=(),
        gate=Gate(10),
        request_timeout=1,
        metrics=Metrics("none", (), ()),
    )
    app[STATE] = parts  # type: ignore[misc]  # no whole State
    async with TestClient(TestServer(app)) as client:
        yield client


@pytest.fixture
async def theirs() -> AsyncIterator[TestClient]:
    app = connexion.AioHttpApp("service", only_one_api=True)
    options = {"swagger_ui": False, "serve_spec": False}
    built: web.Application = app.add_api(small_spec(f"{HERE}.check_key"), strict_validation=True, options=options)
    async with TestClient(TestServer(built)) as client:
        yield client


def at(path: str) -> URL:
    return URL(path, encoded=True)


# what is sent, how we answer, and how Connexion answers by itself
CORRECTIONS: dict[str, tuple[tuple[str, str, dict[str, Any]], int, int]] = {
    "a path with a slash behind it is another path": (("GET", "/plain/", {}), 404, 200),
    "HEAD works wherever GET does": (("HEAD", "/plain", {}), 200, 405),
    "an unknown parameter of an operation without parameters": (("GET", "/plain?x=1", {}), 400, 200),
    "a repeated parameter": (("GET", "/items?name=a&name=b", {}), 400, 200),
    "an empty parameter": (("GET", "/items?name=", {}), 400, 200),
    "digits with an underscore": (("GET", "/items?limit=1_0", {}), 400, 200),
    "digits with a sign": (("GET", "/items?limit=%2B5", {}), 400, 200),
    "digits of another script": (("GET", "/items?limit=%D9%A1", {}), 400, 200),
    "JSON sent as text": (
        ("POST", "/items", {"data": b'{"name":"a"}', "headers": {"Content-Type": "text/plain"}}),
        415,
        201,
    ),
    "JSON in another charset": (
        ("POST", "/items", {"data": b'{"name":"a"}', "headers": {"Content-Type": "application/json; charset=utf-16"}}),
        415,
        201,
    ),
    "a form instead of JSON": (("POST", "/items", {"data": {"name": "a"}}), 415, 400),
    "a key given twice": (("POST", "/items", {"data": b'{"name":"a","name":"b"}', "headers": JSON}), 400, 201),
    "a lone surrogate": (("POST", "/items", {"data": rb'{"name":"\ud800"}', "headers": JSON}), 400, 201),
    "a body that is not UTF-8": (("POST", "/items", {"data": b'{"name":"\xff"}', "headers": JSON}), 400, 500),
    "a key that is sent twice": (
        ("GET", "/secret", {"headers": [("X-API-Key", "good"), ("X-API-Key", "good")]}),
        401,
        200,
    ),
}


@pytest.mark.parametrize("name", CORRECTIONS)
async def test_connexion_is_corrected(name: str, ours: TestClient, theirs: TestClient) -> None:
    (method, path, arguments), expected, uncorrected = CORRECTIONS[name]
    for client, status in ((ours, expected), (theirs, uncorrected)):
        response = await client.request(method, at(path), **arguments)
        assert response.status == status, await response.text()


def test_two_media_types_of_one_body_are_nothing_to_warn_of(caplog: pytest.LogCaptureFixture) -> None:
    build_app(small_spec("service.contract.authenticate"))
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == []
    app = connexion.AioHttpApp("service", only_one_api=True)
    app.add_api(small_spec(f"{HERE}.check_key"), options={"swagger_ui": False, "serve_spec": False})
    assert any("multiple content types" in record.getMessage() for record in caplog.records)


async def test_a_patch_takes_either_of_its_media_types(ours: TestClient) -> None:
    for media_type in ("application/merge-patch+json", "application/json"):
        response = await ours.patch("/items", data=b'{"name":"a"}', headers={"Content-Type": media_type})
        assert response.status == 200


async def test_nan_is_refused_also_where_no_number_is_looked_at(ours: TestClient, theirs: TestClient) -> None:
    for constant in ("NaN", "Infinity", "-Infinity"):
        arguments = {"data": f'{{"name":"a","note":{constant}}}', "headers": JSON}
        answer = await (await ours.post("/items", **arguments)).json()
        assert answer["detail"] == f"The body is not JSON: {constant} is no number."
        # Connexion parses it and passes the value on to the schema
        assert "is not of type 'string'" in await (await theirs.post("/items", **arguments)).text()


async def test_every_error_is_named_and_none_shows_the_schema(ours: TestClient, theirs: TestClient) -> None:
    arguments = {"data": b'{"note":"12345678901","x":1}', "headers": JSON}
    problem = await (await ours.post("/items", **arguments)).json()
    assert sorted(error["pointer"] for error in problem["errors"]) == ["#/name", "#/note", "#/x"]
    uncorrected = await (await theirs.post("/items", **arguments)).json()
    assert "errors" not in uncorrected


async def test_401_says_how_and_405_says_what(ours: TestClient, theirs: TestClient) -> None:
    assert "WWW-Authenticate" in (await ours.get("/secret")).headers
    assert "WWW-Authenticate" not in (await theirs.get("/secret")).headers
    assert (await ours.put("/items")).headers["Allow"] == "GET, HEAD, PATCH, POST"
    assert "Allow" not in (await theirs.put("/items")).headers


async def test_every_problem_has_a_title(ours: TestClient, theirs: TestClient) -> None:
    assert (await (await ours.post("/items", data=b"x", headers=JSON)).json())["title"] == "Malformed request"
    for path in ("/items", "/nowhere", "/secret"):
        assert (await (await ours.put(path)).json())["title"]
    assert (await (await ours.get("/nowhere")).json())["type"] != "about:blank"
    assert (await (await theirs.get("/nowhere")).json())["type"] == "about:blank"


async def test_the_key_is_checked_before_the_body_is_read(ours: TestClient, theirs: TestClient) -> None:
    async def trickle() -> AsyncIterator[bytes]:
        sent.append(b"{")
        yield b"{"
        await forever.wait()

    for client, answers in ((ours, True), (theirs, False)):
        sent: list[bytes] = []
        forever = asyncio.Event()
        request = asyncio.create_task(client.post("/secret", data=trickle(), headers=JSON | {"X-API-Key": "bad"}))
        done, _ = await asyncio.wait([request], timeout=0.3)
        assert bool(done) == answers
        if done:
            assert request.result().status == 401
        request.cancel()
        forever.set()
        await asyncio.gather(request, return_exceptions=True)


async def test_validators_are_compiled_at_start_and_never_again(ours: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(*_: Any) -> None:
        raise AssertionError("compiled for a request")

    monkeypatch.setattr(jsonschema_rs, "Draft4Validator", compiled)
    assert (await ours.get("/items?limit=3&name=x")).status == 200
    assert (await ours.post("/items", data=b'{"name":"a"}', headers=JSON)).status == 201


async def test_defaults_of_the_spec_reach_the_handler(ours: TestClient) -> None:
    assert await (await ours.get("/items?name=x")).json() == {"limit": 5, "name": "x"}
