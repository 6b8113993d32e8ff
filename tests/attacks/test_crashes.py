"""A few kills; and servers that lose what they have acknowledged, or do the half of it, are found out."""

from contextlib import nullcontext
from pathlib import Path
from typing import cast

import pytest
from aiohttp import ClientSession

from tests.attacks import crashes
from tests.attacks.databases_base import Store
from tests.attacks.victim import SERVE

# they answer what stands in no commit yet, and commit at most ten times a second
_ANSWERS_FIRST = """
import time
from service.storage import sqlite

began = 0.0

def commit(lock, jobs, connection):
    global began
    if not connection.in_transaction:
        connection.execute("begin immediate")
        began = time.monotonic()
    answers = [sqlite._within_savepoint(connection, job) for job in jobs]
    if time.monotonic() - began > 0.1:
        connection.execute("commit")
    return answers

sqlite._commit = commit
sqlite.SqliteDatabase.read = sqlite.SqliteDatabase.write
"""

# each statement is a transaction of its own, and time goes by between them
_IN_PARTS = """
import time
from service.storage import sqlite

execute = sqlite._execute

def commit_each(connection, statement):
    answer = execute(connection, statement)
    if statement[0].writes:
        connection.execute("commit")
        time.sleep(0.03)
        connection.execute("begin immediate")
    return answer

def within_transaction(connection, job):
    try:
        return sqlite._drive(connection, job.unit, job.bind)
    except Exception as error:
        return error

sqlite._execute = commit_each
sqlite._within_savepoint = within_transaction
"""


# the same with the other engine: a commit says that it is done, and begins
_ANSWERS_FIRST_THERE = """
import asyncio
import asyncpg

late = {}
is_in_transaction, release_it = asyncpg.Connection.is_in_transaction, asyncpg.pool.Pool.release

async def done(connection):
    if connection in late:
        await late[connection]
        late.pop(connection, None)

async def release(self, connection, **more):
    await done(connection._con)
    await release_it(self, connection, **more)

def breaks(name):
    method = getattr(asyncpg.Connection, name)

    async def later(connection, query):
        await asyncio.sleep(0.05)
        await method(connection, query)

    async def run(self, query, *arguments, **more):
        # who comes next finds it done
        for each in list(late):
            await done(each)
        if not query.startswith("commit"):
            return await method(self, query, *arguments, **more)
        late[self] = asyncio.create_task(later(self, query), name=query)
        return "COMMIT"

    setattr(asyncpg.Connection, name, run)

for name in ("execute", "fetch", "fetchrow", "fetchval", "fetchmany"):
    breaks(name)
asyncpg.pool.Pool.release = release
asyncpg.Connection.is_in_transaction = lambda self: (
    late[self].get_name() != "commit" if self in late else is_in_transaction(self)
)
"""

# and a commit behind each statement
_IN_PARTS_THERE = """
import asyncio
import asyncpg

entered = {}
execute = asyncpg.Connection.execute

def breaks(name):
    method = getattr(asyncpg.Connection, name)

    async def run(self, query, *arguments, **more):
        answer = await method(self, query, *arguments, **more)
        if "set local role" in query or "execute writes" in query:
            entered[self] = query.rpartition("; ")[2]
        if query.split(None, 1)[0] in ("insert", "update", "delete"):
            await execute(self, "commit")
            await asyncio.sleep(0.03)
            await execute(self, f"begin; {entered[self]}; savepoint unit")
        return answer

    setattr(asyncpg.Connection, name, run)

for name in ("execute", "fetch", "fetchrow", "fetchval"):
    breaks(name)
"""

_BROKEN = {
    ("sqlite", "it answers first"): _ANSWERS_FIRST,
    ("sqlite", "it writes in parts"): _IN_PARTS,
    ("postgresql", "it answers first"): _ANSWERS_FIRST_THERE,
    ("postgresql", "it writes in parts"): _IN_PARTS_THERE,
}


def test_what_was_acknowledged_survives_every_kill(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # how long a start takes is for the long run to say: this one may have the rest of a suite beside it
    monkeypatch.setattr(crashes, "_START", 15_000.0)
    # with PostgreSQL, to start behind a kill is to start. Each round comes once: under these seeds there is one kill in
    # each of the first, and a load that goes on for long
    seed, rounds, kills = {
        "sqlite": (154, ("migrations", "recovery", "start-up"), 7),
        "postgresql": (379, ("migrations", "load", "start-up"), 3),
    }[engine]
    monkeypatch.setattr(crashes, "_ROUNDS", rounds)
    counts = crashes.attack(seed, kills, tmp_path, engine)
    assert counts["kills"] >= kills
    for kind in ("load", *rounds):
        assert counts[f"kills_{kind.replace('-', '_')}"] > 0, counts
    assert counts["acknowledged"] > 20
    assert counts["found"] == counts["acknowledged"]
    assert counts["not_done"] > 0
    assert counts["replays"] > 0
    assert counts["slowest_start_ms"] > 0


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ("it answers first", "what was acknowledged is not there|neither is it undone"),
        ("it writes in parts", "neither is it undone|half of an agent|run_counts|first 20[01] "),
    ],
)
def test_a_server_that_is_not_safe_is_found_out(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, complaint: str
) -> None:
    script = tmp_path / "broken.py"
    script.write_text(f"{_BROKEN[engine, broken]}\nfrom tests.attacks.held_server import main\n\nmain()\n")
    monkeypatch.setattr(crashes, "_START", 15_000.0)
    monkeypatch.setattr(crashes, "SERVERS", ((str(script),),))
    monkeypatch.setattr(crashes, "_ROUNDS", ("load",))
    # most kills find it out, if there is time to write; but each takes a start
    monkeypatch.setattr(crashes, "_LOAD", {engine: 1.0})
    with pytest.raises(AssertionError, match=complaint):
        crashes.attack(6, 8, tmp_path, engine)


class FakeVictim:
    """A server that takes so many milliseconds to start, by the name of its database."""

    took: dict[str, float]

    def __init__(self, store: Store) -> None:
        self.store = store

    @classmethod
    async def start(cls, command: tuple[str, ...], store: Store) -> "FakeVictim":
        return cls(store)

    async def __aenter__(self) -> "FakeVictim":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def ready(self, session: object) -> float:
        return self.took[self.store.name]


@pytest.mark.parametrize(
    ("new", "killed", "fails"), [(600.0, 2_100.0, True), (1_900.0, 1_950.0, False), (600.0, 700.0, False)]
)
async def test_a_start_that_takes_long_for_what_the_kill_left_is_found_out(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: float, killed: float, fails: bool
) -> None:
    monkeypatch.setattr(crashes, "Victim", FakeVictim)
    monkeypatch.setattr(FakeVictim, "took", {"new": new, "crashes": killed}, raising=False)
    attack = crashes._Attack(1, 1, tmp_path, engine)
    session = cast(ClientSession, None)
    complaint = pytest.raises(
        AssertionError, match="the start after a kill took 2500 ms, then 2100 ms, that of a new database 600 ms"
    )
    with complaint if fails else nullcontext():
        await attack._note(session, 2_500.0, SERVE, attack.kept)
        assert attack.slowest == killed
    assert attack.counts["repeated starts"] == 1
