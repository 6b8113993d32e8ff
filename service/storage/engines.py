"""The two engines, chosen by how the database is named: a file, or a URL. Nothing else in the service tells them apart."""

import shlex
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from importlib.util import find_spec
from pathlib import Path

from service.storage import backups, examination, migrations
from service.storage.backups import BackupError, Contents, Progress, Restored
from service.storage.examination import Finding
from service.storage.queries import Query
from service.storage.scope import Database

_URLS = ("postgresql://", "postgres://")
# the settings of a URL that both drivers know; what only libpq knows, asyncpg would send to the server as one of its own
_SETTINGS = {
    *("host", "port", "dbname", "user", "password", "passfile", "target_session_attrs", "application_name", "options"),
    *("sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl", "ssl_min_protocol_version", "ssl_max_protocol_version"),
}
# seconds that a query may take for a command that has time
_LONG = 600.0


class Engine(ABC):
    """What keeps the data of one database, and how it is brought to this version and opened."""

    # the folder of its own queries below sql/
    name: str
    # can several processes serve one database?
    is_shared: bool
    # a sentence, where the space of what was deleted can't be given back by `compact`
    why_not_compact: str | None = None

    @abstractmethod
    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the database as long as a server or a migration needs it. Raises MigrationError where another one does."""

    @abstractmethod
    def migrate(self, folder: Path) -> list[str]:
        """Applies what is missing, while the database is held; the ids of what was applied. Raises MigrationError."""

    @abstractmethod
    def check(self, folder: Path) -> None:
        """Raises MigrationError where the database is not there, foreign, or not of exactly this version."""

    @abstractmethod
    def known(self, folder: Path) -> frozenset[str]:
        """The ids of the migrations that this version has."""

    @abstractmethod
    async def open(self, queries: Mapping[str, Query], *, for_long_queries: bool = False) -> Database:
        """The migrated database, open; for the service, which waits for no query long, or for a command that does.

        Raises Unavailable, and MigrationError where whoever connects may not do what the service does.
        """

    @abstractmethod
    def back_up(
        self, file: Path, folder: Path, queries: Mapping[str, Query], *, overwrite: bool, progress: Progress
    ) -> Contents:
        """Copies the database to `file`, beside a server that writes. Raises BackupError and MigrationError."""

    @abstractmethod
    def restore(self, file: Path, folder: Path, queries: Mapping[str, Query], *, replace: bool) -> Restored:
        """Puts what `back_up` has made in the database's place. Raises BackupError and MigrationError."""

    @abstractmethod
    def examine(self, folder: Path, queries: Mapping[str, Query], *, workers: int) -> Iterator[Finding]:
        """What is well and what is not with the database, for so many workers. It changes nothing.

        Raises MigrationError for a database that can't be looked at, or is another program's.
        """

    @abstractmethod
    def turn(self) -> AbstractAsyncContextManager[bool]:
        """Is it for this process to do what one at a time is to do, of all that serve the database? It is while this lasts.

        Raises Unavailable where nobody can tell.
        """

    @abstractmethod
    def is_same(self, other: "Engine") -> bool:
        """Are both the same database, however each is named? Raises MigrationError where one can't be reached."""

    def compact(self) -> None:
        """Gives the space of all that was deleted back to the disk, while the database is held. Raises MigrationError."""
        raise NotImplementedError(self.why_not_compact)

    @abstractmethod
    def __str__(self) -> str:
        """The database as it may be shown."""


class Embedded(Engine):
    """SQLite, on a file."""

    name = "sqlite"
    is_shared = False

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def held(self) -> Iterator[None]:
        lock = migrations.hold(self.path)
        try:
            yield
        finally:
            lock.close()

    def migrate(self, folder: Path) -> list[str]:
        return migrations.migrate(self.path, folder)

    def check(self, folder: Path) -> None:
        migrations.check(self.path, folder)

    def known(self, folder: Path) -> frozenset[str]:
        return migrations.known_migrations(folder)

    async def open(self, queries: Mapping[str, Query], *, for_long_queries: bool = False) -> Database:
        from service.storage.sqlite import SqliteDatabase

        return await SqliteDatabase.open(self.path, queries)

    def back_up(
        self, file: Path, folder: Path, queries: Mapping[str, Query], *, overwrite: bool, progress: Progress
    ) -> Contents:
        return backups.back_up(self.path, file, folder, queries, overwrite=overwrite, progress=progress)

    def restore(self, file: Path, folder: Path, queries: Mapping[str, Query], *, replace: bool) -> Restored:
        # before it is held, which would make a file that is missing
        contents = backups.contents_of(file, folder, queries)
        is_new = not self.path.exists()
        with self.held():
            try:
                return Restored(contents, backups.put_back(self.path, file, replace=replace))
            except BaseException:
                # what holding it has made
                if is_new and not self.path.stat().st_size:
                    self.path.unlink()
                raise

    def examine(self, folder: Path, queries: Mapping[str, Query], *, workers: int) -> Iterator[Finding]:
        return examination.examine(self.path, folder, queries)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[bool]:
        # one process serves a file
        yield True

    def is_same(self, other: Engine) -> bool:
        return isinstance(other, Embedded) and other.path.exists() and self.path.samefile(other.path)

    def compact(self) -> None:
        migrations.compact(self.path)

    def __str__(self) -> str:
        return str(self.path)


class Postgresql(Engine):
    """PostgreSQL, at a URL. Its drivers come with an extra, and are loaded only here."""

    name = "postgresql"
    is_shared = True
    why_not_compact = (
        "PostgreSQL uses the space of deleted runs again by itself; its own `vacuum full runs` gives it back, and holds up "
        "every request as long as it takes."
    )

    def __init__(self, url: str) -> None:
        self.url = url

    @contextmanager
    def held(self) -> Iterator[None]:
        # any number of processes may serve one database, and those that migrate it wait for each other
        yield

    def migrate(self, folder: Path) -> list[str]:
        from service.storage import postgresql_migrations

        return postgresql_migrations.migrate(self.url, folder / self.name)

    def check(self, folder: Path) -> None:
        from service.storage import postgresql_migrations

        postgresql_migrations.check(self.url, folder / self.name)

    def known(self, folder: Path) -> frozenset[str]:
        return migrations.known_migrations(folder / self.name)

    async def open(self, queries: Mapping[str, Query], *, for_long_queries: bool = False) -> Database:
        from service.storage.postgresql import PostgresqlDatabase

        patience = {"patience": _LONG} if for_long_queries else {}
        return await PostgresqlDatabase.open(self.url, queries, **patience)

    def back_up(
        self, file: Path, folder: Path, queries: Mapping[str, Query], *, overwrite: bool, progress: Progress
    ) -> Contents:
        raise BackupError(
            f"PostgreSQL is backed up by a tool of its own: pg_dump --format=custom --file={shlex.quote(str(file))} {self}, "
            "as a superuser or a user with bypassrls and pg_read_all_data: row-level security binds the owner, too."
        )

    def restore(self, file: Path, folder: Path, queries: Mapping[str, Query], *, replace: bool) -> Restored:
        raise BackupError(
            "PostgreSQL is restored by a tool of its own, into a database that `agent-platform migrate` has made ready: "
            f"pg_restore --clean --if-exists --no-owner --single-transaction --dbname={self} {shlex.quote(str(file))}"
        )

    def examine(self, folder: Path, queries: Mapping[str, Query], *, workers: int) -> Iterator[Finding]:
        from service.storage import postgresql_examination

        return postgresql_examination.examine(self.url, folder / self.name, workers)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[bool]:
        from service.storage.postgresql import turn

        async with turn(self.url) as is_ours:
            yield is_ours

    def is_same(self, other: Engine) -> bool:
        if not isinstance(other, Postgresql):
            return False
        from service.storage import postgresql_migrations

        return postgresql_migrations.is_same(self.url, other.url)

    def __str__(self) -> str:
        from service.storage.postgresql_migrations import shown

        return shown(self.url)


def is_url(database: str) -> bool:
    """Is it the URL of a database server? Raises ValueError, a sentence, for one that can't be, or without its drivers."""
    if not database.startswith(_URLS):
        return False
    if not all(find_spec(driver) for driver in ("asyncpg", "psycopg")):
        raise ValueError("the drivers for PostgreSQL are not installed: pip install 'agent-platform[postgresql]'.")
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        facts = conninfo_to_dict(database)
        ports = str(facts.get("port", 5432)).split(",")
        if not all(0 < int(port) < 65536 for port in ports if port):
            raise ValueError
    except (ProgrammingError, ValueError):
        # it is not repeated, for it may hold a password
        raise ValueError("it is no URL as in postgresql://USER:PASSWORD@HOST:PORT/DATABASE.") from None
    if not facts.get("dbname"):
        # else it would be the one that is called like the user
        raise ValueError("it names no database, as postgresql://USER:PASSWORD@HOST:PORT/DATABASE does.")
    if unknown := sorted(facts.keys() - _SETTINGS):
        raise ValueError(f"the setting {unknown[0]} can't be given in the URL.")
    return True


def engine_of(database: Path | str) -> Engine:
    """The engine that keeps `database`, the path of a file or a URL."""
    return Postgresql(database) if isinstance(database, str) else Embedded(database)
