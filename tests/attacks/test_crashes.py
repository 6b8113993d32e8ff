"""A few kills; and servers that lose what they have acknowledged, or do the half of it, are found out."""

from contextlib import nullcontext
from pathlib import Path
from typing import cast

import pytest
from aiohttp import ClientSession

from tests.attacks import crashes
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
        time.sleep(0.005)
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


def test_what_was_acknowledged_survives_every_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # how long a start takes is for the long run to say: this one may have the rest of a suite beside it
    monkeypatch.setattr(crashes, "_START", 15_000.0)
    counts = crashes.attack(5, 7, tmp_path)
    assert counts["kills"] >= 7
    for kind in ("load", "recovery", "start_up", "migrations"):
        assert counts[f"kills_{kind}"] > 0, counts
    assert counts["acknowledged"] > 100
    assert counts["found"] == counts["acknowledged"]
    assert counts["not_done"] > 0
    assert counts["replays"] > 0
    assert counts["slowest_start_ms"] > 0


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        pytest.param(_ANSWERS_FIRST, "what was acknowledged is not there|neither is it undone", id="it answers first"),
        pytest.param(_IN_PARTS, "neither is it undone|half of an agent|run_counts|first 20[01] ", id="it writes in parts"),
    ],
)
def test_a_server_that_is_not_safe_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, complaint: str
) -> None:
    script = tmp_path / "broken.py"
    script.write_text(f"{broken}\nfrom tests.attacks.held_server import main\n\nmain()\n")
    monkeypatch.setattr(crashes, "SERVERS", ((str(script),),))
    monkeypatch.setattr(crashes, "_ROUNDS", ("load",))
    with pytest.raises(AssertionError, match=complaint):
        crashes.attack(6, 8, tmp_path)


class FakeVictim:
    """A server that takes so many milliseconds to start, by the name of its file."""

    took: dict[str, float]

    def __init__(self, file: Path) -> None:
        self.file = file

    @classmethod
    async def start(cls, command: tuple[str, ...], file: Path) -> "FakeVictim":
        return cls(file)

    async def __aenter__(self) -> "FakeVictim":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def ready(self, session: object) -> float:
        return self.took[self.file.name]


@pytest.mark.parametrize(
    ("new", "killed", "fails"), [(600.0, 2_100.0, True), (1_900.0, 1_950.0, False), (600.0, 700.0, False)]
)
async def test_a_start_that_takes_long_for_what_the_kill_left_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: float, killed: float, fails: bool
) -> None:
    monkeypatch.setattr(crashes, "Victim", FakeVictim)
    monkeypatch.setattr(FakeVictim, "took", {"new.db": new, "crashes.db": killed}, raising=False)
    attack = crashes._Attack(1, 1, tmp_path)
    session = cast(ClientSession, None)
    complaint = pytest.raises(
        AssertionError, match="the start after a kill took 2500 ms, then 2100 ms, that of a new file 600 ms"
    )
    with complaint if fails else nullcontext():
        await attack._note(session, 2_500.0, SERVE, attack.copies / "crashes.db")
        assert attack.slowest == killed
    assert attack.counts["repeated starts"] == 1
