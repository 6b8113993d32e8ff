"""The databases that are attacked, of either engine: how they are made, looked at past the service, and what a kill left."""

from pathlib import Path

from tests.attacks.databases_base import Store
from tests.attacks.databases_postgresql import PostgresqlStore, create, template
from tests.attacks.databases_sqlite import SqliteStore
from tests.support.database import migrated

ENGINES = ("sqlite", "postgresql")


def new(engine: str, folder: Path, name: str) -> Store:
    """A migrated database without a tenant, as `serve` would make it."""
    if engine == "sqlite":
        return SqliteStore(migrated(folder / f"{name}.db"))
    return PostgresqlStore(create(template()), folder, name)


def nothing(engine: str, folder: Path, name: str) -> Store:
    """A database that is not there yet; with PostgreSQL, an empty one."""
    return SqliteStore(folder / f"{name}.db") if engine == "sqlite" else PostgresqlStore(create(), folder, name)
