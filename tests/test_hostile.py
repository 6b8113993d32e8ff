"""What strangers found when they tried to break the service."""

import asyncio
import gzip
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from yarl import URL

from service.app import make_app
from service.config import Config
from service.execution.models import Conversation, ModelRegistry
from service.logs import AccessLog
from service.problems import ACCESS_LOG
from service.state import STATE
from tests.conftest import KEY_A, Client, Serve
from tests.support import postgresql
from tests.support.direct import direct
from tests.support.http import Wire, refused
from tests.support.pace import slowness
from tests.support.process import Service, clean_environment
from tests.support.storage import made

JSON = KEY_A | {"Content-Type": "application/json"}
AGENT = {"name": "x", "role": "r", "description": "d"}


@pytest.mark.embedded
@pytest.mark.parametrize("item", ["{}", "1", '"x"', "[[[]]]"])
async def test_a_megabyte_of_mistakes_is_answered_at_once(client: Client, item: str) -> None:
    body = json.dumps(AGENT)[:-1] + ', "tool_ids": [' + ",".join([item] * (1_000_000 // (len(item) + 1))) + "]}"
    began = time.perf_counter()
    response = await client.post("/agents", data=body, headers=JSON)
    # unbounded, it takes five seconds and more
    assert time.perf_counter() - began < 4 * slowness()
    assert response.status == 400
    problem = await response.json()
    assert len(problem["errors"]) <= 1000
    assert "Must have at most 50 items." in [error["detail"] for error in problem["errors"]]


@pytest.mark.embedded
async def test_a_megabyte_of_long_numbers_is_answered_at_once(client: Client) -> None:
    numbers = ", ".join(str(10**4298 + number) for number in range(235))
    began = time.perf_counter()
    problem = await refused(
        client, 400, "POST", "/agents", JSON, data=json.dumps(AGENT)[:-1] + f', "tool_ids": [{numbers}]}}'
    )
    # computed with, they take over ten seconds
    assert time.perf_counter() - began < 4 * slowness()
    assert problem["errors"][0]["pointer"].startswith("#/tool_ids")


@pytest.mark.embedded
async def test_a_bomb_that_nobody_reads_holds_nobody_up(client: Client) -> None:
    packer = zlib.compressobj(6, wbits=31)
    first, more = [packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2)]
    # a part that refers to none before it can be there any number of times
    bomb = first + 511 * more
    for line in ("POST /tools", "GET /health", "DELETE /nowhere"):
        async with Wire(client) as wire:
            head = f"{line} HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb) + 1}\r\n\r\n"
            await wire.send(head.encode() + bomb)
            await wire.receive()
            began = time.perf_counter()
            assert (await client.get("/health")).status == 200
            # decompressed behind the answer, it takes as long again
            assert time.perf_counter() - began < 0.3 * slowness()


@pytest.mark.embedded
async def test_a_megabyte_of_unknown_fields_is_answered_at_once(client: Client) -> None:
    response = await client.post("/agents", data=json.dumps({f"f{n}": n for n in range(60_000)}), headers=JSON)
    problem = await response.json()
    assert len(problem["errors"]) == 1000
    assert problem["detail"] == "The request breaks the contract in 1000 places or more."
    assert {"pointer": "#/name", "detail": "This field is required."} in problem["errors"]


async def test_a_run_on_the_longest_task_with_the_most_tools_does_not_hold_the_others_up(client: Client) -> None:
    names = [" ".join("abcdefghijklmnopqrstuvwxy") + f" z{n}" for n in range(42)] + [f"zz{n}" for n in range(8)]
    tools = [(await client.json("POST", "/tools", json={"name": name, "description": "d"}))["id"] for name in names]
    agent = await client.json("POST", "/agents", json=AGENT | {"tool_ids": tools})
    task = ("a b c d e f g h i j k l m n o p q r s t u v w x y " * 400)[:19_900] + "".join(f" zz{n}" for n in range(8))
    run = await client.json("POST", f"/agents/{agent['id']}/run", json={"task": task, "model": "gpt-4o"})
    assert [step["tool_name"] for step in run["steps"]] == names[42:]
    assert run["duration_ms"] < 250 * slowness()


@pytest.mark.parametrize("coding", ["br", "zstd", "foo", "gzip, gzip"])
async def test_an_unknown_content_coding_is_refused(client: Client, coding: str) -> None:
    headers = JSON | {"Content-Encoding": coding}
    response = await client.post("/tools", data=b'{"name":"n","description":"d"}', headers=headers)
    assert response.status == 415
    assert (await client.json("GET", "/tools"))["total"] == 0


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip"])
async def test_a_content_coding_is_looked_at_behind_the_key_and_only_where_a_body_is_wanted(
    client: Client, coding: str
) -> None:
    for method, path, key, status in (
        ("POST", "/tools", {}, 401),
        ("POST", "/nowhere", KEY_A, 404),
        ("PUT", "/tools", KEY_A, 405),
        ("GET", "/health", {}, 200),
        ("GET", "/tools", KEY_A, 200),
    ):
        headers = {**key, "Content-Encoding": coding, "X-Request-ID": "mine"}
        response = await client.request(method, path, headers=headers, data=b"no such coding")
        assert (response.status, response.headers["X-Request-ID"]) == (status, "mine"), (method, path)


async def test_a_body_in_a_content_coding_is_taken_whole_or_not_at_all(client: Client) -> None:
    def body(name: str) -> bytes:
        return json.dumps({"name": name, "description": "d"}).encode()

    for name, coding, encode in (
        ("a", "gzip", gzip.compress),
        ("b", "X-GZIP", gzip.compress),
        ("c", "deflate", zlib.compress),
    ):
        headers = JSON | {"Content-Encoding": coding}
        assert (await client.post("/tools", data=encode(body(name)), headers=headers)).status == 201
        for broken in (encode(body("x"))[:-1], encode(body("x")) + b" ", encode(body("x")) + encode(b" "), body("x"), b""):
            problem = await refused(client, 400, "POST", "/tools", headers, data=broken)
            assert problem["errors"] == [{"pointer": "#", "detail": problem["detail"]}]
        await refused(client, 413, "POST", "/tools", headers, data=encode(b" " * (2**20 - 20) + body("x")))
        await refused(client, 413, "POST", "/tools", headers, data=encode(bytes(8 * 2**20)))
    assert (await client.json("GET", "/tools"))["total"] == 3


async def test_a_broken_coding_writes_no_error_into_the_log(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    for key in ("X-API-Key: key_tenant_a\r\n", ""):
        async with Wire(client) as wire:
            head = f"POST /tools HTTP/1.1\r\nHost: x\r\n{key}Content-Type: application/json\r\n"
            answer = await wire.ask(f"{head}Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nzzzz".encode())
            assert answer.status == (400 if key else 401)
    await client.json("GET", "/tools")
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.embedded
@pytest.mark.parametrize("line", ["OPTIONS *", "CONNECT a:1", "CONNECT /agents", "GET http://foo"])
async def test_a_target_without_a_path_is_answered_by_us(client: Client, line: str) -> None:
    async with Wire(client) as wire:
        answer = await wire.ask(f"{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.status in (404, 405)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Server"] == "agent-platform"
    assert json.loads(answer.body)["request_id"] == answer.headers["X-Request-ID"]


@pytest.mark.embedded
async def test_a_body_that_was_announced_and_not_wanted_ends_the_connection(client: Client) -> None:
    async with Wire(client) as wire:
        head = "POST /tools HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 100\r\n\r\n"
        answer = await wire.ask(head.encode())
        assert answer.status == 401
        assert answer.headers["Connection"] == "close"


class Leaks:
    async def answer(self, conversation: Conversation) -> str:
        raise asyncio.CancelledError


async def test_an_adapter_that_leaks_a_cancellation_makes_a_failed_run(serve: Serve) -> None:
    client = await serve(models=ModelRegistry({"gpt-4o": Leaks()}))
    await client.json("POST", "/agents", json=AGENT)
    run = await client.json("POST", "/agents/1/run", json={"task": "Say hello", "model": "gpt-4o"})
    assert (run["status"], run["error"]["code"]) == ("failed", "model_error")


async def test_a_leap_second_is_a_time_only_where_one_can_be(client: Client) -> None:
    for moment, status in (
        ("2016-12-31T23:59:60Z", 200),
        ("2017-01-01T01:59:60%2B02:00", 200),
        ("2016-12-31T10:30:60Z", 400),
    ):
        url = URL(f"/runs?created_after={moment}", encoded=True)
        assert (await client.get(url, headers=KEY_A)).status == status


@pytest.mark.embedded
@pytest.mark.parametrize("as_json", [True, False])
async def test_no_line_of_the_log_can_be_forged(serve: Serve, config: Config, as_json: bool) -> None:
    app, written = make_app(config), io.StringIO()
    app[ACCESS_LOG] = log = AccessLog(written, as_json=as_json)
    client = await serve(app=app)
    await client.get("/x%0a2026-11-22 ERROR forged%1b[31m")
    log.flush()
    (line,) = written.getvalue().splitlines()
    assert line.isprintable()
    assert ('"method":"GET","route":"other","status":404,' if as_json else " GET other 404 ") in line


@pytest.mark.embedded
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_conditions_and_ranges_on_assets_never_lead_to_an_empty_error(client: Client, method: str) -> None:
    for path in ("/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js", "/redoc/redoc.js"):
        for header in (
            {"Range": "bytes=999999999-"},
            {"If-Match": '"x"'},
            {"If-Unmodified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"},
        ):
            assert (await client.request(method, path, headers=header)).status == 200


@pytest.mark.embedded
async def test_an_own_request_id_comes_back_also_with_an_odd_expectation(client: Client) -> None:
    headers = {"X-Request-ID": "mine", "Expect": "the unexpected"}
    for path in ("/docs", "/openapi.json", "/health", "/nowhere"):
        assert (await client.get(path, headers=headers)).headers["X-Request-ID"] == "mine"


async def test_ready_notices_that_the_database_is_gone(serve: Serve, engine: str, tmp_path: Path) -> None:
    database = made(engine, tmp_path / "gone.db")
    client = await serve(Config(database=database))
    assert (await client.get("/ready")).status == 200
    if isinstance(database, Path):
        database.rename(database.with_suffix(".away"))
    else:
        with direct(postgresql.url_of("postgres")) as server:
            server.run(f'drop database "{database.rpartition("/")[2]}" with (force)')
    response = await client.get("/ready")
    assert response.status == 503
    assert "Retry-After" in response.headers
    assert (await client.get("/health")).status == 200


def connection(service: Service) -> socket.socket:
    parts = urlsplit(service.origin)
    return socket.create_connection((parts.hostname, parts.port), timeout=10)


def test_a_request_whose_body_is_still_coming_at_sigterm_is_finished(tmp_path: Path) -> None:
    body = b'{"name":"late","description":"d"}'
    head = "POST /tools HTTP/1.1\r\nHost: x\r\nX-API-Key: key_tenant_a\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}"
    with Service(tmp_path / "late.db") as service, connection(service) as sent:
        sent.sendall(head.encode() + b"\r\n\r\n" + body[:5])
        time.sleep(0.2)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        sent.sendall(body[5:])
        assert sent.recv(1000).startswith(b"HTTP/1.1 201")


def test_a_client_that_does_not_read_does_not_hold_up_the_end(tmp_path: Path) -> None:
    service = Service(tmp_path / "deaf.db").__enter__()
    with connection(service) as sent:
        sent.sendall(b"GET /redoc/redoc.js HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        time.sleep(0.3)
        began = time.monotonic()
        service.__exit__(None, None, None)
        assert time.monotonic() - began < 5 * slowness()


def test_a_server_without_streams_ends_as_others_do(tmp_path: Path) -> None:
    started = []
    for number, closed in enumerate(("2>&-", "<&- >&- 2>&-")):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        line = f"exec {sys.executable} -m service serve --port {port} --database {tmp_path}/quiet-{number}.db"
        started.append((subprocess.Popen(["sh", "-c", f"{line} {closed}"], env=clean_environment()), port, closed))
    for process, port, closed in started:
        deadline = time.monotonic() + 10
        # it can't say that it listens
        while time.monotonic() < deadline:
            with suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0, closed


def command(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(
        line, capture_output=True, text=True, timeout=20, env=clean_environment(), errors="replace", **more
    )


WRONG: list[list[str]] = [
    ["serve", "--host", ""],
    ["serve", "--host", ".."],
    ["serve", "--host", "a" * 70],
    ["serve", "--host", "999.1.1.1"],
    ["serve", "--host", "[::1]"],
    ["serve", "--port", "٥"],
    ["serve", "--port", "8_0"],
    ["migrate", "--database", "~nobody-of-this-name/x.db"],
    ["migrate", "--database", "x" * 300],
    ["migrate", "--database", "/dev/null"],
    ["migrate", "--database", "loop"],
    ["keys", "list", "--tenant", os.fsdecode(b"\xff")],
    ["keys", "create", "--tenant", "../x"],
]


@pytest.mark.parametrize("arguments", WRONG, ids=lambda arguments: ascii(arguments[-1])[:20])
def test_a_wrong_value_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    done = command(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert os.listdir(tmp_path) == ["loop"]


def test_a_database_with_a_second_name_is_refused(tmp_path: Path) -> None:
    assert command("migrate", "--database", "one.db", cwd=tmp_path).returncode == 0
    os.link(tmp_path / "one.db", tmp_path / "two.db")
    done = command("migrate", "--database", "two.db", cwd=tmp_path)
    assert done.returncode == 1
    assert "hard link" in done.stderr


async def test_a_path_spelled_otherwise_is_the_same_request_under_an_idempotency_key(client: Client) -> None:
    once = KEY_A | {"Idempotency-Key": "same"}
    await client.json("POST", "/agents", json={"name": "a", "role": "r", "description": "d"})
    task = {"task": "Say hello", "model": "gpt-4o"}
    first = await client.post("/agents/1/run", headers=once, json=task)
    again = await client.post(URL("/agents/%31/run", encoded=True), headers=once, json=task)
    assert (first.status, again.status) == (200, 200)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert await again.read() == await first.read()


async def test_a_client_of_http_1_0_gets_no_interim_answer(client: Client) -> None:
    body = b'{"name": "old", "description": "HTTP/1.0"}'
    head = (
        "POST /tools HTTP/1.0\r\nX-API-Key: key_tenant_a\r\nContent-Type: application/json\r\n"
        f"Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    async with Wire(client) as wire:
        await wire.send(head.encode() + body)
        assert (await wire.receive()).status == 201


async def test_a_full_service_says_so_to_its_clients_and_not_each_time_to_its_log(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    gate = client.app[STATE].gate
    gate.inside = gate.most
    assert (await client.get("/tools", headers=KEY_A)).status == 503
    gate.inside = 0
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == []
