"""Migrations that are killed: of a new database, and of databases with data at each older version."""

import asyncio
import random
import shutil
import time
from collections import Counter
from pathlib import Path

from aiohttp import ClientSession

from service.resources import resource
from service.times import utc_now
from tests.attacks import databases
from tests.attacks.databases_base import Rows, Store
from tests.attacks.victim import MIGRATE, SERVE, Victim

_AGENTS = 150
_RUNS = 1_500
# a migrator that is at work is killed within so many seconds
_WORK = {"sqlite": 0.12, "postgresql": 0.3}


class Old:
    """A database at the first `number` migrations, with data, and what must become of it."""

    def __init__(self, engine: str, folder: Path, number: int) -> None:
        self.number = number
        self.engine = engine
        self.store = databases.nothing(engine, folder, f"old-{number}")
        migrations, some = resource("migrations"), folder / f"migrations-{number}"
        part = self.store.part
        (some / part).mkdir(parents=True)
        wanted = sorted(self.store.engine.known(migrations))[:number]
        for each in (migrations / part).iterdir():
            if each.name.split(".")[0] in wanted:
                shutil.copyfile(each, some / part / each.name)
        if number:
            with self.store.engine.held():
                assert self.store.engine.migrate(some) == wanted
            _fill(self.store, number)
        self.before = {name: columns for name, columns in self.store.tables().items() if "yoyo" not in name}
        self.rows = {table: _rows(self.store, table, columns) for table, columns in self.before.items()}
        whole = self.store.copy(folder, f"whole-{number}")
        with whole.engine.held():
            whole.engine.migrate(migrations)
        self.schema = whole.schema()

    def check(self, store: Store) -> None:
        """Raises AssertionError where the database has not become what it had to."""
        store.check()
        assert store.schema() == self.schema, f"the schema of {store.database} is another than that of a migration in peace"
        for table, columns in self.before.items():
            # a server adds its demo tenants, which these have already, and notes what `_works` does
            found = [row for row in _rows(store, table, columns) if table != "audit_log" or row in self.rows[table]]
            assert found == self.rows[table], f"{store.database}: {table} is not what it was"
        assert store.rows("select count(*) from yoyo_lock") == [(0,)], f"{store.database} is locked still"


async def attack(
    session: ClientSession, folder: Path, old: Old, choice: random.Random, counts: Counter[str]
) -> tuple[float, Store]:
    """Migrates a database, kills that once to three times, and starts it again.

    The milliseconds of that start, and the database as it found it. Where several processes may serve one database, half of
    the starts begin before the last kill, and wait for the migrator that is killed.
    """
    copies, looked_at = folder / "copies", folder / "looked at"
    for each in (copies, looked_at):
        each.mkdir()
    victim, store = None, old.store.copy(folder, "test")
    try:
        kills = choice.choice((1, 1, 2, 3))
        waits = store.is_shared and choice.random() < 0.5
        for _ in range(10):
            if not kills:
                break
            if kills == 1 and waits:
                victim = await Victim.start(SERVE, store)
            if not await _killed(store, _WORK[old.engine], choice):
                # the migrator was faster: once more, from the beginning
                if victim is not None:
                    await victim.kill()
                    victim = None
                store = old.store.copy(folder, "test")
                continue
            kills -= 1
            counts["migrations"] += 1
            counts["migrations cut"] += _is_cut(store.left(looked_at))
        kept = store.left(copies)
        if victim is None:
            victim = await Victim.start(SERVE, store)
        else:
            counts["migrations beside"] += 1
        milliseconds = await victim.ready(session)
        await _works(session, victim.origin, str(choice.random()))
        await victim.stop()
    finally:
        if victim is not None:
            await victim.kill()
    old.check(store)
    return milliseconds, kept


async def _works(session: ClientSession, origin: str, name: str) -> None:
    """Writes something, and takes it back."""
    key = {"X-API-Key": "key_tenant_a"}
    async with session.post(f"{origin}/tools", json={"name": name, "description": "Works"}, headers=key) as answer:
        assert answer.status == 201, await answer.text()
        made = await answer.json()
    async with session.delete(f"{origin}/tools/{made['id']}", headers=key) as answer:
        assert answer.status == 204, await answer.text()


async def _killed(store: Store, work: float, choice: random.Random) -> bool:
    """Starts a migrator and kills it, most times within the few milliseconds of its work; False where it was faster."""
    store.forget_progress()
    victim = await Victim.start(choice.choice((SERVE, MIGRATE)), store)
    async with victim:
        if choice.random() < 0.2:
            await asyncio.sleep(choice.uniform(0, 0.4))
        else:
            deadline = time.monotonic() + 10
            while victim.process.returncode is None and time.monotonic() < deadline:
                if store.is_begun():
                    break
                await asyncio.sleep(store.glance)
            await asyncio.sleep(choice.uniform(0, work))
        return await victim.kill()


def _is_cut(store: Store) -> bool:
    """Has the migrator done a part of its work?"""
    tables = store.tables()
    if "_yoyo_migration" not in tables:
        return bool(tables)
    ((applied,),) = store.rows("select count(*) from _yoyo_migration")
    return int(applied) < len(store.engine.known(resource("migrations")))


def _rows(store: Store, table: str, columns: list[str]) -> Rows:
    return sorted(store.rows(f"select {', '.join(columns)} from {table}"), key=repr)


def _fill(store: Store, number: int) -> None:
    """Writes rows into the tables that the first `number` migrations have made."""
    now = utc_now()
    with store.writing() as write:
        tenants = ["tenant_a", "tenant_b", *(f"tenant-{at}" for at in range(20))]
        write("insert into tenants (id, created_at) values (?, ?)", [(each, now) for each in tenants])
        write(
            "insert into api_keys (tenant_id, prefix, hash, created_at) values (?, 'mk_000000', ?, ?)",
            [(each, f"{at:064x}", now) for at, each in enumerate(tenants)],
        )
        owners = [tenants[at % 2] for at in range(_AGENTS)]
        if number >= 2:
            write(
                "insert into tools (id, tenant_id, name, description, created_at, updated_at) values (?, ?, ?, 'd', ?, ?)",
                [(at + 1, owner, f"tool {at}", now, now) for at, owner in enumerate(owners)],
            )
            write(
                "insert into agent_ids (id, tenant_id) values (?, ?)", [(at + 1, owner) for at, owner in enumerate(owners)]
            )
            write(
                "insert into agents (id, tenant_id, name, role, description, created_at, updated_at) "
                "values (?, ?, ?, 'r', 'd', ?, ?)",
                [(at + 1, owner, f"agent {at}", now, now) for at, owner in enumerate(owners)],
            )
            write(
                "insert into agent_tools (tenant_id, agent_id, tool_id) values (?, ?, ?)",
                [(owner, at + 1, (at + step) % _AGENTS + 1) for at, owner in enumerate(owners) for step in (0, 2, 4)],
            )
        if number >= 3:
            write(
                "insert into runs (tenant_id, agent_id, agent_name, model, status, prompt_tokens, completion_tokens, "
                "created_at, duration_ms, task, response, steps, prompt) "
                "values (?, ?, 'n', 'gpt-4o', 'completed', 1, 1, ?, 0, 't', 'r', '[]', ?)",
                [(owners[at % _AGENTS], at % _AGENTS + 1, now, "p" * 500) for at in range(_RUNS)],
            )
    if number >= 2:
        # those that were given by name are given
        for table in ("tools", "agent_ids"):
            store.begin_ids_at(table, _AGENTS)
