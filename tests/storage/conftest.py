"""A migrated database of the test's own, opened as the service opens it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.resources import resource
from service.storage.migrations import hold
from service.storage.queries import load_queries
from service.storage.scope import Scope, Unscoped
from service.storage.sqlite import SqliteDatabase
from service.storage.units import ask
from service.times import utc_now
from tests.support.database import migrated


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    file = migrated(tmp_path / "test.db")
    lock = hold(file)
    yield file
    lock.close()


@pytest.fixture
async def database(path: Path) -> AsyncIterator[SqliteDatabase]:
    opened = await SqliteDatabase.open(path, load_queries(resource("sql")))
    yield opened
    await opened.close()


@pytest.fixture
async def tenants(database: SqliteDatabase) -> tuple[Scope, Scope]:
    """Two tenants, each with the scope that a request of theirs gets."""

    def unit() -> Any:
        for name in ("a", "b"):
            yield ask("create_tenant", id=name, now=utc_now())

    await Unscoped(database).write(unit())
    return Scope(database, "a", None), Scope(database, "b", None)
