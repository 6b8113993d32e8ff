"""The command line, in processes of its own: what it prints, how it ends, and what it refuses."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest

from service import __version__
from service.__main__ import cli
from tests.support.command import COMMAND, agent_platform, create_key, done, refusal, status
from tests.support.database import migrated
from tests.support.pace import slowness
from tests.support.process import Service, clean_environment
from tests.support.storage import held_writes


@contextmanager
def running(*services: Service) -> Iterator[Sequence[Service]]:
    """Services that start side by side."""
    with ExitStack() as stack:
        yield [stack.enter_context(service) for service in services]


def everything_said(service: Service) -> list[str]:
    """The lines that a service which has ended announced."""
    return [*service.announced, *service.process.stdout.read().decode().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a command makes by default, it makes in a folder that goes away."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    """A migrated database with the tenant acme, which no server holds."""
    file = migrated(folder / "cli.db")
    done("tenants", "create", "acme", "--database", str(file))
    return file


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    """A server with the settings that `serve` has by default, but for its port and database."""
    with Service(folder / "served.db") as service:
        done("tenants", "create", "acme", "--database", str(service.database))
        yield service


def test_without_an_option_the_database_is_in_the_current_folder(tmp_path: Path) -> None:
    done("migrate")
    assert (tmp_path / "agent-platform.db").exists()


def test_the_version_and_the_help_are_told() -> None:
    assert done("--version") == f"agent-platform, version {__version__}\n"
    assert done("serve", "--help") == done("serve", "-h")
    assert "AGENT_PLATFORM_RATE_LIMIT" in done("serve", "--help")


@pytest.mark.parametrize(("device", "code"), [("/dev/full", 1), (None, 1)], ids=["full", "nobody reads"])
def test_output_that_can_not_be_written_is_one_line_at_the_most(device: str | None, code: int) -> None:
    command = [*COMMAND, "monitoring", "dashboard"]
    if device is None:
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(device, os.O_WRONLY)
    ended = subprocess.run(command, env=clean_environment(), stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    said = "" if device is None else "agent-platform: Standard output can't be written: No space left on device.\n"
    assert (ended.returncode, ended.stderr) == (code, said)


@pytest.mark.parametrize(
    "group", [(), ("tenants",), ("keys",), ("runs",), ("monitoring",)], ids=lambda group: " ".join(group) or "no command"
)
def test_a_group_without_a_command_shows_its_help(group: tuple[str, ...]) -> None:
    ended = agent_platform(*group)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(" ".join(["Usage: agent-platform", *group, "[OPTIONS] COMMAND [ARGS]...\n\n"]))


WRONG = {
    "a port that is no number": (["serve", "--port", "http"], "'--port'"),
    "a port too high": (["serve", "--port", "65536"], "'--port'"),
    "a rate limit of 0": (["serve", "--rate-limit", "0"], "'--rate-limit'"),
    "a rate window of 0": (["serve", "--rate-window", "0"], "'--rate-window'"),
    "a log level that is none": (["serve", "--log-level", "loud"], "'--log-level'"),
    "a log format that is none": (["serve", "--log-format", "xml"], "'--log-format'"),
    "a metrics port too high": (["serve", "--metrics-port", "65536"], "'--metrics-port'"),
    "a limiter that is none": (["serve", "--limiter", "remote"], "'--limiter'"),
    "a limiter of another kind": (["serve", "--limiter", "http://127.0.0.1/0"], "redis://HOST"),
    "a limiter on a host that can't be": (["serve", "--limiter", f"redis://{'x' * 64}.de"], "'--limiter'"),
    "a limiter without a host": (["serve", "--limiter", "redis://"], "redis://HOST"),
    "a limiter with a port too high": (["serve", "--limiter", "redis://127.0.0.1:70000"], "'--limiter'"),
    "a limiter with a database that is no number": (["serve", "--limiter", "redis://127.0.0.1/runs"], "'--limiter'"),
    "a limiter with a setting that is none": (["serve", "--limiter", "redis://127.0.0.1/?colour=red"], "'--limiter'"),
    "a fallback that is none": (["serve", "--limiter-fallback", "allow"], "'--limiter-fallback'"),
    "a proxy that is a name": (["serve", "--trusted-proxy", "localhost"], "'--trusted-proxy'"),
    "a proxy without an address": (["serve", "--trusted-proxy", " , "], "'--trusted-proxy'"),
    "a proxy with a port": (["serve", "--trusted-proxy", "10.0.0.1:80"], "'--trusted-proxy'"),
    "a network that begins in its middle": (["serve", "--trusted-proxy", "10.0.0.1/8"], "'--trusted-proxy'"),
    "one proxy of several that is none": (["serve", "--trusted-proxy", "10.0.0.1,10.0.0"], "'--trusted-proxy'"),
    "everybody as a proxy": (["serve", "--trusted-proxy", "0.0.0.0/0"], "'--trusted-proxy'"),
    "a time that is none to keep runs for": (["serve", "--keep-runs", "90"], "'--keep-runs'"),
    "an option that serve does not have": (["serve", "--frobnicate"], "'--frobnicate'"),
    "an option without its value": (["serve", "--port"], "'--port'"),
    "a surplus argument": (["migrate", "now"], "now"),
    "a folder that is not there": (["migrate", "--database", "nowhere/x.db"], "nowhere' does not exist"),
    "a folder for a file": (["serve", "--database", "."], "is no file"),
    "a database in memory": (["serve", "--database", ":memory:"], "is a file"),
    "a server without a database": (["migrate", "--database", "postgresql://127.0.0.1:1/"], "it names no database"),
    "a database without a name": (["migrate", "--database", ""], "'--database'"),
    "a home that is nobody's": (["migrate", "--database", "~nobody-at-all/x.db"], "'--database'"),
    "a file name too long": (["migrate", "--database", "x" * 300], "'--database'"),
    "a tenant without an id": (["tenants", "create", ""], "tenant's id"),
    "a tenant's id with a blank": (["tenants", "create", "a b"], "tenant's id"),
    "a tenant's id with a sign first": (["tenants", "create", "_a"], "tenant's id"),
    "a tenant's id too long": (["tenants", "create", "x" * 65], "tenant's id"),
    "a tenant's id with a line end": (["tenants", "create", "acme\n"], "tenant's id"),
    "an argument that is missing": (["tenants", "create"], "'ID'"),
    "a key of no tenant": (["keys", "create"], "'--tenant'"),
    "a tenant with line ends": (["keys", "list", "--tenant", "a\nb\nc"], "a tenant's id is"),
    "a tenant that is no text": (["keys", "list", "--tenant", os.fsdecode(b"\xff")], "a tenant's id is"),
    "a label without a character": (["keys", "create", "--tenant", "acme", "--label", ""], "label"),
    "a label too long": (["keys", "create", "--tenant", "acme", "--label", "x" * 101], "label"),
    "a label of two lines": (["keys", "create", "--tenant", "acme", "--label", "a\nb"], "label"),
    "a key's id of 0": (["keys", "revoke", "0"], "KEY_ID"),
    "a key's id that is no number": (["keys", "revoke", "mk_abc"], "KEY_ID"),
    "a key's id in other words": (["keys", "revoke", "1_0"], "KEY_ID"),
    "a key's id too high": (["keys", "revoke", str(2**53)], "KEY_ID"),
    "monitoring that there is none of": (["monitoring", "graphs"], "'graphs'"),
    "a command that is none": (["frobnicate"], "'frobnicate'"),
}


@pytest.mark.parametrize(("arguments", "names"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_is_one_line_that_names_it(arguments: list[str], names: str, file: Path) -> None:
    before = file.read_bytes()
    assert names in refusal(2, *arguments, AGENT_PLATFORM_DATABASE=str(file))
    assert file.read_bytes() == before
    assert not any(Path().iterdir())


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "http"),
        ("RATE_LIMIT", "0"),
        ("RATE_WINDOW", "1.5"),
        ("DEMO", "perhaps"),
        ("LOG_LEVEL", "loud"),
        ("LIMITER", "remote"),
        ("LIMITER_FALLBACK", "allow"),
        ("TRUSTED_PROXY", "10.0.0.1 proxy"),
        ("DATABASE", ":memory:"),
        ("DATABASE", "nowhere/x.db"),
    ],
)
def test_a_wrong_value_in_the_environment_is_one_line_that_names_it(variable: str, value: str) -> None:
    name = f"AGENT_PLATFORM_{variable}"
    assert name in refusal(2, "serve", **{name: value})


def test_a_wrong_limiter_is_not_repeated_for_it_may_hold_a_password() -> None:
    for value in (
        "redis://:hunter2@127.0.0.1:x",
        "redis://:hunter2@127.0.0.1/x",
        "redis://:hunter2@/0",
        "http://:hunter2@x",
    ):
        assert "hunter2" not in refusal(2, "serve", "--limiter", value)


def test_a_shared_limiter_without_its_driver_is_one_line_that_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "redis.py").write_text("raise ImportError")
    path = f"{tmp_path}{os.pathsep}{clean_environment()['PYTHONPATH']}"
    said = refusal(2, "serve", "--limiter", "redis://127.0.0.1", PYTHONPATH=path)
    assert "pip install 'agent-platform[redis]'" in said


def options(command: click.Command) -> Iterator[click.Option]:
    """Every option of a command and of those below it, but --help and --version, which set nothing."""
    if isinstance(command, click.Group):
        for below in command.commands.values():
            yield from options(below)
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name not in ("help", "version"):
            yield parameter


def test_every_option_reads_a_variable_of_its_name_and_says_so() -> None:
    found = {option.name: option for option in options(cli)}
    # what is said of one call and not of a service
    of_one_call = {"source", "target", "resume", "print_distribution", "overwrite", "replace", "form"}
    of_one_call |= {"expires_in", "scopes", "overlap", "runs", "window", "usual", "tenant_id", "keep_ids", "confirm"}
    of_one_call |= {"older_than", "dry_run", "vacuum"}
    assert found.keys() == of_one_call | {
        *("host", "port", "database", "workers", "rate_limit", "rate_window", "demo", "log_level", "log_format"),
        *("wrong_key_limit", "concurrency", "request_timeout", "limiter", "limiter_fallback", "metrics_port"),
        *("trusted_proxy", "keep_runs"),
        *("tenant", "label"),
    }
    assert [found[name].envvar for name in of_one_call] == [None] * len(of_one_call)
    for option in (found[name] for name in found.keys() - of_one_call):
        assert option.envvar == f"AGENT_PLATFORM_{(option.name or '').upper()}"
        assert option.show_envvar


def test_serve_takes_its_options_from_the_environment(tmp_path: Path) -> None:
    variables = {
        "HOST": "0.0.0.0",
        "PORT": "0",
        "DATABASE": str(tmp_path / "env.db"),
        "RATE_LIMIT": "3",
        "RATE_WINDOW": "7",
        "DEMO": "1",
        "LOG_LEVEL": "error",
    }
    environment = clean_environment(**{f"AGENT_PLATFORM_{name}": value for name, value in variables.items()})
    with subprocess.Popen(
        [*COMMAND, "serve"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            found = re.search(r"(http://0\.0\.0\.0:\d+)$", process.stdout.readline().strip())
            assert found is not None
            origin = found[1]
            assert policy(origin) == '"run";q=3;w=7'
            process.terminate()
            assert process.wait(5) == 0
            said, logged = process.stdout.read(), process.stderr.read()
        finally:
            process.kill()
    assert f"Database: {tmp_path / 'env.db'}\n" in said
    assert "Demo keys" in said
    assert logged == ""


def policy(origin: str) -> str | None:
    """The RateLimit-Policy of a server, which it tells with the answer to a run."""
    with closing(HTTPConnection("127.0.0.1", urlsplit(origin).port, timeout=5)) as connection:
        agent = {"name": "Ann", "role": "assistant", "description": "Helps."}
        for path, body in (("/agents", agent), ("/agents/1/run", {"task": "Hello.", "model": "gpt-4o"})):
            headers = {"X-API-Key": "key_tenant_a", "Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            response.read()
        return response.headers["RateLimit-Policy"]


@pytest.mark.parametrize("command", [("migrate",), ("tenants", "list")], ids=" ".join)
def test_a_file_that_is_no_database_is_refused_as_it_is(command: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "letter.txt"
    file.write_bytes(b"Dear Ann, " * 1_000)
    assert "letter.txt can't be read as a database" in refusal(1, *command, "--database", str(file))
    assert file.read_bytes() == b"Dear Ann, " * 1_000


def test_a_command_on_a_database_that_is_not_there_says_what_makes_one(tmp_path: Path) -> None:
    said = refusal(1, "tenants", "list", "--database", str(tmp_path / "none.db"))
    assert said == f"There is no database {tmp_path / 'none.db'}; `agent-platform migrate` or `serve` makes it."
    assert not any(tmp_path.iterdir())


def test_a_second_server_on_the_same_file_is_refused(service: Service, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(service.database)
    for command, name in (("serve", service.database), ("serve", link), ("migrate", service.database)):
        assert refusal(1, command, AGENT_PLATFORM_DATABASE=str(name), AGENT_PLATFORM_PORT="0") == (
            f"The database {service.database} is in use by another server, or by a command that changes it. "
            "One process serves one file: stop the other one, or choose another --database."
        )
    assert status(service.origin, "/ready") == 200


def test_a_port_that_is_taken_is_refused_in_one_line(service: Service, tmp_path: Path) -> None:
    port = str(urlsplit(service.origin).port)
    said = refusal(1, "serve", "--port", port, "--database", str(tmp_path / "other.db"))
    assert port in said
    assert "address already in use" in said


def test_a_key_is_in_no_log(service: Service) -> None:
    key, _ = create_key(service.database)
    assert status(service.origin, "/whoami", key) == 200
    assert status(service.origin, f"/whoami?{key}", key) == 400
    assert key not in service.log.read_text().replace(f"/whoami?{key}", "")


def test_demo_keys_are_for_the_loopback_address_unless_told_otherwise(service: Service, tmp_path: Path) -> None:
    with running(
        Service(tmp_path / "1.db", "--host", "127.0.0.1", "--no-demo"),
        Service(tmp_path / "2.db", "--host", "0.0.0.0"),
        Service(tmp_path / "3.db", "--host", "0.0.0.0", "--demo"),
    ) as others:
        for key in ("key_tenant_a", "key_tenant_b"):
            answers = [status(each.origin, "/whoami", key) for each in (service, *others)]
            assert answers == [200, 401, 401, 200]
        for each in others:
            each.process.terminate()
        assert [each.process.wait(5) for each in others] == [0, 0, 0]
        told = ["Demo keys, for this try only: key_tenant_a and key_tenant_b"]
        assert [everything_said(each)[3:] for each in others] == [[], [], told]
    assert done("tenants", "list", "--database", str(others[0].database)).splitlines()[1:] == []


def test_serve_says_where_it_listens_where_the_documentation_is_and_which_database_it_uses(tmp_path: Path) -> None:
    with Service(tmp_path / "told.db") as service:
        origin = service.origin
        assert status(origin, "/health") == 200
        assert [status(origin, path) for path in ("/docs", "/redoc")] == [200, 200]
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(5) == 0
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", origin)
        assert everything_said(service) == [
            f"Agent Platform {__version__} listens on {origin}",
            f"Documentation: {origin}/docs and {origin}/redoc",
            f"Database: {tmp_path / 'told.db'}",
            "Demo keys, for this try only: key_tenant_a and key_tenant_b",
        ]


HEAD = b"""POST /tools HTTP/1.1\r
Host: x\r
X-API-Key: key_tenant_a\r
Content-Type: application/json\r
Content-Length: 40\r
\r
"""
BODY = b'{"name": "late", "description": "Sent."}'


@contextmanager
def connected(service: Service, *sent: bytes) -> Iterator[socket.socket]:
    """A connection that has sent so much."""
    with socket.create_connection(("127.0.0.1", urlsplit(service.origin).port), timeout=5) as connection:
        connection.sendall(b"".join(sent))
        yield connection


def test_a_signal_ends_the_server_within_five_seconds_whatever_is_open(tmp_path: Path) -> None:
    with running(Service(tmp_path / "term.db"), Service(tmp_path / "int.db")) as services, ExitStack() as stack:
        for service in services:
            idle = stack.enter_context(connected(service, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"))
            assert idle.recv(100).startswith(b"HTTP/1.1 200")
            for sent in (b"", b"GET /health HTTP/1.1\r\nHos", HEAD, HEAD + BODY[:20]):
                stack.enter_context(connected(service, sent))
            assert status(service.origin, "/health") == 200
        began = time.monotonic()
        for service, number in zip(services, (signal.SIGTERM, signal.SIGINT), strict=True):
            service.process.send_signal(number)
        assert [service.process.wait(10) for service in services] == [0, 0]
        assert time.monotonic() - began < 5 * slowness()
        assert ["Traceback" in service.log.read_text() for service in services] == [False, False]


def test_a_request_that_waits_for_the_storage_is_answered_before_the_server_ends(database: Path | str) -> None:
    with Service(database) as service, ExitStack() as others:
        assert status(service.origin, "/whoami", "key_tenant_a") == 200
        others.enter_context(held_writes(database))
        with connected(service, HEAD, BODY) as connection:
            assert status(service.origin, "/health") == 200
            service.process.terminate()
            time.sleep(0.3)
            assert service.process.poll() is None
            others.close()
            assert connection.recv(100).startswith(b"HTTP/1.1 201")
        assert service.process.wait(5) == 0


def test_a_request_whose_body_is_still_coming_is_answered_before_the_server_ends(tmp_path: Path) -> None:
    with Service(tmp_path / "slow.db") as service, connected(service, HEAD, BODY[:20]) as connection:
        # the key of the one that is under way is looked up meanwhile
        assert status(service.origin, "/whoami", "key_tenant_a") == 200
        service.process.terminate()
        time.sleep(0.3)
        connection.sendall(BODY[20:])
        assert connection.recv(100).startswith(b"HTTP/1.1 201")
        assert service.process.wait(5) == 0
