"""`agent-platform copy`: from one database to another and back, interrupted, refused, and compared at the end."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from service.config import Config
from service.resources import resource
from service.storage import copying
from service.storage.copying import Copied, CopyError
from service.storage.engines import engine_of
from service.storage.queries import load_queries
from service.storage.scope import Database
from tests.conftest import KEY_A, KEY_B, Serve
from tests.support import postgresql
from tests.support.command import agent_platform, refusal
from tests.support.database import migrated
from tests.support.http import make_agent, make_tool, run
from tests.support.process import clean_environment
from tests.support.storage import execute, rows

TIME = "2026-01-01T00:00:00.000000Z"
TOOL_COLUMNS = "(tenant_id, id, name, description, created_at, updated_at)"


async def opened(database: Path | str) -> Database:
    engine = engine_of(database)
    return await engine.open(load_queries(resource("sql"), engine.name))


async def move(source: Path | str, target: Path | str, *, resume: bool = False, moved: Callable[[int], None] = id) -> Copied:
    databases = [await opened(source), await opened(target)]
    try:
        return await copying.copy(*databases, resume=resume, moved=moved)
    finally:
        for database in databases:
            await database.close()


@pytest.fixture
def other(engine: str, tmp_path: Path) -> Path | str:
    """An empty database of the other engine."""
    if engine == "postgresql":
        return migrated(tmp_path / "other.db")
    if postgresql.server() is None:
        pytest.skip(postgresql.HOW_TO_RUN)
    return postgresql.emptied()


@pytest.fixture
async def furnished(serve: Serve, config: Config) -> Path | str:
    """A database of two tenants with something in every table, and gaps where the last of each kind has been deleted."""
    client = await serve()
    for key in (KEY_A, KEY_B):
        tools = [(await make_tool(client, name, key, description="日本語 'quoted'\n\"twice\""))["id"] for name in "abc"]
        agents = [(await make_agent(client, name, key, tool_ids=tools[:2]))["id"] for name in ("one", "two")]
        for number in range(4):
            await run(client, agents[0], f"Say a, b and 🔎 {number}", key)
        once = key | {"Idempotency-Key": "once"}
        await client.json("POST", f"/agents/{agents[0]}/run", once, json={"task": "Say it once", "model": "gpt-4o"})
        await client.json("DELETE", f"/tools/{tools[2]}", key)
        await client.json("DELETE", f"/agents/{agents[1]}", key)
    await client.close()
    return config.database


async def answers(serve: Serve, database: Path | str) -> list[object]:
    """What both tenants read of all that they have."""
    client = await serve(Config(database=database))
    read = [
        await client.json("GET", path, key)
        for key in (KEY_A, KEY_B)
        for path in ("/tools", "/agents", "/runs", "/runs?status=completed", "/usage?group_by=day", "/runs/1", "/agents/1")
        if key is KEY_A or path[-1] != "1"
    ]
    await client.close()
    return read


async def test_a_move_there_and_back_keeps_everything(
    serve: Serve, furnished: Path | str, other: Path | str, tmp_path: Path
) -> None:
    # what runs used that are gone is moved, too
    execute(furnished, "delete from runs where task like '%2'")
    before = await answers(serve, furnished)
    there = await move(furnished, other)
    assert there.tenants == 2
    # what both have used is of one day, or of two where midnight came between
    assert there.rows == 38 + rows(furnished, "select count(*) from usage")[0][0]
    assert await answers(serve, other) == before
    back = migrated(tmp_path / "back.db")
    assert await move(other, back) == there
    assert await answers(serve, back) == before


async def test_ids_that_were_given_are_not_given_again_after_a_move(
    serve: Serve, furnished: Path | str, other: Path | str
) -> None:
    await move(furnished, other)
    client = await serve(Config(database=other))
    assert (await make_tool(client, "new"))["id"] == 7
    assert (await make_agent(client, "new"))["id"] == 5
    # and what was answered once is said again
    once = KEY_A | {"Idempotency-Key": "once"}
    response = await client.post("/agents/1/run", headers=once, json={"task": "Say it once", "model": "gpt-4o"})
    assert response.headers["Idempotency-Replayed"] == "true"


async def test_a_move_that_was_interrupted_is_refused_and_resumed(
    furnished: Path | str, other: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bound in ("_BATCH", "_FIRST"):
        monkeypatch.setattr(copying, bound, 2)
    # what it used is in no run, and what triggers count meanwhile is not all
    execute(furnished, "delete from runs where task like '%2'")
    batches = 0

    def interrupt(count: int) -> None:
        nonlocal batches
        batches += 1
        if batches == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await move(furnished, other, moved=interrupt)
    with pytest.raises(CopyError, match="--resume"):
        await move(furnished, other)
    again = 0

    def count_again(count: int) -> None:
        nonlocal again
        again += count

    done = await move(furnished, other, resume=True, moved=count_again)
    # each row is compared at the end; and before that it was there as it should be, or was moved
    assert again == 2 * done.rows


async def test_a_target_that_comes_to_differ_is_found_out_at_the_end(furnished: Path | str, other: Path | str) -> None:
    def change(count: int) -> None:
        if rows(other, "select 1 from kept_answers where tenant_id = 'tenant_b'"):
            execute(other, "update runs set prompt = 'another' where tenant_id = 'tenant_b' and id = 6")

    with pytest.raises(CopyError, match="The tenant tenant_b has other rows in runs"):
        await move(furnished, other, moved=change)


@pytest.mark.parametrize(
    "change",
    [
        f"update tenants set created_at = '{TIME}' where id = 'tenant_b'",
        "update runs set prompt = 'another' where tenant_id = 'tenant_b' and id = 6",
        "delete from kept_answers where tenant_id = 'tenant_a'; delete from runs where tenant_id = 'tenant_a' and id < 3",
        f"insert into tools {TOOL_COLUMNS} values ('tenant_a', 99, 'new', 'x', '{TIME}', '{TIME}')",
    ],
)
async def test_what_no_interrupted_move_has_left_is_not_written_to(
    furnished: Path | str, other: Path | str, change: str
) -> None:
    await move(furnished, other)
    # something is missing, too, that would be written
    for each in ("delete from agent_tools", *change.split("; ")):
        execute(other, each)
    before = everything(other)
    with pytest.raises(CopyError, match="isn't what an interrupted move"):
        await move(furnished, other, resume=True)
    assert everything(other) == before


async def test_a_target_that_another_one_writes_to_meanwhile_is_one_sentence(
    furnished: Path | str, other: Path | str
) -> None:
    def add(count: int) -> None:
        if not rows(other, "select 1 from tenants where id = 'tenant_b'"):
            execute(other, f"insert into tenants (id, created_at) values ('tenant_b', '{TIME}')")
            execute(other, f"insert into tools {TOOL_COLUMNS} values ('tenant_b', 3, 'a', 'x', '{TIME}', '{TIME}')")

    with pytest.raises(CopyError, match="it is written to by others"):
        await move(furnished, other, moved=add)


async def test_large_rows_are_moved_few_at_a_time(
    furnished: Path | str, other: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(furnished, "update runs set prompt = '" + "long " * 10_000 + "'")
    monkeypatch.setattr(copying, "_LARGE", 125_000)
    monkeypatch.setattr(copying, "_FIRST", 1)
    batches: list[int] = []
    await move(furnished, other, moved=batches.append)
    # five runs of each tenant, moved and compared: one to see how large they are, and then two at a time
    assert batches.count(2) >= 8


def everything(database: Path | str) -> list[object]:
    return [rows(database, f"select * from {table} order by 1, 2") for table in ("tenants", *copying._TABLES)]


@pytest.mark.embedded
def test_every_table_and_column_is_moved(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        tables = {
            name
            for (name,) in connection.execute("select name from sqlite_master where type = 'table'")
            if "yoyo" not in name and not name.startswith("sqlite_")
        }
        assert tables == {*copying._TABLES, "tenants", "run_counts"}
        for table in copying._TABLES:
            columns = {row[1] for row in connection.execute(f"pragma table_info({table})")} - {"tenant_id"}
            cursor = connection.execute(
                load_queries(resource("sql"), "sqlite")[f"read_{table}"].sql,
                {"tenant_id": "", "limit": 1, **copying._TABLES[table]},
            )
            assert {column[0] for column in cursor.description} == columns, table


async def test_the_command_moves_and_says_what(furnished: Path | str, other: Path | str) -> None:
    done = agent_platform("copy", "--from", str(furnished), "--to", str(other))
    assert done.returncode == 0, done.stderr
    assert "Moved 2 tenants with " in done.stdout
    assert "both have the checksum" in done.stdout
    again = agent_platform("copy", "--from", str(furnished), "--to", str(other))
    assert (again.returncode, again.stdout) == (1, "")
    assert "The target isn't empty." in again.stderr


async def test_what_can_not_be_moved_is_one_line(furnished: Path | str, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database at all, but long enough to be looked at" * 30)
    for arguments, said in (
        (("--from", str(tmp_path / "missing.db"), "--to", str(tmp_path / "new.db")), "There is no database"),
        (("--from", str(tmp_path / "text.db"), "--to", str(tmp_path / "new.db")), "can't be read as a database"),
        (("--from", str(furnished), "--to", "postgresql://postgres@127.0.0.1:1/nowhere"), "can't be reached"),
        (("--from", str(furnished)), "Missing option '--to'"),
    ):
        done = agent_platform("copy", *arguments)
        assert done.returncode != 0
        assert done.stderr.strip().count("\n") == 0, done.stderr
        assert said in done.stderr


def test_a_database_is_not_moved_to_itself(database: Path | str, tmp_path: Path) -> None:
    if isinstance(database, Path):
        (tmp_path / "other").symlink_to(database)
        other = str(tmp_path / "other")
    else:
        other = f"{database}?application_name=other"
    for more in ((), ("--resume",)):
        said = refusal(1, "copy", "--from", str(database), "--to", other, *more)
        assert said == "--from and --to are the same database."


def test_a_move_whose_target_can_not_be_opened_ends_with_one_line(tmp_path: Path) -> None:
    source, target = migrated(tmp_path / "source.db"), tmp_path / "target.db"
    program = f"""
from service.__main__ import main
from service.errors import Unavailable
from service.storage.sqlite import SqliteDatabase
opened = SqliteDatabase.open
async def once(path, queries):
    if str(path) == {str(target)!r}:
        raise Unavailable
    return await opened(path, queries)
SqliteDatabase.open = once
main(["copy", "--from", {str(source)!r}, "--to", {str(target)!r}])
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], env=clean_environment(), capture_output=True, text=True, timeout=20
    )
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    assert "does not answer" in ended.stderr
