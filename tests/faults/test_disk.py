"""A disk that is full, fails or is gone: 503 for what could not be stored, everything else as ever, and no repair needed."""

import http.client
import json
import os
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from service.app import make_app
from service.config import Config
from service.storage.lock import writer_lock
from service.storage.sqlite import connect
from tests.conftest import KEY_A, Serve
from tests.support.contract import Contract
from tests.support.database import migrated
from tests.support.http import AGENT, PROBLEM, TOOL, Answer, make_agent, make_tool, refused
from tests.support.process import Service
from tests.support.storage import only_reads

TASK = {"task": "Say hello", "model": "gpt-4o"}
NewTenant = Callable[[Path], dict[str, str]]
_UNLIMITED = resource.RLIM_INFINITY


class SmallFiles:
    """A limit to how large the server's files may become; what goes beyond it is an I/O error."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def leave(self, room: int) -> None:
        """Lets the server write `room` bytes, behind which each file ends."""
        shorten_log(self.service.database)
        resource.prlimit(self.service.process.pid, resource.RLIMIT_FSIZE, (room, _UNLIMITED))

    def end(self) -> None:
        resource.prlimit(self.service.process.pid, resource.RLIMIT_FSIZE, (_UNLIMITED, _UNLIMITED))


class SmallDisk:
    """A file system of the server's own, which something else fills."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._filler = service.database.with_name("filler")

    def leave(self, room: int) -> None:
        """Fills the file system up to `room` bytes."""
        shorten_log(self.service.database)
        found = os.statvfs(self._filler.parent)
        with self._filler.open("wb") as filler:
            filler.write(bytes(found.f_bavail * found.f_frsize - room))

    def end(self) -> None:
        self._filler.unlink()


Shortage = SmallFiles | SmallDisk


def shorten_log(database: Path) -> None:
    """Empties the write-ahead log, so that what is written next makes it longer."""
    with closing(writer_lock(database)) as lock, closing(connect(database)) as connection:
        lock.acquire(5.0)
        assert connection.execute("pragma wal_checkpoint(truncate)").fetchone() == (0, 0, 0)


@contextmanager
def mounted(folder: Path) -> Iterator[None]:
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("a small file system needs mount(8)")
    if done.returncode:
        pytest.skip(f"this user may not mount a small file system: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def started(folder: Path) -> Iterator[Service]:
    with Service(migrated(folder / "test.db"), "--rate-limit", "1000000") as service:
        yield service


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallFiles]:
    with started(tmp_path_factory.mktemp("files")) as service:
        yield SmallFiles(service)


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    folder = tmp_path_factory.mktemp("disk")
    with mounted(folder), started(folder) as service:
        yield SmallDisk(service)


@pytest.fixture(params=["small_files", "small_disk"])
def shortage(request: pytest.FixtureRequest) -> Shortage:
    found: Shortage = request.getfixturevalue(request.param)
    return found


class Caller:
    """A client with one connection, which can send its request and take the answer later."""

    def __init__(self, service: Service, contract: Contract, key: Mapping[str, str]) -> None:
        parts = urlsplit(service.origin)
        assert parts.hostname is not None
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
        self._contract = contract
        self._key = key
        self._asked = ("", "")

    def close(self) -> None:
        self._connection.close()

    def send(self, method: str, path: str, body: Any = None, key: Mapping[str, str] | None = None) -> None:
        headers = {**(key or self._key)} if body is None else {**(key or self._key), "Content-Type": "application/json"}
        self._asked = (method, path.partition("?")[0])
        self._connection.request(method, path, None if body is None else json.dumps(body).encode(), headers)

    def answer(self) -> Answer:
        """The answer to what was sent; it must be one that openapi.yaml describes."""
        response = self._connection.getresponse()
        answer = Answer(response.status, dict(response.headers), response.read())
        self._contract.check(*self._asked, answer.status, answer.headers, answer.body)
        return answer

    def ask(self, method: str, path: str, body: Any = None, key: Mapping[str, str] | None = None) -> Answer:
        self.send(method, path, body, key)
        return self.answer()


def assert_unavailable(answer: Answer) -> None:
    assert answer.status == 503, answer.body
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.headers["Content-Type"] == PROBLEM


def items(caller: Caller, path: str) -> list[Any]:
    """A whole list, page by page."""
    found: list[Any] = []
    more = f"{path}?limit=100"
    while True:
        answer = caller.ask("GET", more)
        assert answer.status == 200, answer.body
        page = answer.json()
        found += page["items"]
        if page["next"] is None:
            assert page["total"] == len(found)
            return found
        more = f"{path}?limit=100&cursor={page['next']}"


def names(caller: Caller) -> list[str]:
    return [tool["name"] for tool in items(caller, "/tools")]


def assert_sound(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert connection.execute("pragma foreign_key_check").fetchall() == []
        counted = "select (select count(*) from runs) - (select coalesce(sum(runs), 0) from run_counts where agent_id = 0)"
        assert connection.execute(counted).fetchone() == (0,)


def names_after_a_crash(database: Path, folder: Path) -> list[str]:
    """The tools that a server would find which opened the files as they are now; they are copied into `folder` for it."""
    folder.mkdir()
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{database}{suffix}", folder / f"{database.name}{suffix}")
    with closing(sqlite3.connect(folder / database.name)) as connection:
        return [name for (name,) in connection.execute("select name from tools order by id")]


Connect = Callable[[Service, int], list[Caller]]


@pytest.fixture
def connected(contract: Contract, new_tenant: NewTenant) -> Iterator[Connect]:
    """Gives so many clients of a server, all of one new tenant, each with its connection open."""
    with ExitStack() as open_ones:

        def connect_them(service: Service, count: int) -> list[Caller]:
            key = new_tenant(service.database)
            callers = [open_ones.enter_context(closing(Caller(service, contract, key))) for _ in range(count)]
            for caller in callers:
                assert caller.ask("GET", "/whoami").status == 200
            return callers

        yield connect_them


@pytest.mark.embedded
@pytest.mark.parametrize(
    ("count", "description"),
    # so many of the large ones do not fit into SQLite's cache: the disk refuses some while the batch is still being written
    [(40, "x" * 2000), (250, "🔎" * 2000)],
    ids=["at the commit", "before the commit"],
)
def test_a_batch_that_does_not_fit_fails_as_a_whole_and_nothing_else_does(
    shortage: Shortage, connected: Connect, tmp_path: Path, count: int, description: str
) -> None:
    database = shortage.service.database
    first, reader, *others = connected(shortage.service, count + 2)
    assert first.ask("POST", "/tools", {**TOOL, "name": "before"}).status == 201
    shortage.leave(64 * 1024)
    with closing(writer_lock(database)) as held:
        # nothing is committed while the test writes: the first request waits, and what comes behind it makes one batch
        held.acquire(5.0)
        first.send("POST", "/tools", {**TOOL, "name": "first"})
        assert names(reader) == ["before"]
        for number, caller in enumerate(others):
            caller.send("POST", "/tools", {"name": f"tool {number}", "description": description})
        for _ in range(3):
            assert names(reader) == ["before"]
    for caller in others:
        assert_unavailable(caller.answer())
    made = first.answer()
    assert made.status == 201
    stored = ["before", "first"]
    assert names(reader) == stored
    assert names_after_a_crash(database, tmp_path / "crashed")[-2:] == stored
    assert reader.ask("GET", "/health").status == 200
    assert reader.ask("GET", f"/tools/{made.json()['id'] + 1}").status == 404
    assert reader.ask("POST", "/tools", {}).status == 400
    assert reader.ask("POST", "/tools", TOOL, {"X-API-Key": "none"}).status == 401
    shortage.end()
    assert others[0].ask("POST", "/tools", {**TOOL, "name": "next"}).status == 201
    stored.append("next")
    for number, caller in enumerate(others[:10]):
        again = caller.ask("POST", "/tools", {"name": f"tool {number}", "description": description})
        assert again.status == 201, again.body
        stored.append(f"tool {number}")
    assert names(reader) == stored
    assert_sound(database)


@pytest.mark.embedded
def test_what_was_answered_while_space_ran_out_is_there_and_nothing_else(shortage: Shortage, connected: Connect) -> None:
    callers = connected(shortage.service, 18)
    tool_ids, (agent_id,) = fill(callers[0])
    paths = ("/tools", "/agents", f"/agents/{agent_id}/run")
    kept: tuple[list[str], ...] = (["search", "mail"], ["runner"], [])
    failed = 0
    # a few rounds fit, whatever is committed together
    shortage.leave(1024 * 1024)
    for number in range(12):
        wanted: list[tuple[Caller, int, str]] = []
        for at, caller in enumerate(callers):
            kind, name = at % 3, f"{at} {number}"
            bodies = (
                {"name": name, "description": "x" * 2000},
                {**AGENT, "name": name, "description": "x" * 2000, "tool_ids": tool_ids},
                {**TASK, "task": name + " x" * 1000},
            )
            caller.send("POST", paths[kind], bodies[kind])
            wanted.append((caller, kind, name))
        for caller, kind, name in wanted:
            answer = caller.answer()
            if answer.status < 300:
                kept[kind].append(name)
            else:
                assert_unavailable(answer)
                failed += 1
        assert callers[0].ask("GET", "/health").status == 200
        assert callers[0].ask("GET", f"/agents/{agent_id}").status == 200
    assert failed
    assert all(len(each) > 2 for each in kept)
    shortage.end()
    for at, caller in enumerate(callers):
        assert caller.ask("POST", "/tools", {**TOOL, "name": f"after {at}"}).status == 201
        kept[0].append(f"after {at}")
    agents = items(callers[0], "/agents")
    assert sorted(names(callers[0])) == sorted(kept[0])
    assert sorted(agent["name"] for agent in agents) == sorted(kept[1])
    assert sorted(run["task"].partition(" x")[0] for run in items(callers[0], "/runs")) == sorted(kept[2])
    assert all(agent["tool_ids"] == tool_ids for agent in agents)
    with closing(sqlite3.connect(shortage.service.database)) as connection:
        lone = "select count(*) from agent_ids where id > ? and id not in (select id from agents)"
        assert connection.execute(lone, (agent_id,)).fetchone() == (0,)
    assert_sound(shortage.service.database)


def fill(caller: Caller) -> tuple[list[int], list[int]]:
    """Makes two tools and an agent with both; gives their ids."""
    tools = [caller.ask("POST", "/tools", {**TOOL, "name": name}).json()["id"] for name in ("search", "mail")]
    return tools, [caller.ask("POST", "/agents", {**AGENT, "tool_ids": tools}).json()["id"]]


def writes(tools: list[int], agents: list[int]) -> list[tuple[str, str, Any]]:
    """A request of each kind that writes, on what `fill` has made."""
    return [
        ("POST", "/tools", {**TOOL, "name": "made"}),
        ("PUT", f"/tools/{tools[0]}", {**TOOL, "name": "changed"}),
        ("POST", "/agents", {**AGENT, "name": "made", "tool_ids": tools}),
        ("PUT", f"/agents/{agents[0]}", {**AGENT, "name": "changed", "tool_ids": tools[1:]}),
        ("POST", f"/agents/{agents[0]}/run", TASK),
        ("DELETE", f"/agents/{agents[0]}", None),
        ("DELETE", f"/tools/{tools[0]}", None),
    ]


def assert_only_reads_work(caller: Caller, requests: list[tuple[str, str, Any]]) -> None:
    """Each write is refused, again and again, and changes nothing; each read is served."""
    lists = ("/tools", "/agents", "/runs")
    before = [items(caller, path) for path in lists]
    for method, path, body in requests:
        for _ in range(2):
            assert_unavailable(caller.ask(method, path, body))
        assert [items(caller, each) for each in lists] == before
        assert caller.ask("GET", "/health").status == 200


def assert_writes_work(caller: Caller, requests: list[tuple[str, str, Any]]) -> None:
    for method, path, body in requests:
        answer = caller.ask(method, path, body)
        assert answer.status in (200, 201, 204), answer.body


@pytest.mark.embedded
def test_a_disk_that_takes_nothing_refuses_each_write_and_serves_each_read(
    small_files: SmallFiles, connected: Connect
) -> None:
    (caller,) = connected(small_files.service, 1)
    requests = writes(*fill(caller))
    small_files.leave(0)
    assert_only_reads_work(caller, requests)
    small_files.end()
    assert_writes_work(caller, requests)
    assert_sound(small_files.service.database)


@pytest.mark.embedded
def test_files_that_become_read_only_refuse_each_write_and_serve_each_read(
    small_files: SmallFiles, connected: Connect
) -> None:
    (caller,) = connected(small_files.service, 1)
    requests = writes(*fill(caller))
    database = small_files.service.database
    files = [str(database), f"{database}-wal"]
    try:
        done = subprocess.run(["chattr", "+i", *files], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("an open file is only made read-only with chattr(1)")
    try:
        if done.returncode:
            pytest.skip(f"this user or file system can not make an open file read-only: {done.stderr.strip()}")
        assert_only_reads_work(caller, requests)
    finally:
        subprocess.run(["chattr", "-i", *files], capture_output=True)
    assert_writes_work(caller, requests)
    assert_sound(database)


async def test_a_connection_that_may_only_read_refuses_each_write_and_serves_each_read(serve: Serve, config: Config) -> None:
    app = make_app(config)
    client = await serve(app=app)
    tools = [(await make_tool(client, name))["id"] for name in ("search", "mail")]
    requests = writes(tools, [(await make_agent(client, tool_ids=tools))["id"]])
    async with only_reads(app, config.database):
        for method, path, body in requests:
            assert (await refused(client, 503, method, path, json=body))["title"] == "Service unavailable"
        assert len((await client.json("GET", "/tools"))["items"]) == 2
    for method, path, body in requests:
        await client.json(method, path, json=body)


async def test_a_run_that_could_not_be_stored_costs_nothing(serve: Serve, config: Config) -> None:
    app = make_app(config)
    client = await serve(app=app)
    await make_agent(client)
    task = {"json": {"task": "Say hello", "model": "gpt-4o"}}
    for key in ({}, {"Idempotency-Key": "once"}):
        async with only_reads(app, config.database):
            for _ in range(7):
                response = await client.post("/agents/1/run", headers=KEY_A | key, **task)
                assert (response.status, response.headers["RateLimit"].partition(";t")[0]) == (503, '"run";r=5')
    for left in (4, 3, 2, 1, 0):
        response = await client.post("/agents/1/run", headers=KEY_A | {"Idempotency-Key": f"once-{left}"}, **task)
        assert (response.status, response.headers["RateLimit"].partition(";t")[0]) == (200, f'"run";r={left}')
    assert (await client.json("GET", "/runs"))["total"] == 5


@pytest.mark.embedded
@pytest.mark.parametrize("comes_back", [True, False], ids=["moved away and back", "removed"])
def test_no_write_is_acknowledged_into_a_folder_that_is_gone(tmp_path: Path, connected: Connect, comes_back: bool) -> None:
    folder, away = tmp_path / "data", tmp_path / "away"
    folder.mkdir()
    with started(folder) as service:
        (caller,) = connected(service, 1)
        requests = writes(*fill(caller))
        folder.rename(away)
        if not comes_back:
            shutil.rmtree(away)
        assert_unavailable(caller.ask("GET", "/ready"))
        assert caller.ask("GET", "/health").status == 200
        assert caller.ask("GET", "/tools").status in (200, 503)
        for method, path, body in requests:
            assert_unavailable(caller.ask(method, path, body))
        if comes_back:
            away.rename(folder)
            assert caller.ask("GET", "/ready").status == 200
            assert_writes_work(caller, requests)
            assert_sound(service.database)
