"""Migrations that are killed: of a new file, and of files with data at each older version."""

import asyncio
import random
import shutil
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from aiohttp import ClientSession

from service.resources import resource
from service.storage.migrations import hold, known_migrations, migrate
from service.storage.sqlite import connect
from service.times import utc_now
from tests.attacks.stored import check_file, copied
from tests.attacks.victim import MIGRATE, SERVE, Victim

_AGENTS = 150
_RUNS = 1_500


class Old:
    """A database at the first `number` migrations, with data, and what must become of it."""

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self.file = folder / f"old-{number}.db"
        migrations, some = resource("migrations"), folder / f"migrations-{number}"
        some.mkdir()
        wanted = sorted(known_migrations(migrations))[:number]
        for each in migrations.iterdir():
            if each.name.split(".")[0] in wanted:
                shutil.copyfile(each, some / each.name)
        if number:
            with closing(hold(self.file)):
                assert migrate(self.file, some) == wanted
            _fill(self.file, number)
        self.before = _columns(self.file) if number else {}
        self.rows = {table: _rows(self.file, table, columns) for table, columns in self.before.items()}
        whole = folder / f"whole-{number}.db"
        self.copy_to(whole)
        with closing(hold(whole)):
            migrate(whole, migrations)
        self.schema = _schema(whole)

    def copy_to(self, file: Path) -> None:
        """A copy as a stopped server leaves it. Without its locks' files, which show a migrator's progress."""
        if self.number:
            shutil.copyfile(self.file, file)

    def check(self, file: Path) -> None:
        """Raises AssertionError where `file` has not become what it had to."""
        check_file(file)
        assert _schema(file) == self.schema, f"the schema of {file} is another than that of a migration in peace"
        for table, columns in self.before.items():
            # a server adds its demo tenants, which these have already
            assert _rows(file, table, columns) == self.rows[table], f"{file}: {table} is not what it was"
        with closing(sqlite3.connect(file)) as connection:
            assert connection.execute("select count(*) from yoyo_lock").fetchone() == (0,), f"{file} is locked still"


async def attack(session: ClientSession, folder: Path, old: Old, choice: random.Random, counts: Counter[str]) -> float:
    """Migrates a file, kills that once to three times, and starts it again; the milliseconds of the last start."""
    own = folder / f"upgrade-{counts['upgrades']}"
    for name in ("copies", "looked at"):
        (own / name).mkdir(parents=True)
    file, copy = own / "test.db", own / "copies" / "test.db"
    old.copy_to(file)
    kills = choice.choice((1, 1, 2, 3))
    for _ in range(10):
        if not kills:
            break
        if not await _killed(file, choice):
            # the migrator was faster: once more, from the beginning
            for each in own.glob("test.db*"):
                each.unlink()
            old.copy_to(file)
            continue
        kills -= 1
        counts["migrations"] += 1
        if file.exists():
            counts["migrations cut"] += _is_cut(copied(file, own / "looked at"))
    if file.exists():
        copied(file, copy.parent)
    victim = await Victim.start(SERVE, file)
    async with victim:
        milliseconds = await victim.ready(session)
        key = {"X-API-Key": "key_tenant_a"}
        tool = {"name": f"new {choice.random()}", "description": "Works"}
        async with session.post(f"{victim.origin}/tools", json=tool, headers=key) as answer:
            assert answer.status == 201, await answer.text()
            made = await answer.json()
        async with session.delete(f"{victim.origin}/tools/{made['id']}", headers=key) as answer:
            assert answer.status == 204, await answer.text()
        await victim.stop()
    old.check(file)
    counts["upgrades"] += 1
    return milliseconds, copy


async def _killed(file: Path, choice: random.Random) -> bool:
    """Starts a migrator and kills it, most times within the few milliseconds of its work; False where it was faster."""
    signal = file.with_name(file.name + "-writer")
    signal.unlink(missing_ok=True)
    victim = await Victim.start(choice.choice((SERVE, MIGRATE)), file)
    async with victim:
        if choice.random() < 0.2:
            await asyncio.sleep(choice.uniform(0, 0.4))
        else:
            deadline = time.monotonic() + 10
            while not signal.exists() and victim.process.returncode is None and time.monotonic() < deadline:  # noqa: ASYNC110  # another process makes it
                await asyncio.sleep(0.0005)
            await asyncio.sleep(choice.uniform(0, 0.12))
        return await victim.kill()


def _is_cut(copy: Path) -> bool:
    """Has the migrator done a part of its work? A look at a copy changes nothing of what the next start finds."""
    with closing(sqlite3.connect(copy)) as connection:
        tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
        if "_yoyo_migration" not in tables:
            return bool(tables)
        applied = connection.execute("select count(*) from _yoyo_migration").fetchone()[0]
        return int(applied) < len(known_migrations(resource("migrations")))


def _schema(file: Path) -> list[Any]:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(
            "select type, name, sql from sqlite_master where name not like '%yoyo%' order by 1, 2"
        ).fetchall()


def _columns(file: Path) -> dict[str, list[str]]:
    with closing(sqlite3.connect(file)) as connection:
        query = "select name from sqlite_master where type = 'table' and name not like '%yoyo%' and name not like 'sqlite_%'"
        tables = [name for (name,) in connection.execute(query)]
        return {table: [row[1] for row in connection.execute(f"pragma table_info({table})")] for table in tables}


def _rows(file: Path, table: str, columns: list[str]) -> list[Any]:
    with closing(sqlite3.connect(file)) as connection:
        return sorted(connection.execute(f"select {', '.join(columns)} from {table}").fetchall(), key=repr)


def _fill(file: Path, number: int) -> None:
    """Writes rows into the tables that the first `number` migrations have made."""
    now = utc_now()
    with closing(connect(file)) as connection:
        connection.execute("begin immediate")
        many = connection.executemany
        tenants = ["tenant_a", "tenant_b", *(f"tenant-{at}" for at in range(20))]
        many("insert into tenants (id, created_at) values (?, ?)", [(each, now) for each in tenants])
        many(
            "insert into api_keys (tenant_id, prefix, hash, created_at) values (?, 'mk_000000', ?, ?)",
            [(each, f"{at:064x}", now) for at, each in enumerate(tenants)],
        )
        if number >= 2:
            owners = [tenants[at % 2] for at in range(_AGENTS)]
            many(
                "insert into tools (id, tenant_id, name, description, created_at, updated_at) values (?, ?, ?, 'd', ?, ?)",
                [(at + 1, owner, f"tool {at}", now, now) for at, owner in enumerate(owners)],
            )
            many("insert into agent_ids (id, tenant_id) values (?, ?)", [(at + 1, owner) for at, owner in enumerate(owners)])
            many(
                "insert into agents (id, tenant_id, name, role, description, created_at, updated_at) "
                "values (?, ?, ?, 'r', 'd', ?, ?)",
                [(at + 1, owner, f"agent {at}", now, now) for at, owner in enumerate(owners)],
            )
            many(
                "insert into agent_tools (tenant_id, agent_id, tool_id) values (?, ?, ?)",
                [(owner, at + 1, (at + step) % _AGENTS + 1) for at, owner in enumerate(owners) for step in (0, 2, 4)],
            )
        if number >= 3:
            many(
                "insert into runs (tenant_id, agent_id, agent_name, model, status, prompt_tokens, completion_tokens, "
                "created_at, duration_ms, task, response, steps, prompt) "
                "values (?, ?, 'n', 'gpt-4o', 'completed', 1, 1, ?, 0, 't', 'r', '[]', ?)",
                [(owners[at % _AGENTS], at % _AGENTS + 1, now, "p" * 500) for at in range(_RUNS)],
            )
        connection.execute("commit")
