"""One limit for several processes: exactly so many runs, no key that stays, and a server that goes and comes back."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError, TimeoutError

from service import shared_limiter
from service.app import make_app
from service.config import Config
from service.errors import TooManyRuns, Unavailable
from service.limiter import Limit
from service.shared_limiter import SharedWindow, connections_to
from service.state import STATE
from tests.conftest import KEY_A, KEY_B, Client, Serve
from tests.support.command import done
from tests.support.database import migrated
from tests.support.http import Answer, answer, everything, make_agent
from tests.support.process import Service
from tests.support.storage import only_reads
from tests.support.store import Store, can_be_started

TASK = {"task": "Say hello", "model": "gpt-4o"}
UNREACHABLE, FALLBACK = "agent_platform_limiter_unreachable", "agent_platform_limiter_fallback_runs_total"
LOST, FOUND = "The shared limiter does not answer", "The shared limiter answers again"


@pytest.fixture(autouse=True)
def own_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shared_limiter, "PREFIX", f"agent-platform:test:{tmp_path}:{time.time_ns()}:")


@pytest.fixture
def shared(config: Config, store: str) -> Config:
    return replace(config, limiter=store)


@pytest.fixture
def server(store: str) -> Iterator["redis.Redis"]:
    """A client that looks at what the limiter keeps."""
    with redis.Redis.from_url(store, decode_responses=True) as client:
        yield client


@pytest.fixture
def own() -> Iterator[Store]:
    """A store that runs, and that the test may kill."""
    if not can_be_started():
        pytest.skip("A store that can be killed is wanted: install redis-server.")
    store = Store()
    store.start()
    yield store
    store.kill()


@pytest.fixture
async def window(store: str) -> AsyncIterator[SharedWindow]:
    window = SharedWindow(connections_to(store), 5, 60)
    yield window
    await window.close()


def keys(server: "redis.Redis") -> list[Any]:
    return list(server.scan_iter(f"{shared_limiter.PREFIX}*"))


async def run(client: Client, agent_id: int = 1, headers: dict[str, str] = KEY_A) -> Answer:
    return await answer(client, "POST", f"/agents/{agent_id}/run", headers, json=TASK)


async def several(serve: Serve, settings: Config, folder: Path, count: int = 3) -> list[Client]:
    """So many services on one store, each with a database and an agent of its own."""
    clients = [await serve(replace(settings, database=migrated(folder / f"{number}.db"))) for number in range(count)]
    for client in clients:
        await make_agent(client)
        await make_agent(client, key=KEY_B)
    return clients


async def measured(client: Client) -> dict[str, float]:
    """What /metrics says of the limiter, to whoever asks."""
    response = await client.get("/metrics")
    assert (response.status, response.content_type) == (200, "text/plain")
    samples = [each for family in text_string_to_metric_families(await response.text()) for each in family.samples]
    return {each.name: each.value for each in samples if each.name in (UNREACHABLE, FALLBACK)}


async def admitted_again(client: Client) -> None:
    """Waits until a run is admitted, for ten seconds at the most."""
    for _ in range(200):
        if (await run(client)).status == 200:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("It does not recover.")


def lines(caplog: pytest.LogCaptureFixture, beginning: str) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.getMessage().startswith(beginning)]


# Several processes


async def test_exactly_five_are_admitted_however_many_services_there_are(
    serve: Serve, shared: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # all of this is one process, which may have little of a busy machine
    monkeypatch.setattr(shared_limiter, "_PATIENCE", 20.0)
    clients = await several(serve, shared, tmp_path)
    for agent_id, key in ((1, KEY_A), (2, KEY_B)):
        answers = await asyncio.gather(*(run(client, agent_id, key) for client in clients for _ in range(20)))
        assert Counter(each.status for each in answers) == {200: 5, 429: 55}
        left = sorted(each.headers["RateLimit"].split(";")[1] for each in answers if each.status == 200)
        assert left == [f"r={number}" for number in range(5)]
        for each in answers:
            assert each.headers["RateLimit-Policy"] == '"run";q=5;w=60'
            if each.status == 429:
                wait = int(each.headers["Retry-After"])
                assert 58 <= wait <= 60
                assert each.headers["RateLimit"] == f'"run";r=0;t={wait}'
    totals = [(await client.json("GET", "/runs"))["total"] for client in clients]
    assert sum(totals) == 5


async def test_exactly_five_are_admitted_in_each_window(serve: Serve, shared: Config, tmp_path: Path) -> None:
    clients = await several(serve, replace(shared, rate_window=2), tmp_path)
    wait = 0
    for _ in range(2):
        # as long as the last one was told
        await asyncio.sleep(wait)
        answers = await asyncio.gather(*(run(client) for client in clients for _ in range(8)))
        assert Counter(each.status for each in answers) == {200: 5, 429: 19}
        wait = min(int(each.headers["Retry-After"]) for each in answers if each.status == 429)
        assert wait <= 2


def test_processes_of_their_own_share_one_limit(own: Store, tmp_path: Path) -> None:
    async def all_at_once(origins: list[str]) -> list[int]:
        async with aiohttp.ClientSession(headers=KEY_A) as session:

            async def post(url: str, body: Any) -> int:
                async with session.post(url, json=body) as response:
                    return response.status

            for origin in origins:
                assert await post(f"{origin}/agents", {"name": "a", "role": "b", "description": "c"}) == 201
            return await asyncio.gather(*(post(f"{origin}/agents/1/run", TASK) for origin in origins for _ in range(10)))

    options = ("--limiter", own.url.replace("redis://", "valkey://"))
    with Service(tmp_path / "one.db", *options) as one, Service(tmp_path / "two.db", *options) as two:
        assert Counter(asyncio.run(all_at_once([one.origin, two.origin]))) == {200: 5, 429: 15}
    assert LOST not in one.log.read_text()


# What the server keeps


async def test_no_key_is_without_an_expiry_and_each_is_gone_with_its_window(
    serve: Serve, shared: Config, server: "redis.Redis"
) -> None:
    client = await serve(replace(shared, rate_window=2))
    await make_agent(client)
    assert (await run(client, 7)).status == 404
    assert keys(server) == []
    seen = []
    for status in (200, 200, 200, 200, 200, 429):
        assert (await run(client)).status == status
        (key,) = keys(server)
        assert key == f"{shared_limiter.PREFIX}tenant_a"
        seen.append(server.pttl(key))
    assert 0 < min(seen) <= max(seen) <= 2_002
    assert seen == sorted(seen, reverse=True)
    await asyncio.sleep(2.1)
    assert keys(server) == []


async def test_a_run_that_is_taken_back_leaves_no_key_that_stays(window: SharedWindow, server: "redis.Redis") -> None:
    take_back = await window.quota("a").admit()
    await take_back()
    await take_back()
    (key,) = keys(server)
    assert server.hget(key, "used") == "0"
    assert 59_000 < server.pttl(key) <= 60_002
    server.delete(key)
    await take_back()
    assert keys(server) == []


async def test_a_clock_that_was_set_back_locks_nobody_out(window: SharedWindow, server: "redis.Redis") -> None:
    for _ in range(5):
        await window.quota("a").admit()
    (key,) = keys(server)
    server.hincrby(key, "ends", 3_600_000_000)
    quota = window.quota("a")
    await quota.admit()
    assert quota.headers()["RateLimit"] == '"run";r=4;t=60'


async def test_scripts_that_the_server_has_forgotten_are_sent_again(own: Store) -> None:
    window = SharedWindow(connections_to(own.url), 2, 60)
    with redis.Redis.from_url(own.url) as server:
        for ask in (window.quota("a").admit, window.quota("a").check, window.quota("a").admit):
            server.script_flush()
            await ask()
        server.script_flush()
        with pytest.raises(TooManyRuns):
            await window.quota("a").admit()
        assert server.hget(f"{shared_limiter.PREFIX}a", "used") == b"2"
    await window.close()


# What it says


async def test_each_request_says_what_it_was_told_and_not_what_another_was(window: SharedWindow) -> None:
    first, second = window.quota("a"), window.quota("a")
    assert first.headers() == {}
    await first.admit()
    await second.admit()
    await window.quota("b").admit()
    assert first.headers()["RateLimit"] == '"run";r=4;t=60'
    assert second.headers()["RateLimit"] == '"run";r=3;t=60'


async def test_what_was_told_grows_old(window: SharedWindow, monkeypatch: pytest.MonkeyPatch) -> None:
    quota = window.quota("a")
    await quota.admit()
    now = time.monotonic()
    for passed, said in ((30, "r=4;t=30"), (59.5, "r=4;t=1"), (61, "r=5;t=60")):
        monkeypatch.setattr(time, "monotonic", lambda passed=passed: now + passed)
        assert quota.headers()["RateLimit"] == f'"run";{said}'


async def test_a_lower_limit_than_was_counted_is_full(window: SharedWindow, store: str) -> None:
    for _ in range(3):
        await window.quota("a").admit()
    lower = SharedWindow(connections_to(store), 2, 60)
    quota = lower.quota("a")
    with pytest.raises(TooManyRuns):
        await quota.check()
    assert quota.headers()["RateLimit"] == '"run";r=0;t=60'
    await lower.close()


async def test_an_answer_that_is_given_again_says_what_is_left(serve: Serve, shared: Config, tmp_path: Path) -> None:
    one, two = await several(serve, shared, tmp_path, 2)
    once = {**KEY_A, "Idempotency-Key": "k"}
    first = await run(one, headers=once)
    await run(two)
    again = await run(one, headers=once)
    assert (first.json(), again.headers["Idempotency-Replayed"]) == (again.json(), "true")
    assert [each.headers["RateLimit"].split(";")[1] for each in (first, again)] == ["r=4", "r=3"]


async def test_a_run_that_could_not_be_stored_is_taken_back(serve: Serve, shared: Config) -> None:
    app = make_app(shared)
    client = await serve(app=app)
    await make_agent(client)
    async with only_reads(app, shared.database):
        failed = [await run(client) for _ in range(7)]
    assert {each.status for each in failed} == {503}
    assert {each.headers["RateLimit"].split(";")[1] for each in failed} == {"r=5"}
    assert [(await run(client)).status for _ in range(6)] == [200] * 5 + [429]


# A server that does not answer


async def test_while_the_server_is_away_runs_are_refused_and_the_rest_works(
    serve: Serve, config: Config, own: Store, caplog: pytest.LogCaptureFixture
) -> None:
    client = await serve(replace(config, limiter=own.url))
    await make_agent(client)
    assert (await run(client)).status == 200
    for _ in range(2):
        own.kill()
        caplog.clear()
        refused = [await run(client, headers={**KEY_A, **more}) for more in ({}, {}, {"Idempotency-Key": "k"}) for _ in "12"]
        for each in refused:
            assert (each.status, each.headers["Retry-After"]) == (503, "1")
            assert each.json()["type"] == "urn:agent-platform:problem:unavailable"
            assert "limit" in each.json()["detail"]
        await everything(client)
        await client.json("POST", "/tools", json={"name": f"tool {time.time_ns()}", "description": "A tool"})
        assert (await client.get("/ready")).status == 200
        assert len(lines(caplog, LOST)) == 1
        assert "refused" in lines(caplog, LOST)[0]

        own.start()
        await admitted_again(client)
        assert len(lines(caplog, FOUND)) == 1
        # it has forgotten what it had counted, and nothing else has been counted meanwhile
        assert [(await run(client)).status for _ in range(5)] == [200] * 4 + [429]


async def test_while_the_server_is_away_each_process_may_count_for_itself(
    serve: Serve, config: Config, own: Store, caplog: pytest.LogCaptureFixture
) -> None:
    client = await serve(replace(config, limiter=own.url, limiter_fallback="local"))
    await make_agent(client)
    assert [(await run(client)).status for _ in range(6)] == [200] * 5 + [429]
    assert await measured(client) == {UNREACHABLE: 0, FALLBACK: 0}
    own.kill()
    caplog.clear()
    answers = [await run(client) for _ in range(6)]
    assert [each.status for each in answers] == [200] * 5 + [429]
    assert [each.headers["RateLimit"].split(";")[1] for each in answers] == ["r=4", "r=3", "r=2", "r=1", "r=0", "r=0"]
    (lost,) = lines(caplog, LOST)
    assert "counted by this process alone" in lost
    assert await measured(client) == {UNREACHABLE: 1, FALLBACK: 5}
    own.start()
    await admitted_again(client)
    assert await measured(client) == {UNREACHABLE: 0, FALLBACK: 5}
    (found,) = [each for each in caplog.records if each.getMessage().startswith(FOUND)]
    assert found.levelno == logging.WARNING
    assert [(await run(client)).status for _ in range(5)] == [200] * 4 + [429]


async def test_a_service_starts_without_the_server_and_says_so(
    serve: Serve, config: Config, own: Store, caplog: pytest.LogCaptureFixture
) -> None:
    own.kill()
    client = await serve(replace(config, limiter=own.url.replace("redis://", "redis://:planted-c83f07a1@")))
    assert len(lines(caplog, LOST)) == 1
    assert (await client.get("/ready")).status == 200


async def test_a_server_that_keeps_silent_is_waited_for_once_a_second(
    serve: Serve, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    connections = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        began = time.monotonic()
        client = await serve(replace(config, limiter=f"redis://127.0.0.1:{port}"))
        assert time.monotonic() - began < 3
        await make_agent(client)
        began, answers = time.monotonic(), []
        while time.monotonic() - began < 2.5:
            answers += await asyncio.gather(*(run(client) for _ in range(5)))
            await asyncio.sleep(0.05)
        assert {each.status for each in answers} == {503}
        assert len(answers) > 20
        assert 2 <= connections <= 4
        assert len(lines(caplog, LOST)) == 1


async def test_a_check_is_asked_again_where_its_connection_breaks_and_a_run_is_not(
    serve: Serve, shared: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await serve(shared)
    await make_agent(client)
    read, breaks = AbstractConnection.read_response, {"look": 0, "admit": 0}
    sent: list[str] = []
    send = AbstractConnection.send_command

    async def note(self: AbstractConnection, *args: Any, **kwargs: Any) -> None:
        if args[0] == "EVALSHA":
            sent.append(args[4])
        await send(self, *args, **kwargs)

    async def breaking(self: AbstractConnection, *args: Any, **kwargs: Any) -> Any:
        told = await read(self, *args, **kwargs)
        if sent and breaks[sent[-1]]:
            breaks[sent[-1]] -= 1
            raise ConnectionError
        return told

    monkeypatch.setattr(AbstractConnection, "send_command", note)
    monkeypatch.setattr(AbstractConnection, "read_response", breaking)
    breaks["look"] = 1
    assert (await run(client)).headers["RateLimit"] == '"run";r=4;t=60'
    assert sent == ["look", "look", "admit"]
    sent.clear()
    breaks["admit"] = 1
    assert (await run(client)).status == 503
    # there was room a moment ago
    assert sent == ["admit"]


async def test_a_tenant_that_had_room_a_moment_ago_is_not_looked_at_first(
    window: SharedWindow, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ask = SharedWindow._ask

    async def noted(self: SharedWindow, tenant_id: str, limit: Limit, what: str, ends: int) -> Any:
        asked.append(f"{what} {tenant_id}")
        return await ask(self, tenant_id, limit, what, ends)

    monkeypatch.setattr(SharedWindow, "_ask", noted)

    async def one_run(tenant_id: str = "a") -> list[str]:
        asked.clear()
        quota = window.quota(tenant_id)
        with suppress(TooManyRuns):
            await quota.check()
            await quota.admit()
        return asked.copy()

    assert await one_run() == ["look a", "admit a"]
    assert await one_run() == ["admit a"]
    assert await one_run("b") == ["look b", "admit b"]
    # it is not taken for granted for long
    monotonic = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + shared_limiter._FRESH)
    assert await one_run() == ["look a", "admit a"]
    assert list(window._told) == ["a"]
    # another process uses up the rest: this one finds out as it counts, and looks from then on
    other = SharedWindow(connections_to(store), 5, 60)
    for _ in range(2):
        await other.quota("a").admit()
    await other.close()
    assert await one_run() == ["admit a"]
    assert await one_run() == ["look a"]


async def test_more_requests_than_connections_wait_for_each_other(
    serve: Serve, shared: Config, server: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_limiter, "_CONNECTIONS", 3)
    client = await serve(shared)
    await make_agent(client)
    answers = await asyncio.gather(*(run(client) for _ in range(60)))
    assert Counter(each.status for each in answers) == {200: 5, 429: 55}
    limiter: Any = client.app[STATE].limiter
    assert 1 <= len(limiter._idle) <= 3


@pytest.mark.parametrize("error", [ConnectionError, TimeoutError, OSError, redis.exceptions.ReadOnlyError])
async def test_whatever_the_driver_raises_is_unavailable(
    error: type[Exception], window: SharedWindow, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(shared_limiter, "_call", fail)
    for ask in (window.quota("a").look, window.quota("b").check, window.quota("c").admit):
        with pytest.raises(Unavailable) as refused:
            await ask()
        assert refused.value.headers == {"Retry-After": "1"}
        window._left_alone_until = 0


async def test_a_run_that_cannot_be_taken_back_hides_no_other_failure(
    window: SharedWindow, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_back = await window.quota("a").admit()

    async def fail(*_: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(shared_limiter, "_call", fail)
    await take_back()


async def test_a_tenants_own_limit_holds_here_too(serve: Serve, shared: Config) -> None:
    client = await serve(shared)
    agent = await make_agent(client)
    options = ("--database", str(shared.database))

    async def given(runs: int) -> list[int]:
        """What as many runs are answered with as there have not been, and one more, under a limit of so many."""
        done("tenants", "limit", "tenant_a", "--runs", str(runs), *options)
        client.app[STATE].authenticator._found.clear()
        return [(await run(client)).status for _ in range(8)]

    assert agent["id"] == 1
    assert await given(7) == [200] * 7 + [429]
    # those that have been count
    assert await given(9) == [200] * 2 + [429] * 6
