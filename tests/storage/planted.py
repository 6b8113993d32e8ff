"""A database in which the tenant a has one of everything, and b nothing: opened once for a module, and set back."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from service.resources import resource
from service.storage.engines import engine_of
from service.storage.queries import load_queries
from service.storage.scope import Database, Scope, Unscoped
from service.storage.units import Unit, ask
from service.times import utc_now
from tests.support import storage as support
from tests.support.direct import Direct, direct
from tests.support.tables import Rows, put_back, tables
from tests.support.tenancy import plant


@dataclass
class Planted:
    """The open database and the tenants' scopes."""

    database: support.Database
    storage: Database
    a: Scope
    b: Scope
    # the database as its owner sees it
    beside: Direct
    rows: dict[str, Rows]

    def set_back(self) -> "Planted":
        put_back(self.database, self.rows)
        return self


@asynccontextmanager
async def planted(database: support.Database) -> AsyncIterator[Planted]:
    """Opens a migrated, empty database as the service does, and fills it."""
    engine = engine_of(database)

    def tenants() -> Unit[None]:
        for name in ("a", "b"):
            yield ask("create_tenant", id=name, now=utc_now())

    with engine.held(), direct(database) as beside:
        storage = await engine.open(load_queries(resource("sql"), engine.name))
        await Unscoped(storage).write(tenants())
        a, b = Scope(storage, "a", None), Scope(storage, "b", None)
        await plant(a, storage)
        yield Planted(database, storage, a, b, beside, tables(database))
        await storage.close()
