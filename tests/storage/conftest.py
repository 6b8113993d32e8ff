"""A migrated database of the test's own, on each engine, opened as the service opens it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.resources import resource
from service.storage.engines import engine_of
from service.storage.queries import load_queries
from service.storage.scope import Database, Scope, Unscoped
from service.storage.units import ask
from service.times import utc_now
from tests.support.direct import Direct, direct


@pytest.fixture
async def storage(database: Path | str) -> AsyncIterator[Database]:
    engine = engine_of(database)
    with engine.held():
        opened = await engine.open(load_queries(resource("sql"), engine.name))
        yield opened
        await opened.close()


@pytest.fixture
async def tenants(storage: Database) -> tuple[Scope, Scope]:
    """Two tenants, each with the scope that a request of theirs gets."""

    def unit() -> Any:
        for name in ("a", "b"):
            yield ask("create_tenant", id=name, now=utc_now())

    await Unscoped(storage).write(unit())
    return Scope(storage, "a", None), Scope(storage, "b", None)


@pytest.fixture
def beside(database: Path | str) -> Iterator[Direct]:
    """The database as its owner sees it."""
    with direct(database) as opened:
        yield opened
