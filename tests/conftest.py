"""Fixtures: a fresh service for each test, and a client that holds every answer against openapi.yaml."""

import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from service.app import make_app
from service.config import Config
from service.server import Runner
from tests.support import postgresql
from tests.support.contract import Contract
from tests.support.database import migrated
from tests.support.reading import read_once
from tests.support.secrets import LeakFinder
from tests.support.store import store_url

KEY_A = {"X-API-Key": "key_tenant_a"}
KEY_B = {"X-API-Key": "key_tenant_b"}


class Server(TestServer):
    """aiohttp's test server, run by the runner that `serve` uses."""

    async def _make_runner(self, **kwargs: Any) -> Runner:
        return Runner(self.app, access_log=None, **kwargs)


class Client(TestClient):
    """aiohttp's test client; an answer that openapi.yaml does not describe fails the test that gets it."""

    def __init__(self, server: Server, contract: Contract) -> None:
        super().__init__(server)
        self._contract = contract

    async def _request(self, method: str, path: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("allow_redirects", False)
        response = await super()._request(method, path, **kwargs)
        self._contract.check(method, response.url.raw_path, response.status, response.headers, await response.read())
        return response

    async def json(self, method: str, path: str, key: dict[str, str] = KEY_A, **kwargs: Any) -> Any:
        """Sends a request that must succeed; gives the answer's body."""
        response = await self.request(method, path, headers=key, **kwargs)
        body = await response.read()
        assert response.status < 300, body
        return json.loads(body) if body else None


@pytest.fixture(scope="session", autouse=True)
def leaks() -> Iterator[LeakFinder]:
    """Searches what the whole suite logs, at every level, for keys, bodies and prompts; a find fails the run at its end."""
    finder, root = LeakFinder(), logging.getLogger()
    level = root.level
    root.addHandler(finder)
    root.setLevel(logging.DEBUG)
    # one notes each call twice, the other the whole spec at each start, which would be half of the suite's time;
    # test_logs.py hears them out
    for library in ("aiosqlite", "connexion"):
        logging.getLogger(library).setLevel(logging.INFO)
    yield finder
    root.removeHandler(finder)
    root.setLevel(level)
    assert finder.found == []


@pytest.fixture(scope="session", autouse=True)
def files_are_read_once() -> Iterator[None]:
    """As a thousand applications are made."""
    with pytest.MonkeyPatch.context() as patch:
        read_once(patch.setattr)
        yield


@pytest.fixture(scope="session")
def contract() -> Contract:
    return Contract()


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: many tests wait for something."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test of a service runs on both engines, but for those that are marked as about the embedded one."""
    away = pytest.mark.skipif(postgresql.server() is None, reason=postgresql.HOW_TO_RUN)
    if "shared_database" in metafunc.fixturenames:
        metafunc.definition.add_marker(away)
    if "engine" not in metafunc.fixturenames:
        return
    engines = [pytest.param("sqlite")]
    if metafunc.definition.get_closest_marker("embedded") is None:
        engines.append(pytest.param("postgresql", marks=away))
    metafunc.parametrize("engine", engines)


@pytest.fixture
def database(engine: str, tmp_path: Path) -> Path | str:
    """A migrated, empty database: a file, or a URL."""
    return migrated(tmp_path / "test.db") if engine == "sqlite" else postgresql.emptied()


@pytest.fixture
def shared_database() -> str:
    """The URL of a migrated, empty database that several processes can share."""
    return postgresql.emptied()


@pytest.fixture
def config(database: Path | str) -> Config:
    return Config(database=database)


@pytest.fixture(scope="session")
def store() -> Iterator[str]:
    """The URL of a Redis or Valkey server: AGENT_PLATFORM_TEST_LIMITER, the one on this machine, or one that is started."""
    with store_url() as url:
        if url is None:
            pytest.skip("No Redis or Valkey server: install redis-server, or name one in AGENT_PLATFORM_TEST_LIMITER.")
        yield url


@pytest.fixture(params=["local", "shared"])
def limiter_option(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A value of `--limiter`: each test runs with both kinds, and counts under keys of its own."""
    monkeypatch.setattr("service.shared_limiter.PREFIX", f"agent-platform:test:{uuid4()}:")
    return "local" if request.param == "local" else request.getfixturevalue("store")


Serve = Callable[..., Awaitable[Client]]


@pytest.fixture
async def serve(config: Config, contract: Contract) -> AsyncIterator[Serve]:
    """Starts a service, of the test's own configuration or application, and gives its client."""
    clients: list[Client] = []

    async def start(settings: Config | None = None, app: web.Application | None = None, **parts: Any) -> Client:
        client = Client(Server(app or make_app(settings or config, **parts)), contract)
        clients.append(client)
        await client.start_server()
        return client

    yield start
    for client in clients:
        await client.close()


@pytest.fixture
async def client(serve: Serve) -> Client:
    return await serve()
