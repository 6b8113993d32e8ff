"""The headers that every answer has, whoever makes it."""

from collections.abc import Mapping

import pytest

from tests.conftest import KEY_A, Client
from tests.support.http import Wire, make_agent, make_tool, run

LOCKED = {"Server": "agent-platform", "X-Content-Type-Options": "nosniff"}
NOTHING = "default-src 'none'; frame-ancestors 'none'"


def assert_safe(headers: Mapping[str, str], policy: str = NOTHING, cache: str = "no-store") -> None:
    assert {name: headers[name] for name in LOCKED} == LOCKED
    assert headers["Content-Security-Policy"] == policy
    assert headers["Cache-Control"] == cache


@pytest.mark.parametrize(
    ("method", "path", "key", "status"),
    [
        ("GET", "/", {}, 200),
        ("GET", "/health", {}, 200),
        ("GET", "/whoami", KEY_A, 200),
        ("HEAD", "/tools", KEY_A, 200),
        ("GET", "/tools?limit=0", KEY_A, 400),
        ("GET", "/tools", {}, 401),
        ("GET", "/tools", {"X-API-Key": "wrong"}, 401),
        ("GET", "/tools/99", KEY_A, 404),
        ("GET", "/nowhere", {}, 404),
        ("PUT", "/tools", {}, 405),
        ("POST", "/tools", KEY_A | {"Content-Type": "text/plain"}, 415),
    ],
)
async def test_every_answer_is_locked(client: Client, method: str, path: str, key: dict[str, str], status: int) -> None:
    response = await client.request(method, path, headers=key)
    assert response.status == status
    assert_safe(response.headers)


async def test_what_has_an_etag_may_be_kept_by_its_client_alone(client: Client) -> None:
    tool = await make_tool(client)
    for known, status in (({}, 200), ({"If-None-Match": '"1"'}, 304)):
        response = await client.get(f"/tools/{tool['id']}", headers=KEY_A | known)
        assert response.status == status
        assert_safe(response.headers, cache="private, no-cache")
    agent = await make_agent(client)
    assert_safe((await client.get(f"/agents/{agent['id']}", headers=KEY_A)).headers, cache="private, no-cache")
    done = await run(client, agent["id"])
    assert_safe((await client.get(f"/runs/{done['id']}", headers=KEY_A)).headers)


@pytest.mark.parametrize(
    "sent",
    [b"nonsense\r\n\r\n", b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n"],
)
async def test_what_no_route_answers_is_locked_too(client: Client, sent: bytes) -> None:
    async with Wire(client) as wire:
        await wire.send(sent)
        answer = await wire.receive()
    assert answer.status in (400, 404)
    assert_safe(answer.headers)


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/docs/start.js", "/redoc/redoc.js", "/openapi.json", "/openapi.yaml"])
async def test_the_pages_may_load_what_this_server_has_and_no_more(client: Client, path: str) -> None:
    headers = (await client.get(path)).headers
    policy = headers["Content-Security-Policy"]
    assert_safe(headers, policy, "no-cache")
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert rules["script-src"] == rules["connect-src"] == "'self'"
    assert "http" not in policy
    assert "unsafe-eval" not in policy
