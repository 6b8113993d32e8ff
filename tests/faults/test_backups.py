"""Backups while clients write: each copy holds exactly what was acknowledged by some moment, and holds up nobody."""

import asyncio
import threading
import time
from pathlib import Path

import pytest

from service.resources import resource
from service.storage import backups
from service.storage.queries import load_queries
from tests.support.command import done
from tests.support.contract import Contract
from tests.support.database import migrated
from tests.support.load import Load, load
from tests.support.process import Service
from tests.support.storage import rows

FOLDER = resource("migrations")
QUERIES = load_queries(resource("sql"), "sqlite")


def written(database: Path) -> set[str]:
    """What the clients have named."""
    kinds = (("task", "runs"), ("name", "tools"), ("name", "agents"))
    return {name for column, kind in kinds for (name,) in rows(database, f"select {column} from {kind}")}


def check(copy: Path, clients: Load, began: float, ended: float) -> None:
    """What is in a copy is a beginning of what was acknowledged."""
    found = written(copy)
    assert found <= clients.sent.keys()
    before = {name for name, when in clients.answered.items() if when < began}
    assert before
    assert before <= found, f"acknowledged before it began, and not there: {sorted(before - found)}"
    after = {name for name, when in clients.sent.items() if when > ended}
    assert not after & found, f"sent after it had ended, and there: {sorted(after & found)}"
    last = max(clients.sent[name] for name in found)
    earlier = {name for name, when in clients.answered.items() if when < last}
    assert earlier <= found, f"not there, though one is that was sent when it was acknowledged: {sorted(earlier - found)}"


@pytest.mark.embedded
async def test_a_copy_made_under_load_is_a_beginning_of_what_was_acknowledged(
    tmp_path: Path, contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, copies = migrated(tmp_path / "live.db"), []
    with Service(database, "--rate-limit", "1000000", "--log-level", "warning") as service:
        async with load(service.origin, contract) as clients:
            await clients.has_written(30)
            for number in range(3):
                file, began = tmp_path / f"copy-{number}.db", time.monotonic()
                await asyncio.to_thread(done, "backup", str(file), "--database", str(database))
                copies.append((file, began, time.monotonic()))
                await clients.has_written(10)
            # one that takes long, so that much is written between its first page and its last
            monkeypatch.setattr(backups, "_STEP", 20)
            began_it, go_on = threading.Event(), threading.Event()

            def wait(done: int, total: int) -> None:
                began_it.set()
                assert go_on.wait(20)

            file, began = tmp_path / "copy-long.db", time.monotonic()
            long = asyncio.create_task(
                asyncio.to_thread(backups.back_up, database, file, FOLDER, QUERIES, overwrite=False, progress=wait)
            )
            await asyncio.to_thread(began_it.wait, 20)
            # nothing of what is sent from now on is in it, long before it ends
            copies.append((file, began, time.monotonic()))
            try:
                await clients.has_written(60)
            finally:
                go_on.set()
            await long
            await clients.has_written(10)
    assert clients.statuses.keys() <= {200, 201}
    clients.check(database)
    for file, began, ended in copies:
        restored = tmp_path / f"restored-{file.name}"
        done("restore", str(file), "--database", str(restored))
        check(restored, clients, began, ended)
