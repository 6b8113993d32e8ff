"""A stop: not ready any more, nothing new, what is under way finishes, and nothing that was acknowledged is lost."""

import asyncio
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import aiohttp
import pytest

from tests.attacks.held_server import hold_file
from tests.conftest import KEY_A
from tests.support.forked import Forked
from tests.support.http import AGENT, TOOL
from tests.support.pace import slowness
from tests.support.process import clean_environment
from tests.support.secrets import leaks

TASK = {"task": "Please hold on", "model": "gpt-4o"}


class Held:
    """A server in a process of its own, whose model waits for as long as the hold file is there."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.hold = hold_file(database)
        self.log = database.with_suffix(".log")
        with self.log.open("wb") as log:
            self.process = Forked("tests.attacks.held_server", [str(database)], clean_environment(), log)
        self.origin = self.process.stdout.readline().decode().split()[-1]

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_: object) -> None:
        self.hold.unlink(missing_ok=True)
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        assert leaks(self.log.read_text()) == []

    def rows(self, query: str) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(self.database)) as connection:
            assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
            assert connection.execute("pragma foreign_key_check").fetchall() == []
            return connection.execute(query).fetchall()

    async def ends(self, within: float) -> int:
        return await asyncio.to_thread(self.process.wait, within)


async def status(held: Held, path: str) -> tuple[int, dict[str, str]]:
    """The answer on a connection of its own."""
    async with aiohttp.ClientSession() as session, session.get(held.origin + path, headers=KEY_A) as response:
        return response.status, dict(response.headers)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_what_is_under_way_finishes_and_what_is_new_is_refused(tmp_path: Path, number: signal.Signals) -> None:
    with Held(tmp_path / "drained.db") as held:
        async with aiohttp.ClientSession(held.origin, headers=KEY_A) as session:
            (await session.post("/agents", json=AGENT)).release()
            held.hold.touch()
            running = asyncio.create_task(session.post("/agents/1/run", json=TASK))
            await asyncio.sleep(0.2)
            assert (await status(held, "/ready"))[0] == 200
            held.process.send_signal(number)
            await asyncio.sleep(0.2)
            for path, expected in (("/ready", 503), ("/tools", 503), ("/health", 200)):
                found, headers = await status(held, path)
                assert found == expected, path
                assert headers["Connection"] == "close"
                assert ("Retry-After" in headers) == (expected == 503)
            held.hold.unlink()
            done = await running
            assert (done.status, (await done.json())["status"]) == (200, "completed")
        assert await held.ends(2) == 0
        with pytest.raises(aiohttp.ClientConnectorError):
            await status(held, "/health")
        assert held.rows("select id, status from runs") == [(1, "completed")]
        assert not held.database.with_name("drained.db-wal").exists()


async def test_what_does_not_end_is_cut_off_and_leaves_nothing(tmp_path: Path) -> None:
    with Held(tmp_path / "endless.db") as held:
        async with aiohttp.ClientSession(held.origin, headers=KEY_A) as session:
            (await session.post("/agents", json=AGENT)).release()
            held.hold.touch()
            running = asyncio.create_task(session.post("/agents/1/run", json=TASK, headers={"Idempotency-Key": "once"}))
            await asyncio.sleep(0.2)
            began = time.monotonic()
            held.process.terminate()
            assert await held.ends(10) == 0
            assert 2 < time.monotonic() - began < 5.5 * slowness()
            with pytest.raises(aiohttp.ClientError):
                await running
        assert held.rows("select (select count(*) from runs), (select count(*) from kept_answers)") == [(0, 0)]


@pytest.mark.parametrize("moment", [0.05, 0.2])
async def test_every_write_that_was_acknowledged_before_the_stop_is_there(tmp_path: Path, moment: float) -> None:
    with Held(tmp_path / "busy.db") as held:
        acknowledged: set[str] = set()

        async def write(writer: int) -> None:
            async with aiohttp.ClientSession(held.origin, headers=KEY_A) as session:
                for number in range(10_000):
                    name = f"{writer}-{number}"
                    try:
                        async with session.post("/tools", json={**TOOL, "name": name}) as response:
                            if response.status != 201:
                                assert response.status == 503
                                return
                    except aiohttp.ClientError:
                        return
                    acknowledged.add(name)

        writers = [asyncio.create_task(write(writer)) for writer in range(8)]
        await asyncio.sleep(moment)
        held.process.terminate()
        async with asyncio.timeout(5):
            await asyncio.gather(*writers)
        assert await held.ends(3) == 0
        assert acknowledged
        assert acknowledged <= {name for (name,) in held.rows("select name from tools")}


async def test_a_stop_with_nothing_under_way_is_immediate(tmp_path: Path) -> None:
    with Held(tmp_path / "idle.db") as held:
        assert (await status(held, "/ready"))[0] == 200
        began = time.monotonic()
        held.process.terminate()
        assert await held.ends(5) == 0
        assert time.monotonic() - began < 1 * slowness()
