"""What an attacker needs of a database beside the service, whatever the engine."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from service.auth import key_hash, key_prefix, new_key
from service.storage.engines import Engine, engine_of
from service.times import utc_now
from tests.support.schema import schema

Rows = list[tuple[Any, ...]]
Read = Callable[[str], Rows]
Write = Callable[[str, Sequence[tuple[Any, ...]]], object]

# the connections of a process that was killed are gone within so many seconds
_ENDS = 5.0

# counts that the service keeps, beside what they count
_RUN_COUNTS = "select tenant_id, agent_id, status, model, runs from run_counts where runs > 0 order by 1, 2, 3, 4"
_COUNTED = (
    "select * from (select tenant_id, agent_id, status, model, count(*) from runs group by 1, 2, 3, 4 "
    "union all select tenant_id, 0, status, model, count(*) from runs group by 1, 3, 4) as counted order by 1, 2, 3, 4"
)


class Store(ABC):
    """One database. `database` is what the service is told; `log` and `hold` are files beside it, for its processes."""

    is_shared: bool
    # the folder of the engine's own migrations, below that of all
    part: str
    glance: float

    def __init__(self, database: Path | str, folder: Path, name: str) -> None:
        self.database = database
        self.name = name
        self.log = folder / f"{name}.log"
        self.hold = folder / f"{name}.hold"

    @property
    def engine(self) -> Engine:
        return engine_of(self.database)

    @abstractmethod
    def reading(self) -> AbstractContextManager[Read]:
        """A connection of its own, on one state of the database: call it with a query for its rows."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[Write]:
        """One transaction, beside a server if there is one: call it with a statement, and rows for its `?`."""

    @abstractmethod
    def tables(self) -> dict[str, list[str]]:
        """The names of all tables and their columns, yoyo's included; none where there is no database yet."""

    def schema(self) -> Rows:
        """All that the migrations define."""
        return schema(self.database)

    @abstractmethod
    def copy(self, folder: Path, name: str) -> "Store":
        """A copy, as of a stopped server, in the place of one that was called so before."""

    @abstractmethod
    def left(self, folder: Path) -> "Store":
        """What a killed process left, as the next one finds it: a look at it changes nothing of that."""

    @abstractmethod
    def forget_progress(self) -> None:
        """Prepares `is_begun` for another process."""

    @abstractmethod
    def is_begun(self) -> bool:
        """Has a process begun with its work on the database? To be asked each `glance` seconds."""

    def sessions(self) -> set[int]:
        """The connections that are open now, where those of a killed process can outlive it."""
        return set()

    async def gone(self, sessions: set[int]) -> None:
        """Waits until these have ended. Raises AssertionError where one goes on, with all that it has locked."""
        deadline = time.monotonic() + _ENDS
        while sessions and (sessions := sessions & self.sessions()):
            assert time.monotonic() < deadline, f"connections of a killed process go on: {self.at_work()}"
            await asyncio.sleep(0.005)

    def at_work(self) -> Rows:
        """Connections that are in the middle of something, and what they hold locked."""
        return []

    def rows(self, query: str) -> Rows:
        with self.reading() as read:
            return read(query)

    def check(self, agent_ids: Iterable[int] | None = None) -> None:
        """Raises AssertionError where the database is damaged, its totals are not its counts, or it has half an agent.

        `agent_ids` are those of all agents that ever were, deleted ones included.
        """
        with self.reading() as read:
            damage = self._damage(read)
            assert not damage, f"{self.name}: {damage[:5]}"
            counted, kept = read(_COUNTED), read(_RUN_COUNTS)
            assert kept == counted, f"{self.name}: run_counts are {kept}, the runs {counted}"
            if agent_ids is not None:
                stored, known = {number for (number,) in read("select id from agent_ids")}, set(agent_ids)
                more, less = sorted(stored - known), sorted(known - stored)
                assert stored == known, f"{self.name}: half of an agent: {more} too many, {less} missing"

    def add_tenant(self, name: str) -> str:
        """Adds a tenant to a migrated database; its API key."""
        key, now = new_key(), utc_now()
        with self.writing() as write:
            write("insert into tenants (id, created_at) values (?, ?)", [(name, now)])
            write(
                "insert into api_keys (tenant_id, prefix, hash, created_at) values (?, ?, ?, ?)",
                [(name, key_prefix(key), key_hash(key), now)],
            )
        return key

    @abstractmethod
    def begin_ids_at(self, table: str, number: int) -> None:
        """Lets the ids of a table that has none yet begin behind `number`."""

    @abstractmethod
    def _damage(self, read: Read) -> Rows: ...
