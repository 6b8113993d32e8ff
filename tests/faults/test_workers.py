"""Several processes on one port: what dies is replaced, a stop drains, a reload refuses nobody, and none is left behind."""

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import pytest

from service.resources import resource
from service.storage.migrations import known_migrations
from tests.conftest import KEY_A
from tests.support.cluster import HOW_TO_RUN, Cluster, can_be_started, cluster
from tests.support.command import agent_platform
from tests.support.contract import Contract
from tests.support.http import AGENT
from tests.support.load import load
from tests.support.pace import slowness
from tests.support.storage import rows
from tests.support.store import Store
from tests.support.workers import BURST, Group, serve_command

pytestmark = pytest.mark.skipif(not can_be_started(), reason=HOW_TO_RUN)

# so many, that one of them can be gone while there is another
WORKERS = 2
RUN = {"task": "Say hello", "model": "gpt-4o"}
BEGINS_IN_VAIN = "A worker can't begin"
Start = Callable[..., Group]


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with cluster() as started:
        yield started


@pytest.fixture
def database(server: Cluster) -> str:
    """Empty, not even migrated."""
    return server.create()


@pytest.fixture
def start(database: str, store: str, tmp_path: Path) -> Iterator[Start]:
    """Starts so many workers on the database; with a file, their model waits for as long as that is there, and each is
    born after so many seconds."""
    with ExitStack() as groups:

        def begin(count: int, *, hold: Path | None = None, birth: float = 0) -> Group:
            held = ["tests.support.workers", database, str(count), str(hold), str(birth)]
            command = held if hold else serve_command(database, store, count)
            return groups.enter_context(Group(command, tmp_path / "serve.log"))

        yield begin


@pytest.fixture(scope="module")
def shared(server: Cluster, store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Group, str]]:
    """The service that outlives the tests which only take workers from it, and the URL of its database."""
    url = server.create()
    with Group(serve_command(url, store, WORKERS), tmp_path_factory.mktemp("shared") / "serve.log") as started:
        yield started, url


@pytest.fixture
def group(server: Cluster, shared: tuple[Group, str]) -> Iterator[Group]:
    """The shared service on an empty database, which has its first process when the test is over."""
    started, url = shared
    server.empty(url)
    yield started
    assert started.process.poll() is None


async def test_migrations_run_once_before_the_workers_which_all_serve_with_request_ids_of_their_own(
    group: Group, shared: tuple[Group, str]
) -> None:
    folder = resource("migrations") / "postgresql"
    applied = "select migration_id, count(*) from _yoyo_log where operation = 'apply' group by 1"
    assert dict(rows(shared[1], applied)) == dict.fromkeys(known_migrations(folder), 1)
    assert len(await group.processes(WORKERS)) == WORKERS
    assert len(group.pids()) == WORKERS
    answers = [each for _ in range(5) for each in await group.answers("/tools")]
    assert {status for status, _ in answers} == {200}
    assert len({request_id for _, request_id in answers}) == len(answers)
    # no worker more, and no other one
    assert {request_id[:20] for _, request_id in answers} == await group.processes(WORKERS)


async def test_a_worker_that_is_killed_takes_only_its_own_requests_with_it_and_is_replaced(
    group: Group, shared: tuple[Group, str], contract: Contract
) -> None:
    async with load(group.origin, contract) as clients:
        await clients.has_written(30)
        for _ in range(2):
            before, known = group.pids(), await group.processes(WORKERS)
            began = time.monotonic()
            os.kill(min(before), signal.SIGKILL)
            await clients.is_well(began)
            assert await group.processes(1, known)
            assert time.monotonic() - began < 5
            assert len(group.pids() - before) == 1
        # what was not answered was cut off: nobody is told that anything is wrong
        assert clients.statuses.keys() <= {0, 200, 201, 409}
    clients.check(shared[1])
    # gunicorn's records look like all others
    told = [json.loads(line) for line in group.log.read_text().splitlines() if "SIGKILL" in line]
    assert {(each["logger"], each["level"]) for each in told} == {("gunicorn.error", "error")}


async def test_a_worker_that_dies_while_the_database_is_away_is_back_with_it(
    group: Group, shared: tuple[Group, str], server: Cluster, contract: Contract
) -> None:
    assert len(await group.processes(WORKERS)) == WORKERS
    gave_up = group.log.read_text().count(BEGINS_IN_VAIN)
    async with load(group.origin, contract) as clients:
        await clients.has_written(10)
        began = time.monotonic()
        await asyncio.to_thread(server.stop)
        await clients.has_seen(503, began)
        for pid in group.pids():
            os.kill(pid, signal.SIGKILL)
        # their successors, and the successors of those
        async with asyncio.timeout(10):
            while group.log.read_text().count(BEGINS_IN_VAIN) < gave_up + 2 * WORKERS:  # noqa: ASYNC110  # nothing announces it
                await asyncio.sleep(0.05)
        await asyncio.to_thread(server.start)
        await clients.is_well(time.monotonic())
        await clients.has_written(10)
    clients.check(shared[1])
    assert len(await group.processes(WORKERS)) == WORKERS


async def test_while_the_limiter_is_away_every_worker_refuses_runs_and_all_are_well_with_it(
    database: str, tmp_path: Path
) -> None:
    store = Store()
    store.start()
    with Group(serve_command(database, store.url, WORKERS), tmp_path / "serve.log") as group:
        known = await group.processes(WORKERS)
        pids = group.pids()

        async def all_answer(status: int, within: float) -> None:
            """Waits until each worker has run an agent with this status, and none with another one since."""
            seen: set[str] = set()
            async with asyncio.timeout(within * slowness()):
                while seen != known:
                    answers = await group.answers("/agents/1/run", KEY_A, RUN)
                    seen = (
                        {request_id[:20] for _, request_id in answers}
                        if {each for each, _ in answers} == {status}
                        else set()
                    )

        async with aiohttp.ClientSession(group.origin, headers=KEY_A) as session:
            async with session.post("/agents", json=AGENT) as made:
                assert made.status == 201
            await all_answer(200, 5)
            store.kill()
            await all_answer(503, 5)
            async with session.post("/agents/1/run", json=RUN) as refused:
                assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
            async with session.get("/agents") as read:
                assert read.status == 200
            store.start()
            await all_answer(200, 5)
            async with session.get("/runs?limit=1") as page:
                before = (await page.json())["total"]
            assert {status for status, _ in await group.answers("/agents/1/run", KEY_A, RUN)} == {200}
            async with session.get("/runs?limit=1") as page:
                assert (await page.json())["total"] == before + BURST
        assert group.pids() == pids
    store.kill()


async def test_a_stop_lets_requests_under_way_finish_and_leaves_no_process(
    start: Start, database: str, tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    group = start(WORKERS, hold=hold)
    await group.processes(WORKERS)
    async with aiohttp.ClientSession(group.origin, headers=KEY_A) as session:
        (await session.post("/agents", json=AGENT)).release()
        hold.touch()
        task = {"task": "Please hold on", "model": "gpt-4o"}
        runs = []
        for _ in range(10):
            # not all at once: on a busy machine one process may be alone for a moment
            runs += [asyncio.create_task(session.post("/agents/1/run", json=task)) for _ in range(3)]
            await asyncio.sleep(0.05)
        began = time.monotonic()
        group.process.terminate()
        await asyncio.sleep(1)
        # nobody listens any more: who comes now is refused at once, and does not wait for an answer that never comes
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get("/health")
        hold.unlink()
        done = await asyncio.gather(*runs)
        assert {each.status for each in done} == {200}
        assert {each.headers["Connection"] for each in done} == {"close"}
        assert len({each.headers["X-Request-ID"][:20] for each in done}) > 1
        assert await group.ends() == 0
        assert time.monotonic() - began < 9
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get("/health")
    assert rows(database, "select count(*) from runs where status = 'completed'") == [(30,)]


async def test_what_does_not_end_is_cut_off_by_its_own_worker_and_leaves_nothing(
    start: Start, database: str, tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    group = start(WORKERS, hold=hold)
    await group.processes(WORKERS)
    async with aiohttp.ClientSession(group.origin, headers=KEY_A) as session:
        (await session.post("/agents", json=AGENT)).release()
        hold.touch()
        task = {"json": {"task": "Please hold on", "model": "gpt-4o"}}
        runs = [
            asyncio.create_task(session.post("/agents/1/run", headers={"Idempotency-Key": f"k{number}"}, **task))
            for number in range(30)
        ]
        await asyncio.sleep(0.5)
        began = time.monotonic()
        group.process.terminate()
        assert await group.ends() == 0
        # before gunicorn would kill them
        assert 2 < time.monotonic() - began < 9
        ends = await asyncio.gather(*runs, return_exceptions=True)
        assert {type(each) for each in ends} == {aiohttp.ServerDisconnectedError}
    assert rows(database, "select (select count(*) from runs), (select count(*) from kept_answers)") == [(0, 0)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_every_write_that_was_acknowledged_before_the_stop_is_there_and_noted(
    start: Start, database: str, contract: Contract, number: signal.Signals
) -> None:
    group = start(WORKERS)
    async with load(group.origin, contract) as clients:
        await clients.has_written(50)
        group.process.send_signal(number)
        assert await group.ends() == 0
        clients.is_gone = True
    assert clients.statuses.keys() <= {0, 200, 201}
    clients.check(database)
    log = group.log.read_text()
    assert [each for each in clients.request_ids if each not in log] == []


async def test_a_stop_is_heard_by_a_worker_that_is_just_being_born(start: Start, tmp_path: Path) -> None:
    group = start(WORKERS, hold=tmp_path / "nothing", birth=1)
    async with asyncio.timeout(5):
        while len(group.pids()) < WORKERS:  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.01)
    began = time.monotonic()
    group.process.terminate()
    assert await group.ends() == 0
    # gunicorn kills those that did not hear of it after ten seconds
    assert time.monotonic() - began < 9


async def test_a_reload_refuses_no_connection_and_no_request_and_replaces_every_worker(
    group: Group, shared: tuple[Group, str], contract: Contract
) -> None:
    async with load(group.origin, contract) as clients, aiohttp.ClientSession(group.origin, headers=KEY_A) as session:
        await clients.has_written(30)
        before, known = group.pids(), await group.processes(WORKERS)
        assert (await session.get("/tools/1")).status == 200
        os.kill(group.process.pid, signal.SIGHUP)
        new = await group.processes(WORKERS, known)
        await group.are_gone(before)
        assert len(group.pids()) == WORKERS
        assert await group.processes(WORKERS) == new
        await clients.has_written(30)
        # not even cut off
        assert clients.statuses.keys() <= {200, 201}, clients.statuses
    clients.check(shared[1])


async def test_no_worker_stays_behind_when_the_first_process_is_killed(start: Start) -> None:
    group = start(WORKERS)
    await group.processes(WORKERS)
    workers = group.pids()
    assert len(workers) == WORKERS
    group.process.kill()
    began = time.monotonic()
    await group.are_gone(workers)
    assert time.monotonic() - began < 9
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(group.origin + "/health")


async def test_a_revoked_key_stops_within_two_seconds_in_every_process(group: Group, shared: tuple[Group, str]) -> None:
    database = shared[1]
    assert agent_platform("tenants", "create", "acme", "--database", database).returncode == 0
    created = agent_platform("keys", "create", "--tenant", "acme", "--database", database)
    key = {"X-API-Key": created.stdout.strip()}
    key_id = created.stderr.split()[1]

    async def ask_all() -> set[tuple[int, str]]:
        """Each process's answers, on connections of their own."""
        found: set[tuple[int, str]] = set()
        while len({process for _, process in found}) < WORKERS:
            found |= {(status, request_id[:20]) for status, request_id in await group.answers("/whoami", key)}
        return found

    # as soon as it is made, it works in each
    assert {status for status, _ in await ask_all()} == {200}
    async with aiohttp.ClientSession(group.origin, headers=key) as session:
        revoking = asyncio.create_task(asyncio.to_thread(agent_platform, "keys", "revoke", key_id, "--database", database))
        kept = []
        while not revoking.done():
            # each remembers it until the last moment
            await ask_all()
            kept.append((await session.get("/whoami")).status)
        assert (await revoking).returncode == 0
        (revoked,) = rows(database, "select extract(epoch from now() - revoked_at::timestamptz) from api_keys")[0]
        await asyncio.sleep(max(0.0, 2.0 - float(revoked)))
        for _ in range(3):
            assert {status for status, _ in await ask_all()} == {401}
            assert (await session.get("/whoami")).status == 401
    assert kept[0] == 200


@pytest.mark.parametrize("missing", ["server", "database"])
def test_a_database_that_is_not_there_is_one_line(server: Cluster, store: str, missing: str) -> None:
    url = server.url("nowhere") if missing == "database" else "postgresql://postgres@127.0.0.1:1/postgres"
    done = agent_platform("serve", "--port", "0", "--workers", "2", "--limiter", store, "--database", url)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("agent-platform: The database postgresql://127.0.0.1:")
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_an_address_that_another_has_is_one_line(database: str, store: str, host: str) -> None:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as other:
        address = ("--host", host, "--port", str(other.getsockname()[1]))
        done = agent_platform("serve", *address, "--workers", "2", "--limiter", store, "--database", database)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert "Address already in use" in done.stderr


def test_more_than_one_worker_with_what_they_can_not_share_is_one_line(database: str, store: str, tmp_path: Path) -> None:
    wants = "agent-platform: more than one worker wants a {} that processes can share: --{}\n"
    for given, sentence in (
        (
            ("--database", str(tmp_path / "own.db"), "--limiter", store),
            wants.format("database", "database postgresql://…"),
        ),
        (("--database", database), wants.format("limiter", "limiter redis://…")),
    ):
        done = agent_platform("serve", "--port", "0", "--workers", "2", *given)
        assert (done.returncode, done.stderr) == (2, sentence)
    assert not (tmp_path / "own.db").exists()
    assert rows(database, "select tablename from pg_tables where schemaname = 'public'") == []
