"""The service behind a real nginx that is configured as the README shows it: what a client meets there."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from service.auth import new_key
from service.config import Config
from service.server import _KEPT_ALIVE
from tests.support.contract import PROBLEM, Contract
from tests.support.nginx import NGINX, OPENSSL, Nginx, Pairs, free_port
from tests.support.process import Service
from tests.support.shown import FILES

pytestmark = pytest.mark.skipif(not (NGINX and OPENSSL), reason="This wants Debian's nginx-light and openssl.")

SITE = FILES["/etc/nginx/conf.d/agent-platform.conf"]
KEY = ("X-API-Key", "key_tenant_a")
JSON = ("Content-Type", "application/json")
TOOL = b'{"name": "search", "description": "Search the web"}'
# what the demo keys are asked for; the rest is as the unit has it
OPTIONS = ("--trusted-proxy", "127.0.0.1", "--demo", "--wrong-key-limit", "2", "--request-timeout", "1")


@dataclass
class Front:
    """nginx, the service behind it, and every answer held against openapi.yaml."""

    nginx: Nginx
    service: Service
    contract: Contract

    def ask(
        self, method: str, path: str, headers: Pairs = (KEY,), body: bytes | None = None, source: str = "127.0.0.1"
    ) -> tuple[int, Message, Any]:
        status, answered, sent = self.nginx.ask(method, path, headers, body, source)
        self.contract.check(method, path, status, answered, sent)
        assert answered["Strict-Transport-Security"] == "max-age=63072000"
        assert answered["Server"] == "nginx"
        assert answered["X-Request-ID"]
        return status, answered, json.loads(sent) if sent else None


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, contract: Contract) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("front")
    with Service(folder / "served.db", *OPTIONS) as service:
        port = urlsplit(service.origin).port
        assert port is not None
        with Nginx(SITE, folder, port) as nginx:
            yield Front(nginx, service, contract)


def logged(log: Path, request_id: str) -> str:
    """The line of a log that holds this id; both are written a moment behind the answer."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if found := [line for line in log.read_text().splitlines() if request_id in line]:
            (line,) = found
            return line
        time.sleep(0.02)
    raise AssertionError(f"{request_id} is not in {log.name}.")


def test_nginx_has_nothing_to_say_against_its_configuration(front: Front) -> None:
    verdict = front.nginx.verdict()
    assert "test is successful" in verdict
    assert "[" not in verdict.replace("[notice]", "")


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [
        pytest.param(["a-client.s:own/id+1=@_"], True, id="the client's own"),
        pytest.param([], False, id="none"),
        pytest.param(["no id"], False, id="one that is none"),
        pytest.param(["x" * 129], False, id="one too long"),
        pytest.param(["first", "first"], None, id="two"),
    ],
)
def test_a_request_has_one_id_in_both_logs_and_in_its_answer(front: Front, given: list[str], is_kept: bool | None) -> None:
    _, answered, _ = front.ask("GET", "/whoami", [KEY, *(("X-Request-ID", each) for each in given)])
    request_id = answered["X-Request-ID"]
    assert is_kept is None or (request_id in given) is is_kept
    # two are one of them for an older nginx, and a new one for others
    if request_id != "first":
        end = re.escape(request_id)
        said = json.loads(logged(front.service.log, request_id))
        assert (said["method"], said["route"], said["status"], said["request_id"]) == ("GET", "/whoami", 200, request_id)
        assert re.search(rf" 127\.0\.0\.1 GET 200 [\d.]+s {end}$", logged(front.nginx.log, request_id))


def test_wrong_keys_are_counted_for_the_client_and_not_for_nginx(front: Front) -> None:
    wrong = ("X-API-Key", new_key())
    sources = ("127.0.0.2", "127.0.0.3")
    for source in sources:
        statuses = [front.ask("GET", "/tools", [wrong], source=source)[0] for _ in range(3)]
        assert statuses == [401, 401, 429]
    for forged in (["192.0.2.1"], ["192.0.2.2, 127.0.0.1"], ["192.0.2.3", "192.0.2.4"], ["?"]):
        headers = [wrong, *(("X-Forwarded-For", line) for line in forged)]
        status, answered, _ = front.ask("GET", "/tools", headers, source="127.0.0.2")
        assert status == 429
        assert int(answered["Retry-After"]) > 1
    assert front.ask("GET", "/tools", source="127.0.0.2")[0] == 200


def test_a_body_too_large_is_refused_alike_by_both(front: Front) -> None:
    refusals = []
    for size in (2**20 + 1, 3 * 2**20):
        status, _, problem = front.ask("POST", "/tools", [KEY, JSON], bytes(size))
        assert status == 413
        refusals.append({name: problem[name] for name in ("type", "title", "status", "detail")})
        assert (problem["instance"] == "/tools") == (size < 2 * 2**20)
    assert refusals[0] == refusals[1]


def test_the_largest_body_that_the_service_takes_comes_through(front: Front) -> None:
    body = b'{"name": "' + b"x" * (2**20 - 12) + b'"}'
    status, _, problem = front.ask("POST", "/tools", [KEY, JSON], body)
    assert (len(body), status) == (2**20, 400)
    assert {place["pointer"] for place in problem["errors"]} == {"#/name", "#/description"}


def receive(connection: socket.socket) -> tuple[bytes, Any]:
    """The first line of an answer, and its body, which a problem is."""
    with connection.makefile("rb") as answer:
        first = answer.readline()
        head = dict(line.rstrip().split(b": ", 1) for line in iter(answer.readline, b"\r\n"))
        assert head[b"Content-Type"] == PROBLEM.encode()
        return first, json.loads(answer.read(int(head[b"Content-Length"])))


HALF = b"POST /tools HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n%s\r\n{"


def test_a_caller_without_a_key_is_answered_before_its_body(front: Front) -> None:
    with front.nginx.connect() as connection:
        connection.sendall(HALF % b"")
        first, problem = receive(connection)
    assert first.startswith(b"HTTP/1.1 401")
    assert problem["instance"] == "/tools"


def test_a_body_that_does_not_come_is_the_services_own_refusal(front: Front) -> None:
    with front.nginx.connect() as connection:
        connection.sendall(HALF % b"X-API-Key: key_tenant_a\r\n")
        first, problem = receive(connection)
    assert first.startswith(b"HTTP/1.1 408")
    assert problem["detail"] == "The body did not arrive within 1 seconds."


def seconds(directive: str) -> float:
    (found,) = re.findall(rf"^\s*{directive} (\d+)s;", SITE, re.MULTILINE)
    return float(found)


def test_nginx_waits_longer_than_the_service_and_leaves_idle_connections_sooner() -> None:
    assert min(map(seconds, ("client_body_timeout", "proxy_send_timeout", "proxy_read_timeout"))) > Config.request_timeout
    assert seconds("keepalive_timeout") < _KEPT_ALIVE


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"nonsense\r\n\r\n", id="no HTTP"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="no host"),
        pytest.param(b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"x" * 9_000), id="a path too long"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n" % (b"x" * 9_000), id="a header too long"),
        pytest.param(b"TRACE /tools HTTP/1.1\r\nHost: x\r\n\r\n", id="a method that it keeps to itself"),
        pytest.param(b"POST /tools HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: foo\r\n\r\n", id="an unknown framing"),
        pytest.param(b"GET /tools HTTP/3.0\r\nHost: x\r\n\r\n", id="an unknown version"),
    ],
)
def test_what_nginx_refuses_is_a_problem_too(front: Front, sent: bytes) -> None:
    with front.nginx.connect() as connection:
        connection.sendall(sent)
        first, problem = receive(connection)
    assert int(first.split()[1]) == problem["status"]
    kind = "method-not-allowed" if problem["status"] == 405 else "malformed-request"
    assert problem["type"] == f"urn:agent-platform:problem:{kind}"
    front.contract._check_schema("", front.contract.spec["components"]["schemas"]["Problem"], problem)


def test_a_request_without_tls_is_a_problem_and_goes_no_further(front: Front) -> None:
    with socket.create_connection(("127.0.0.1", front.nginx.port), timeout=10) as connection:
        connection.sendall(
            b"GET /whoami HTTP/1.1\r\nHost: x\r\nX-Request-ID: in-the-clear\r\nX-API-Key: key_tenant_a\r\n\r\n"
        )
        first, problem = receive(connection)
    assert first.startswith(b"HTTP/1.1 400")
    assert (problem["status"], problem["request_id"]) == (400, "in-the-clear")
    front.ask("GET", "/whoami", [KEY, ("X-Request-ID", "behind-it")])
    assert logged(front.service.log, "behind-it")
    assert "in-the-clear" not in front.service.log.read_text()


def test_metrics_are_not_for_everybody(front: Front) -> None:
    assert front.ask("GET", "/metrics", [])[0] == 404
    assert front.ask("GET", "/problem-of-nginx", [])[0] == 404


def test_an_etag_stays_strong_and_what_it_is_of_unaltered(front: Front) -> None:
    status, made, tool = front.ask("POST", "/tools", [KEY, JSON], TOOL)
    assert (status, made["Location"]) == (201, f"/tools/{tool['id']}")
    _, answered, _ = front.ask("GET", made["Location"], [KEY, ("Accept-Encoding", "gzip")])
    assert answered["ETag"] == '"1"'
    headers = [KEY, JSON, ("If-Match", answered["ETag"])]
    assert [front.ask("PATCH", made["Location"], headers, b'{"name": "other"}')[0] for _ in range(2)] == [200, 412]


def test_connections_to_the_service_are_used_again(front: Front) -> None:
    port = urlsplit(front.service.origin).port

    def connections() -> int:
        """Those of the service that are open, or were a moment ago."""
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        # 0A: it listens
        return sum(f":{port:04X}" in (line[1][8:], line[2][8:]) and line[3] != "0A" for line in lines)

    front.ask("GET", "/whoami")
    before = connections()
    for _ in range(20):
        front.ask("GET", "/whoami")
    # each that is open is there from both its ends, and nginx has one process here
    assert connections() <= before + 2


def test_a_service_that_is_away_is_a_503_and_found_again(tmp_path: Path, contract: Contract) -> None:
    port = free_port()
    with Nginx(SITE, tmp_path, port) as nginx:

        def ask(method: str, body: bytes | None = None) -> tuple[int, str | None]:
            status, answered, sent = nginx.ask(method, "/tools", [KEY, JSON], body)
            contract.check(method, "/tools", status, answered, sent)
            return status, answered["Retry-After"]

        assert [ask("GET"), ask("POST", TOOL)] == [(503, "1"), (503, "1")]
        for number in (1, 2):
            with Service(tmp_path / f"{number}.db", *OPTIONS, "--port", str(port)):
                assert [ask("GET"), ask("POST", TOOL)] == [(200, None), (201, None)]
            assert ask("GET") == (503, "1")
    # it has written all when it has ended
    lines = nginx.log.read_text().splitlines()
    assert [line.split()[2] for line in lines] == ["GET", "POST", *2 * ["GET", "POST", "GET"]]


def test_no_post_is_sent_twice(tmp_path: Path) -> None:
    came: list[bytes] = []

    def serve(listening: socket.socket) -> None:
        """Answers a GET, and ends every connection on which something else comes."""
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                while head := connection.recv(2**16):
                    came.append(head.partition(b" ")[0])
                    if came[-1] != b"GET":
                        break
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=serve, args=(listening,))
        server.start()
        with Nginx(SITE, tmp_path, listening.getsockname()[1]) as nginx:
            assert nginx.ask("GET", "/tools")[0] == 200
            # on the connection that is kept, and on a new one
            assert [nginx.ask("POST", "/tools", body=b"{}")[0] for _ in range(2)] == [503, 503]
        listening.shutdown(socket.SHUT_RDWR)
        server.join(5)
    assert came == [b"GET", b"POST", b"POST"]
