"""Whatever a client sends: strict JSON, media types, sizes, texts, keys, paths, methods, and HTTP that is none."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, NoReturn

import pytest
from multidict import CIMultiDict

from service.app import make_app
from service.auth import new_key
from service.config import Config
from service.errors import Unavailable
from service.execution.models import ModelRegistry
from service.logs import AccessLog
from service.problems import ACCESS_LOG
from service.state import STATE
from service.storage.queries import Query, load_queries
from tests.conftest import KEY_A, KEY_B, Client, Serve
from tests.support.contract import METHODS, Contract
from tests.support.http import (
    AGENT,
    MERGE_PATCH,
    PROBLEM,
    TOOL,
    Answer,
    Wire,
    answer,
    everything,
    make_agent,
    make_tool,
    places,
    refused,
    run,
)
from tests.support.keys import revoke, store
from tests.support.storage import engine_in

AS_JSON = {**KEY_A, "Content-Type": "application/json"}
MIB = 2**20
KEY_LINE = "X-API-Key: key_tenant_a"
JSON_LINE = "Content-Type: application/json"


def head(method: str, path: str, *lines: str) -> bytes:
    """The head of a request on the wire."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode()


async def fill(client: Client) -> None:
    """A tool, an agent and a run, each with the id 1."""
    await make_tool(client)
    await make_agent(client, tool_ids=[1])
    await run(client, 1)


async def takers_of_bodies(client: Client) -> list[tuple[str, str]]:
    """Every operation that takes a body, on things that are there."""
    await fill(client)
    return [
        ("POST", "/tools"),
        ("PUT", "/tools/1"),
        ("PATCH", "/tools/1"),
        ("POST", "/agents"),
        ("PUT", "/agents/1"),
        ("PATCH", "/agents/1"),
        ("POST", "/agents/1/run"),
    ]


async def test_a_body_that_is_not_strict_json_is_refused_and_leaves_nothing_behind(client: Client) -> None:
    operations = await takers_of_bodies(client)
    before = await everything(client)
    for body in (
        b"",
        b" ",
        b"{",
        b"name=search",
        b"{'name': 'x'}",
        b'{"name": "x",}',
        b'{"name": "x"} {}',
        b'{"name": "x"} // comment',
        b'{"name": NaN}',
        b'{"name": Infinity}',
        b'{"name": -Infinity}',
        b'{"tool_ids": [1, NaN]}',
        b'{"name": "x", "name": "x"}',
        b'{"name": "x", "n\\u0061me": "y"}',
        b'{"tool_ids": [{"a": 1, "b": 2, "a": 1}]}',
        b'{"x": {"y": {"z": 1, "z": 2}}}',
        b'{"name": "\\ud800"}',
        b'{"name": "a\\udc00b"}',
        b'{"name": "\\ude00\\ud83d"}',
        b'{"\\ud800": "x"}',
        b'{"name": "\xff"}',
        b'{"name": "\xed\xa0\x80"}',
        b'{"name": "\xc0\xaf"}',
        '{"name": "x"}'.encode("utf-16"),
        '{"name": "x"}'.encode("utf-32-le"),
        b'\xef\xbb\xbf{"name": "x"}',
        b'{"name": "a\nb"}',
        b'{"name": "\x00"}',
        b'{"name": "\\x41"}',
        b'{"name": 01}',
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"[" * 1_000_000,
    ):
        for method, path in operations:
            problem = await refused(client, 400, method, path, AS_JSON, data=body)
            assert problem["type"] == "urn:agent-platform:problem:malformed-request", body[:50]
            assert ("surrogate" in problem["detail"]) == (b"\\ud" in body), body[:50]
    assert await everything(client) == before


async def test_nesting_of_any_depth_is_refused(client: Client) -> None:
    for depth in (1, 50, 120, 130, 250, 260, 500, 900, 1000, 3000):
        for deep in (b"[" * depth + b"]" * depth, b'{"a":' * depth + b"{}" + b"}" * depth):
            for body in (deep, b'{"name": ' + deep + b', "description": "\\u0041"}', b'{"x": ' + deep + b"}"):
                await refused(client, 400, "POST", "/tools", AS_JSON, data=body)
    assert (await client.json("GET", "/tools"))["total"] == 0


async def test_json_that_is_no_object_of_the_schema_is_refused_at_its_root(client: Client) -> None:
    for method, path in await takers_of_bodies(client):
        for body in (b"null", b"[]", b"1", b'"x"', b"true", b"1e999", b"-0.0"):
            problem = await refused(client, 400, method, path, AS_JSON, data=body)
            assert places(problem) == ["#"]
    for number in ("1e999", "-1e999", "1e-999", "1.5", "9" * 4000, "-" + "9" * 900_000, "-0", str(2**53), str(2**64)):
        body = json.dumps({**AGENT, "name": "new"})[:-1] + f', "tool_ids": [{number}]}}'
        problem = await refused(client, 400, "POST", "/agents", AS_JSON, data=body.encode())
        assert places(problem) == ["#/tool_ids/0"], number


async def test_json_of_every_lawful_form_is_taken(client: Client) -> None:
    for body, name in (
        (b'{"name": "\\ud83d\\ude42\\n\\/", "description": "x"}', "🙂\n/"),
        ('\r\n\t {"description":"x","name":"é"} \n'.encode(), "é"),
        (b'{"name": "x\\u2028", "description": "x"}', "x\u2028"),
        (b'{"name": "\\"\\\\\'; drop table tools; --", "description": "x"}', "\"\\'; drop table tools; --"),
    ):
        response = await client.post("/tools", data=body, headers=AS_JSON)
        assert response.status == 201
        created = await response.json()
        assert created["name"] == name
        found = await client.get("/tools", params={"name": name}, headers=KEY_A)
        assert (await found.json())["items"] == [created]


async def test_another_media_type_is_415(client: Client) -> None:
    operations = await takers_of_bodies(client)
    before = await everything(client)
    body = json.dumps({"name": "new"}).encode()
    for method, path in operations:
        for media_type in (
            "text/plain",
            "text/json",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/octet-stream",
            "application/json-patch+json",
            "application/problem+json",
            "application/jsonx",
            "application/json; charset=latin-1",
            "application/json; charset=utf-16",
            "*/*",
            "json",
            "",
            *([] if method == "PATCH" else ["application/merge-patch+json"]),
        ):
            headers = {**KEY_A, "Content-Type": media_type}
            problem = await refused(client, 415, method, path, headers, data=body)
            assert "application/json" in problem["detail"]
        await refused(client, 415, method, path, KEY_A, data=body, skip_auto_headers=["Content-Type"])
    assert await everything(client) == before
    for number, media_type in enumerate(
        ("application/json", "Application/JSON", "application/json; charset=utf-8", 'application/json;charset="UTF-8"')
    ):
        headers = {**KEY_A, "Content-Type": media_type}
        response = await client.post("/tools", json={**TOOL, "name": f"tool {number}"}, headers=headers)
        assert response.status == 201, media_type


async def test_no_body_at_all_is_refused(client: Client) -> None:
    for method, path in await takers_of_bodies(client):
        problem = await refused(client, 400, method, path, skip_auto_headers=["Content-Type"])
        assert "application/json" in problem["detail"]
        async with Wire(client) as wire:
            assert (await wire.ask(head(method, path, KEY_LINE))).status == 400


async def test_a_body_is_at_most_one_mebibyte(client: Client) -> None:
    operations = await takers_of_bodies(client)

    async def chunks(body: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(body), 2**16):
            yield body[at : at + 2**16]

    for number, size in enumerate((MIB - 1, MIB)):
        for form in ("whole", "chunked"):
            tool = json.dumps({**TOOL, "name": f"{form} {number}"}).encode().ljust(size)
            response = await client.post("/tools", data=BytesIO(tool) if form == "whole" else chunks(tool), headers=AS_JSON)
            assert response.status == 201
    before = await everything(client)
    for method, path in operations:
        for body in (json.dumps({**TOOL, "name": "large"}).encode().ljust(MIB + 1), b" " * 3 * MIB):
            for data in (BytesIO(body), chunks(body)):
                problem = await refused(client, 413, method, path, AS_JSON, data=data)
                assert problem["type"] == "urn:agent-platform:problem:content-too-large"
                assert str(MIB) in problem["detail"]
    assert await everything(client) == before


def spaces(contract: Contract) -> list[str]:
    """Every character that openapi.yaml holds to be blank, from the pattern itself."""
    leading = re.match(r"\^(\[[^\]]+\])", contract.spec["components"]["schemas"]["Name"]["pattern"])
    assert leading is not None
    return re.findall(leading[1], "".join(map(chr, [*range(0xD800), *range(0xE000, 0x10000)])))


async def test_blank_texts_and_nuls_are_refused(client: Client, contract: Contract) -> None:
    await fill(client)
    blanks = spaces(contract)
    assert {chr(code) for code in range(0x10000) if chr(code).isspace()} <= {*blanks}
    before = await everything(client)
    fields = ["#/description", "#/name", "#/role"]
    for blank in (*blanks, "".join(blanks), "\0", "a\0", "\0a", ""):
        texts = dict.fromkeys(AGENT, blank if "\0" in blank else blank * 2)
        for method, path in (("POST", "/agents"), ("PUT", "/agents/1"), ("PATCH", "/agents/1")):
            assert places(await refused(client, 400, method, path, json=texts)) == fields, ascii(blank)
        task = {"task": texts["name"], "model": "gpt-4o"}
        assert places(await refused(client, 400, "POST", "/agents/1/run", json=task)) == ["#/task"]
        tool = {"name": texts["name"], "description": texts["name"]}
        assert places(await refused(client, 400, "POST", "/tools", json=tool)) == ["#/description", "#/name"]
    assert await everything(client) == before
    for blank in blanks:
        texts = dict.fromkeys(AGENT, f"{blank}{ord(blank)}{blank}")
        agent = await make_agent(client, **texts)
        assert {field: agent[field] for field in AGENT} == texts


async def test_limits_count_characters_not_bytes(client: Client) -> None:
    for letter in ("x", "é", "🙂", "\U0010fffd"):
        agent = {"name": letter * 100, "role": letter * 100, "description": letter * 2000}
        created = await client.json("POST", "/agents", json=agent)
        assert {field: created[field] for field in agent} == agent
        task = letter * 20_000
        assert (await run(client, created["id"], task))["task"] == task
        longer = {field: text + letter for field, text in agent.items()}
        path = f"/agents/{created['id']}"
        for method, where in (("POST", "/agents"), ("PUT", path), ("PATCH", path)):
            problem = await refused(client, 400, method, where, json=longer)
            assert places(problem) == ["#/description", "#/name", "#/role"]
        problem = await refused(client, 400, "POST", f"{path}/run", json={"task": task + letter, "model": "gpt-4o"})
        assert places(problem) == ["#/task"]
        found = await client.get("/agents", params={"name": letter * 100}, headers=KEY_A)
        assert (await found.json())["items"] == [created]
        tool = {"name": letter * 100, "description": letter * 2000}
        assert (await client.json("POST", "/tools", json=tool))["name"] == tool["name"]
        longer = {field: text + letter for field, text in tool.items()}
        assert places(await refused(client, 400, "POST", "/tools", json=longer)) == ["#/description", "#/name"]


async def test_every_error_is_named_at_once(client: Client) -> None:
    await make_tool(client)
    agent = {"name": "", "role": 5, "tool_ids": [0, "x", 1, 1], "extra": 1, "a/b~c": 2, "ä %": 3, "": 4}
    problem = await refused(client, 400, "POST", "/agents?x=1&y=", json=agent)
    assert problem["type"] == "urn:agent-platform:problem:invalid-request"
    body_places = ["#/", "#/%C3%A4%20%25", "#/a~1b~0c", "#/description", "#/extra", "#/name", "#/role", "#/tool_ids"]
    assert places(problem) == [*body_places, "#/tool_ids/0", "#/tool_ids/1", "x", "y"]
    assert all(place["detail"].endswith(".") for place in problem["errors"])
    problem = await refused(client, 400, "PATCH", "/tools/abc?x=1", json={"name": None, "description": [], "id": 1})
    assert places(problem) == ["#/description", "#/id", "#/name", "tool_id", "x"]
    problem = await refused(client, 400, "POST", "/agents/0/run", json={"task": "\0", "model": "gpt-5", "agent_id": 1})
    assert places(problem) == ["#/agent_id", "#/model", "#/task", "agent_id"]
    problem = await refused(client, 400, "POST", "/tools", json={str(number): number for number in range(5000)})
    assert len(problem["errors"]) == 1000


async def test_what_a_client_sent_is_cut_at_a_hundred_characters(client: Client) -> None:
    long = "y" * 500
    await make_tool(client, "y" * 100)
    for problem in (
        await refused(client, 400, "POST", "/tools", json={**TOOL, long: long}),
        await refused(client, 400, "POST", "/tools", json={"name": long, "description": [long]}),
        await refused(client, 400, "GET", f"/tools?{long}={long}"),
        await refused(client, 400, "GET", f"/tools?cursor={long}&limit={long}"),
        await refused(client, 400, "GET", f"/tools/{long}"),
        await refused(client, 404, "GET", f"/{long}"),
        await refused(client, 405, "POST", f"/tools/{long}"),
        await refused(client, 409, "POST", "/tools", json={**TOOL, "name": "y" * 100}),
        await refused(client, 401, "GET", "/tools", {"X-API-Key": long}),
    ):
        assert "y" * 101 not in json.dumps(problem)
        assert len(problem["instance"]) <= 100


@pytest.mark.parametrize("line", ["OPTIONS *", "CONNECT x:1", "GET http://foo"])
async def test_what_finds_no_route_bears_the_clients_own_request_id(client: Client, line: str) -> None:
    async with Wire(client) as wire:
        answer = await wire.ask(f"{line} HTTP/1.1\r\nHost: x\r\nX-Request-ID: mine\r\nConnection: close\r\n\r\n".encode())
    assert answer.headers["X-Request-ID"] == answer.json()["request_id"] == "mine"


@pytest.mark.parametrize("line", ["OPTIONS * HTTP/1.1", "GET http://foo HTTP/1.1", "no HTTP"])
async def test_what_finds_no_route_has_its_line_in_the_log(serve: Serve, config: Config, line: str) -> None:
    app, written = make_app(config), StringIO()
    app[ACCESS_LOG] = log = AccessLog(written, as_json=True)
    async with Wire(await serve(app=app)) as wire:
        answer = await wire.ask(f"{line}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    log.flush()
    (noted,) = map(json.loads, written.getvalue().splitlines())
    told = (noted["method"], noted["route"], noted["status"], noted["request_id"])
    assert told == ("other", "other", answer.status, answer.headers["X-Request-ID"])


@pytest.mark.parametrize("body", [b"abc", b'{"name": NaN}', b"{", b"\xff", b'{"name": "a", "name": "b"}'])
async def test_a_body_that_is_no_json_is_named_beside_all_other_mistakes(client: Client, body: bytes) -> None:
    headers = {**KEY_A, "Content-Type": "application/json", "Idempotency-Key": "é"}
    problem = await refused(client, 400, "POST", "/tools?x=1&y=2", headers, data=body)
    assert problem["type"].endswith("malformed-request")
    assert places(problem) == ["#", "Idempotency-Key", "x", "y"]
    assert problem["errors"][-1] == {"pointer": "#", "detail": problem["detail"]}


async def test_every_answer_bears_a_request_id(client: Client) -> None:
    requests: tuple[tuple[str, str, int], ...] = (
        ("GET", "/health", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/docs", 200),
        ("GET", "/nope", 404),
        ("DELETE", "/tools", 405),
        ("POST", "/tools", 415),
        ("HEAD", "/tools", 200),
    )
    for method, path, status in requests:
        for given in ("my-id", "a", "A" * 128, "2f0e.B_c:d/e+f=g@h-0"):
            response = await client.request(method, path, headers={**KEY_A, "X-Request-ID": given})
            assert (response.status, response.headers["X-Request-ID"]) == (status, given)
    seen = set()
    for headers in (
        [],
        *([("X-Request-ID", odd)] for odd in ("", "A" * 129, "a b", "a,b", "a\tb", "é", "<script>", "a;b", '"a"', "a%0Ab")),
        [("X-Request-ID", "one"), ("X-Request-ID", "two")],
    ):
        response = await client.get("/health", headers=CIMultiDict(headers))
        seen.add(response.headers["X-Request-ID"])
        assert response.headers["X-Request-ID"] not in [value for _, value in headers]
    assert len(seen) == 12


async def test_every_key_that_opens_nothing_is_the_same_401(client: Client) -> None:
    revoked = new_key()
    database = client.app[STATE].authenticator._database
    row = await store(database, "tenant_a", revoked)
    await revoke(database, "tenant_a", row["id"])
    unknown = new_key()
    for method, path, body in (
        ("GET", "/whoami", None),
        ("GET", "/tools?limit=x", None),
        ("POST", "/agents", {"name": ""}),
        ("POST", "/agents/1/run", {}),
        ("DELETE", "/tools/abc", None),
    ):
        answers = [
            await answer(client, method, path, [("X-API-Key", key) for key in keys] + others, json=body)
            for keys, others in (
                ([], []),
                ([""], []),
                ([unknown], []),
                ([revoked], []),
                ([unknown[:-1] + ("0" if unknown[-1] != "0" else "1")], []),
                (["mk_short"], []),
                (["key_tenant_c"], []),
                (["KEY_TENANT_A"], []),
                (["key_tenant_a key_tenant_a"], []),
                (["key_tenant_a,key_tenant_a"], []),
                (["é" * 42], []),
                (["x" * 5000], []),
                (["key_tenant_a", "key_tenant_a"], []),
                (["key_tenant_a", "key_tenant_b"], []),
                (["wrong", "key_tenant_a"], []),
                ([], [("Authorization", "Bearer key_tenant_a")]),
                ([], [("Cookie", "X-API-Key=key_tenant_a")]),
                ([], [("X_API_Key", "key_tenant_a")]),
            )
        ]
        assert answers[0].status == 401
        assert answers[0].headers["WWW-Authenticate"].startswith("ApiKey ")
        assert all(each == answers[0] for each in answers)
    assert (await client.json("GET", "/whoami"))["tenant_id"] == "tenant_a"


async def test_a_path_that_is_not_there_is_404_with_a_key_and_without(client: Client) -> None:
    await fill(client)
    for path in (
        "/nope",
        "/tools/",
        "/tools/1/",
        "/tools/1/x",
        "/Tools",
        "/agents/1/run/1",
        "/runs/1/steps",
        "/v1/tools",
        "/tools%2F1",
        "/%00",
        "/%FF",
        "/%F0%9F%99%82",
        "/docs/../tools.sql",
        "/docs/%2e%2e/%2e%2e/pyproject.toml",
        "/docs/nope.js",
        "/openapi.yml",
        "/.env",
        "/nope?limit=x",
    ):
        for method in ("GET", "POST", "DELETE", "HEAD", "OPTIONS"):
            for key in (KEY_A, {}):
                response = await client.request(method, path, headers=key)
                assert response.status == 404, f"{method} {path}"
                if method != "HEAD":
                    assert (await response.json(content_type=PROBLEM))["title"] == "Not found"


async def test_a_wrong_method_is_405_and_allow_names_the_right_ones(client: Client, contract: Contract) -> None:
    await fill(client)
    before = await everything(client)
    paths = {path: [method.upper() for method in METHODS if method in item] for path, item in contract.spec["paths"].items()}
    paths |= {page: ["GET"] for page in ("/docs", "/redoc", "/openapi.json", "/openapi.yaml")}
    for path, methods in paths.items():
        allowed = {*methods, *(["HEAD"] if "GET" in methods else [])}
        for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"} - allowed:
            for number in ("1", "abc"):
                response = await client.request(method, re.sub(r"\{\w+\}", number, path), headers=KEY_A, json={})
                assert response.status == 405, f"{method} {path}"
                assert set(response.headers["Allow"].split(", ")) == allowed
                if method != "HEAD":
                    problem = await response.json(content_type=PROBLEM)
                    assert problem["type"] == "urn:agent-platform:problem:method-not-allowed"
    assert await everything(client) == before


async def test_head_is_get_without_its_body(client: Client, contract: Contract) -> None:
    await fill(client)
    gets = [re.sub(r"\{\w+\}", "1", path) for path, item in contract.spec["paths"].items() if "get" in item]
    refusals = ["/tools/9", "/agents/9/runs", "/runs/abc", "/tools?limit=0", "/nope"]
    for path in (*gets, *refusals, "/docs", "/redoc", "/openapi.json", "/openapi.yaml"):
        for key in (KEY_A, {}):
            got, head = [await answer(client, method, path, key) for method in ("GET", "HEAD")]
            assert (head.status, head.headers, head.body) == (got.status, got.headers, b""), path
            assert got.body


async def test_a_crash_is_a_500_without_a_trace_of_its_cause(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = await serve()
    await fill(client)
    broken = {
        "list_tools": ("GET", "/tools", None),
        "get_agent": ("GET", "/agents/1", None),
        "create_tool": ("POST", "/tools", {**TOOL, "name": "new"}),
        "delete_agent": ("DELETE", "/agents/1", None),
        "create_run": ("POST", "/agents/1/run", {"task": "Say hello", "model": "gpt-4o"}),
    }
    before = await everything(client)
    await client.close()

    def load_broken(folder: Path, engine: str) -> dict[str, Query]:
        whole = load_queries(folder, engine)
        return {**whole, **{name: replace(whole[name], sql=f"{whole[name].sql} from a_secret_table") for name in broken}}

    with monkeypatch.context() as patch:
        patch.setattr("service.app.load_queries", load_broken)
        client = await serve()
    for method, path, body in broken.values():
        problem = await refused(client, 500, method, path, json=body)
        del problem["instance"]
        assert problem == {
            "type": "urn:agent-platform:problem:internal-error",
            "title": "Internal error",
            "status": 500,
            "detail": "The service failed; the request id finds the cause in its log.",
            "request_id": problem["request_id"],
        }
        assert problem["request_id"] in caplog.text
    assert "secret" not in caplog.text
    assert "OperationalError" in caplog.text or "PostgresSyntaxError" in caplog.text
    await client.close()
    assert await everything(await serve()) == before


async def test_a_crash_outside_of_the_storage_is_a_500_too(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any) -> NoReturn:
        raise RuntimeError("a secret in /etc/passwd")

    client = await serve()
    agent = await make_agent(client)
    with monkeypatch.context() as patch:
        patch.setattr(ModelRegistry, "adapter", crash)
        problem = await refused(
            client, 500, "POST", f"/agents/{agent['id']}/run", json={"task": "Say hello", "model": "gpt-4o"}
        )
        patch.setattr("service.auth.Authenticator.caller", crash)
        assert (await client.get("/tools", headers=KEY_A)).status == 500
    assert "secret" not in str(problem)
    assert "RateLimit" in (await client.post(f"/agents/{agent['id']}/run", json={}, headers=KEY_A)).headers
    assert (await client.json("GET", "/runs"))["total"] == 0


async def test_a_storage_that_does_not_answer_is_503(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(client)
    before = await everything(client)

    async def fail(*_: Any) -> NoReturn:
        raise Unavailable

    async def assert_unavailable(method: str, path: str, headers: dict[str, str] = KEY_A, body: Any = None) -> None:
        response = await client.request(method, path, headers=headers, json=body)
        assert response.status == 503, f"{method} {path}"
        assert int(response.headers["Retry-After"]) >= 1

    with monkeypatch.context() as patch:
        patch.setattr(type(engine_in(client.app)), "write", fail)
        for method, path, body in (
            ("POST", "/tools", {**TOOL, "name": "new"}),
            ("PUT", "/tools/1", TOOL),
            ("DELETE", "/agents/1", None),
            ("POST", "/agents/1/run", {"task": "Say hello", "model": "gpt-4o"}),
        ):
            await assert_unavailable(method, path, body=body)
        assert await everything(client) == before
        patch.setattr(type(engine_in(client.app)), "read", fail)
        for path in ("/tools", "/tools/1", "/agents", "/agents/1", "/runs", "/runs/1", "/agents/1/runs"):
            await assert_unavailable("GET", path)
        await assert_unavailable("GET", "/ready", {})
        await assert_unavailable("GET", "/whoami", {"X-API-Key": new_key()})
        assert await client.json("GET", "/health", {}) == {"status": "ok"}
        await refused(client, 401, "GET", "/tools", {})
    assert await client.json("GET", "/ready", {}) == {"status": "ready"}
    assert await everything(client) == before


async def test_what_is_no_http_is_answered_as_a_problem(client: Client, contract: Contract) -> None:
    schema = contract.spec["components"]["schemas"]["Problem"]
    bad_chunk = head("POST", "/tools", KEY_LINE, JSON_LINE, "Transfer-Encoding: chunked")
    for data in (
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /tools/\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /tools?name=\xff HTTP/1.1\r\nHost: x\r\nX-API-Key: key_tenant_a\r\n\r\n",
        head("GET", "http://x:99999/tools"),
        head("GET", "/health", "Content-Length: abc"),
        head("GET", "/health", "Content-Length: -1"),
        head("GET", "/health", "Content-Length: 1", "Content-Length: 2"),
        head("POST", "/tools", "Content-Length: 3", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        head("GET", "/health", "No colon"),
        head("GET", "/health", "X-A: a\0b"),
        head("GET", "/health", "X-A: " + "a" * 20_000),
        head("GET", "/health?" + "a" * 20_000),
        bad_chunk + b"zz\r\n{}\r\n0\r\n\r\n",
    ):
        async with Wire(client) as wire:
            got = await wire.ask(data)
        assert got.status == 400, data[:60]
        assert got.headers["Content-Type"].split(";")[0] == PROBLEM
        problem = got.json()
        assert list(contract.validator(schema).iter_errors(problem)) == []
        assert problem["request_id"] == got.headers["X-Request-ID"]
    assert (await client.json("GET", "/tools"))["total"] == 0


async def test_http_that_is_rare_but_right_is_served(client: Client) -> None:
    await make_tool(client)
    for data, status in (
        (b"GET /health HTTP/1.0\r\n\r\n", 200),
        (b"\r\nGET /health HTTP/1.1\r\nhost: x\r\n\r\n", 200),
        (head("GET", "http://x/tools/1", KEY_LINE), 200),
        (head("GET", "/health", "Connection: Upgrade", "Upgrade: websocket"), 200),
        (head("GET", "/tools/1", KEY_LINE, "Content-Length: 2") + b"{}", 200),
        (head("OPTIONS", "*"), 404),
        (head("GET", "//tools", KEY_LINE), 404),
        (head("GET", "/docs/../tools/1", KEY_LINE), 404),
    ):
        async with Wire(client) as wire:
            assert (await wire.ask(data)).status == status, data


async def test_the_instance_of_a_problem_is_the_path_however_the_target_is_written(client: Client) -> None:
    for target, instance in (
        ("/tools/7", "/tools/7"),
        ("/tools/7?limit=1", "/tools/7"),
        ("http://x/tools/7", "/tools/7"),
        ("http://x/tools/7?limit=1", "/tools/7"),
        ("/tools/%61", "/tools/%61"),
    ):
        async with Wire(client) as wire:
            got = await wire.ask(head("GET", target, KEY_LINE))
        assert got.status in (400, 404)
        assert got.json()["instance"] == instance, target


async def test_a_body_that_does_not_arrive_as_promised_is_refused(client: Client) -> None:
    for lines, body in (
        (["Content-Encoding: gzip", "Content-Length: 6"], b"xxxxxx"),
        (["Content-Encoding: deflate", "Content-Length: 6"], b"xxxxxx"),
        (["Transfer-Encoding: chunked"], b'5\r\n{"nam\r\nzz\r\n\r\n'),
    ):
        async with Wire(client) as wire:
            got = await wire.ask(head("POST", "/tools", KEY_LINE, JSON_LINE, *lines) + body)
        assert (got.status, got.headers["Content-Type"].split(";")[0]) == (400, PROBLEM)
    async with Wire(client) as wire:
        await wire.send(head("POST", "/tools", KEY_LINE, JSON_LINE, "Content-Length: 100") + b'{"name": "half"')
    assert (await client.json("GET", "/tools"))["total"] == 0


async def test_expect_100_continue_works_and_an_odd_expect_fails_nothing(client: Client) -> None:
    body = json.dumps({**TOOL, "name": "expected"}).encode()
    async with asyncio.timeout(5):
        assert (await client.post("/tools", json=TOOL, headers=KEY_A, expect100=True)).status == 201
    expecting = ("Expect: 100-continue", f"Content-Length: {len(body)}")
    async with Wire(client) as wire:
        assert (await wire.ask(head("POST", "/tools", KEY_LINE, JSON_LINE, *expecting))).status == 100
        assert (await wire.ask(body)).status == 201
    for lines, status in (
        ((JSON_LINE, *expecting), 401),
        ((KEY_LINE, "Content-Type: text/plain", *expecting), 415),
        ((KEY_LINE, JSON_LINE, "Expect: 100-continue", f"Content-Length: {MIB + 1}"), 413),
    ):
        async with Wire(client) as wire:
            assert (await wire.ask(head("POST", "/tools", *lines))).status == status
    for odd in ("200-ok", "100-continue, x", ""):
        for path, statuses in (("/tools", (200, 400)), ("/nope", (400, 404)), ("/openapi.yaml", (200, 400))):
            got = await answer(client, "GET", path, [*KEY_A.items(), ("Expect", odd)])
            assert got.status in statuses, (odd, path)


async def test_a_caller_without_a_key_is_answered_before_its_body_is_read(client: Client, contract: Contract) -> None:
    bodies = [
        (method.upper(), re.sub(r"\{\w+\}", "1", path))
        for method, path, operation in contract.operations()
        if "requestBody" in operation
    ]
    assert len(bodies) == 9
    for method, path in bodies:
        for length in ("Content-Length: 1000", f"Content-Length: {MIB}", "Transfer-Encoding: chunked"):
            async with Wire(client) as wire, asyncio.timeout(1):
                got: Answer = await wire.ask(head(method, path, JSON_LINE, length))
            assert got.status == 401


async def test_a_refused_body_leaves_the_connection_usable(client: Client) -> None:
    async with Wire(client) as wire:
        for status, *lines in (
            (401, JSON_LINE),
            (415, KEY_LINE, "Content-Type: text/plain"),
            (400, KEY_LINE, JSON_LINE),
        ):
            got = await wire.ask(head("POST", "/tools", *lines, "Content-Length: 9") + b"GET /x HT")
            assert got.status == status
        assert (await wire.ask(head("GET", "/health"))).json() == {"status": "ok"}


async def test_what_merge_patch_takes_is_checked_like_any_body(client: Client) -> None:
    await fill(client)
    before = await everything(client)
    for path in ("/tools/1", "/agents/1"):
        for body, wrong in ((b'{"name": "", "id": 1}', ["#/id", "#/name"]), (b"null", ["#"])):
            problem = await refused(client, 400, "PATCH", path, {**KEY_A, **MERGE_PATCH}, data=body)
            assert places(problem) == wrong
        await refused(client, 400, "PATCH", path, {**KEY_A, **MERGE_PATCH}, data=b'{"name": "x", "name": "y"}')
        await refused(client, 404, "PATCH", path, {**KEY_B, **MERGE_PATCH}, data=b'{"name": "x"}')
    assert await everything(client) == before
