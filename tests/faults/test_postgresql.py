"""The database restarts, dies, is used up or fails over: 503 meanwhile, nothing lost or done twice, and then all is well."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import aiohttp
import psycopg
import pytest

from tests.conftest import KEY_A, KEY_B
from tests.support.cluster import HOW_TO_RUN, Cluster, can_be_started, cluster
from tests.support.contract import Contract
from tests.support.http import AGENT, TOOL
from tests.support.load import Load, load
from tests.support.process import Service
from tests.support.proxy import proxy
from tests.support.storage import cut_off, held_writes, rows

pytestmark = pytest.mark.skipif(not can_be_started(), reason=HOW_TO_RUN)

TASK = {"task": "Say hello", "model": "gpt-4o"}


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with cluster() as started:
        yield started


@pytest.fixture(scope="module")
def shared(server: Cluster) -> Iterator[Service]:
    """The service that all tests here share, whatever they do to its database."""
    with Service(server.create(), "--rate-limit", "1000000", "--log-level", "warning") as started:
        yield started


@pytest.fixture
def service(server: Cluster, shared: Service) -> Iterator[Service]:
    """A service on an empty database of this server, which is still the same process when the test is over."""
    server.empty(url_of(shared))
    yield shared
    assert shared.process.poll() is None
    # what the database does is no defect of ours
    assert "the request failed" not in shared.log.read_text()


def url_of(service: Service) -> str:
    assert isinstance(service.database, str)
    return service.database


@asynccontextmanager
async def under_load(service: Service, contract: Contract) -> AsyncIterator[Load]:
    """Clients that write and read; behind the block, all that they were told is true."""
    async with load(service.origin, contract) as clients:
        await clients.has_written(30)
        yield clients
        await clients.has_written(30)
    clients.check(url_of(service))


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_restart_of_the_database_is_503_meanwhile(
    server: Cluster, service: Service, contract: Contract, mode: str
) -> None:
    async with under_load(service, contract) as clients:
        began = time.monotonic()
        await asyncio.to_thread(server.stop, mode)
        await clients.has_seen(503, began)
        await asyncio.to_thread(server.start)
        await clients.is_well(time.monotonic())


async def test_a_database_that_was_killed_and_comes_back_has_all_that_was_acknowledged(
    server: Cluster, service: Service, contract: Contract
) -> None:
    async with under_load(service, contract) as clients:
        began = time.monotonic()
        server.kill()
        await clients.has_seen(503, began)
        await asyncio.to_thread(server.start)
        await clients.is_well(time.monotonic())


async def test_connections_that_are_cut_again_and_again_take_nothing_but_what_was_under_way(
    service: Service, contract: Contract
) -> None:
    async with under_load(service, contract) as clients:
        cut = 0
        for _ in range(40):
            cut += await asyncio.to_thread(cut_off, url_of(service), "xact_start is not null")
            await asyncio.sleep(0.02)
        assert cut > 10
        await clients.is_well(time.monotonic())
        for _ in range(10):
            await asyncio.to_thread(cut_off, url_of(service))
            await asyncio.sleep(0.05)
        await clients.is_well(time.monotonic())


async def test_a_write_that_is_cut_off_while_it_waits_is_not_done_and_its_retry_does_it(service: Service) -> None:
    url, key = url_of(service), KEY_A | {"Idempotency-Key": "once"}
    async with aiohttp.ClientSession(service.origin, headers=KEY_A) as session:
        (await session.post("/agents", json=AGENT)).release()
        for method, path, body, more in (("POST", "/agents/1/run", TASK, key), ("POST", "/tools", TOOL, KEY_A)):
            with held_writes(url):
                writing = asyncio.create_task(session.request(method, path, json=body, headers=more))
                await has(url, "wait_event = 'advisory'")
                # what is read meanwhile is not held up, and not cut off either
                assert (await session.get("/agents")).status == 200
                assert cut_off(url, "wait_event = 'advisory'") == 1
                response = await writing
                assert (response.status, response.headers["Retry-After"].isdecimal()) == (503, True)
        assert rows(url, "select (select count(*) from runs) + (select count(*) from tools)") == [(0,)]
        first, again = [await session.post("/agents/1/run", json=TASK, headers=key) for _ in range(2)]
        assert (first.status, first.headers.get("Idempotency-Replayed")) == (200, None)
        assert (again.status, again.headers["Idempotency-Replayed"]) == (200, "true")
        assert rows(url, "select count(*) from runs") == [(1,)]


async def test_a_write_that_is_cut_off_in_its_middle_leaves_nothing_of_it(service: Service) -> None:
    url = url_of(service)
    async with aiohttp.ClientSession(service.origin, headers=KEY_A) as session:
        (await session.post("/tools", json=TOOL)).release()
        agent = {**AGENT, "tool_ids": [1]}
        with psycopg.connect(url) as other:
            # the agent is there already when its link has to wait for the tool
            other.execute("select id from tools for update")
            writing = asyncio.create_task(session.post("/agents", json=agent))
            await has(url, "wait_event_type = 'Lock'")
            assert cut_off(url, "wait_event_type = 'Lock'") == 1
            assert (await writing).status == 503
        for table in ("agent_ids", "agents", "agent_tools"):
            assert rows(url, f"select count(*) from {table}") == [(0,)]
        made = await session.post("/agents", json=agent)
        assert (made.status, (await made.json())["tool_ids"]) == (201, [1])


async def test_a_commit_whose_answer_is_lost_is_not_done_again_by_the_retry(server: Cluster, service: Service) -> None:
    """A primary that waits for a standby which is gone: it has committed, and its client does not learn of it."""
    url, key = url_of(service), KEY_A | {"Idempotency-Key": "once"}
    async with aiohttp.ClientSession(service.origin, headers=KEY_A) as session:
        (await session.post("/agents", json=AGENT)).release()
        server.set(synchronous_standby_names="'nobody'")
        try:
            # the server takes it over a moment later
            await asyncio.sleep(0.3)
            writing = asyncio.create_task(session.post("/agents/1/run", json=TASK, headers=key))
            await has(url, "wait_event = 'SyncRep'")
            cut_off(url, "wait_event = 'SyncRep'")
            lost = await writing
        finally:
            server.set()
        assert lost.status == 503
        again = await session.post("/agents/1/run", json=TASK, headers=key)
        assert (again.status, again.headers.get("Idempotency-Replayed")) == (200, "true")
        assert (await again.json())["id"] == 1
        assert rows(url, "select count(*), (select count(*) from kept_answers) from runs") == [(1, 1)]


async def test_connections_that_others_use_up_are_503_until_there_are_some_again(
    server: Cluster, service: Service, contract: Contract
) -> None:
    async with under_load(service, contract) as clients:
        began = time.monotonic()
        using = server.used_up(url_of(service))
        await asyncio.to_thread(using.__enter__)
        try:
            await clients.has_seen(503, began)
            await asyncio.sleep(0.5)
            async with aiohttp.ClientSession(service.origin) as session:
                assert (await session.get("/health")).status == 200
                assert (await session.get("/ready")).status == 503
        finally:
            await asyncio.to_thread(using.__exit__, None, None, None)
        await clients.is_well(time.monotonic())


async def test_a_server_that_became_a_standby_is_read_and_refuses_writes_until_there_is_a_primary(
    server: Cluster, service: Service, contract: Contract
) -> None:
    url = url_of(service)
    async with under_load(service, contract) as clients:
        for _ in range(2):
            server.set(default_transaction_read_only="on")
            cut_off(url)
            began = time.monotonic()
            await clients.has_seen(503, began)
            await clients.has_seen(200, began)
            server.set()
            cut_off(url)
            await clients.is_well(time.monotonic())


async def test_a_database_that_hangs_is_503_in_time_and_well_when_it_goes_on(
    server: Cluster, service: Service, contract: Contract
) -> None:
    async with under_load(service, contract) as clients:
        began = time.monotonic()
        hanging = await asyncio.to_thread(server.backends, url_of(service))
        try:
            for pid in hanging:
                os.kill(pid, signal.SIGSTOP)
            await clients.has_seen(503, began)
            async with aiohttp.ClientSession(service.origin) as session:
                assert (await session.get("/health")).status == 200
        finally:
            for pid in hanging:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        await clients.is_well(time.monotonic())


async def test_connections_that_fall_silent_in_a_failover_are_made_anew_all_at_once(
    server: Cluster, contract: Contract
) -> None:
    url = server.create()
    async with proxy(server.port) as way:
        through = url.replace(f":{server.port}/", f":{way.port}/")
        service = Service(through, "--rate-limit", "1000000")
        # the way to the database is in this loop
        await asyncio.to_thread(service.__enter__)
        try:
            async with aiohttp.ClientSession(service.origin) as session:

                async def ask(key: dict[str, str]) -> int:
                    async with session.get("/agents", headers=key) as response:
                        return response.status

                # so many at once, that there are several connections
                assert set(await asyncio.gather(*(ask(key) for key in 30 * [KEY_A, KEY_B]))) == {200}
                assert way.fall_silent() >= 2
                # the new primary is there at once, and nobody says that the old one is gone
                began = time.monotonic()
                assert await ask(KEY_A) == 503
                assert {await ask(key) for key in 5 * [KEY_A, KEY_B]} == {200}
                assert time.monotonic() < began + 5
                async with load(service.origin, contract) as clients:
                    await clients.has_written(30)
                    way.fall_silent()
                    await clients.is_well(time.monotonic())
        finally:
            await asyncio.to_thread(service.__exit__, None, None, None)
    clients.check(url)


async def has(url: str, which: str) -> None:
    """Waits until one of the service's connections is so in pg_stat_activity."""
    async with asyncio.timeout(5):
        while not rows(url, f"select pid from pg_stat_activity where application_name = 'agent-platform' and {which}"):  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.01)
