"""Migrations: up, down, up; crashes between their steps; databases that are not ours; checks that match the contract."""

import sqlite3
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from service.resources import resource
from service.storage.migrations import DatabaseInUse, MigrationError, check, hold, migrate, roll_back
from service.storage.sqlite import connect
from service.times import utc_now
from tests.support.contract import Contract

FOLDER = resource("migrations")
NOW = utc_now()

# yoyo knows a migration by its name: one that has been released and is edited would differ between databases, unnoticed
RELEASED: dict[str, str] = {
    "0001_tenants.sql": "fc3a04e2cc242dd9379491a1b52029a0eaaca3f4ebf45de1cd34fd3dbf92b2aa",
    "0002_tools_and_agents.sql": "34526523dd79099c40be002236fa9ae07f634d3c9ce81610b8a7a85c4c276cad",
    "0003_runs.sql": "75c628b1d81560707912366ffbd678e7b1b13417502dd0b7cc1886b3ce6f3619",
    "0004_flat_history.sql": "8b74bd37e7e00f2d529ff442df00f53928b827fb1606545990118028b9e6b7e6",
    "0005_versions.py": "1a0a1be1698dfd79480951f951c50c377a29d292a8ee21ed781e9b7d3e1b4615",
    "0006_kept_answers.sql": "65d5c6bdc98ad483aa5c4d3da35edf99595c0eda816a5a39da0190585095af5c",
}
IDS = [name.partition(".")[0] for name in RELEASED]


def schema(path: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(
            "select name, sql from sqlite_master where name not like '%yoyo%' order by name"
        ).fetchall()


def test_up_down_up_gives_the_same_schema(tmp_path: Path) -> None:
    file = tmp_path / "stairs.db"
    with closing(hold(file)):
        applied = migrate(file, FOLDER)
        assert applied == IDS
        up = schema(file)
        assert migrate(file, FOLDER) == []
        assert roll_back(file, FOLDER) == applied[::-1]
        assert [name for name, _ in schema(file) if name != "sqlite_sequence"] == []
        assert migrate(file, FOLDER) == applied
        assert schema(file) == up


@pytest.mark.parametrize("last", IDS)
def test_a_migration_that_was_applied_and_not_recorded_is_applied_again(tmp_path: Path, last: str) -> None:
    file = tmp_path / "killed.db"
    with closing(hold(file)):
        migrate(file, FOLDER)
        with closing(connect(file)) as connection:
            connection.execute("delete from _yoyo_migration where migration_id >= ?", (last,))
            # what a migrator that was killed leaves in yoyo's own lock table
            connection.execute("insert into yoyo_lock (locked, ctime, pid) values (1, '2026-01-01', 999999)")
        whole = schema(file)
        assert migrate(file, FOLDER)[0] == last
        assert schema(file) == whole


def test_a_lock_that_outlived_its_migrator_goes_even_where_nothing_is_to_be_applied(tmp_path: Path) -> None:
    file = tmp_path / "killed.db"
    with closing(hold(file)):
        migrate(file, FOLDER)
        with closing(connect(file)) as connection:
            connection.execute("insert into yoyo_lock (locked, ctime, pid) values (1, '2026-01-01', 999999)")
            assert migrate(file, FOLDER) == []
            assert connection.execute("select count(*) from yoyo_lock").fetchone() == (0,)


def test_a_file_in_which_only_yoyo_began_is_migrated(tmp_path: Path) -> None:
    file = tmp_path / "begun.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(
            "create table yoyo_lock (locked int default 1, ctime timestamp, pid int not null, primary key (locked))"
        )
    with closing(hold(file)):
        assert migrate(file, FOLDER) == IDS


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "newer.db"
    with closing(hold(file)):
        migrate(file, FOLDER)
        with closing(connect(file)) as connection:
            connection.execute("insert into _yoyo_migration values ('hash', '9999_future', '2030-01-01')")
        with pytest.raises(MigrationError, match=r"newer version \(it has 9999_future\)"):
            migrate(file, FOLDER)


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "other.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("create table recipes (name text)")
    before = file.read_bytes()
    with closing(hold(file)), pytest.raises(MigrationError, match="another program"):
        migrate(file, FOLDER)
    assert file.read_bytes() == before


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a database, but a text that is longer than the header of one would be; it goes on and on. " * 20)
    before = file.read_bytes()
    with closing(hold(file)), pytest.raises(MigrationError, match="can't be read as a database"):
        migrate(file, FOLDER)
    assert file.read_bytes() == before


def test_a_second_holder_of_a_file_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "held.db"
    first = hold(file)
    with pytest.raises(DatabaseInUse, match="in use by another server"):
        hold(file)
    first.close()
    hold(file).close()


def test_an_unmigrated_or_missing_database_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match="There is no database"):
        check(tmp_path / "missing.db", FOLDER)
    file = tmp_path / "empty.db"
    file.touch()
    with pytest.raises(MigrationError, match=r"not migrated yet \(it lacks 0001_tenants\)"):
        check(file, FOLDER)


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "mode.db"
    with closing(hold(file)):
        migrate(file, FOLDER)
        assert {each.stat().st_mode & 0o777 for each in tmp_path.iterdir()} == {0o600}


def test_released_migrations_stay_as_they_were() -> None:
    assert {
        file.name: sha256(file.read_bytes()).hexdigest() for file in FOLDER.glob("[0-9]*") if ".rollback" not in file.name
    } == RELEASED


def test_every_table_is_strict(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute(
            "select name, strict from pragma_table_list where schema = 'main' and type = 'table' "
            "and name not like '%yoyo%' and name not like 'sqlite_%'"
        ).fetchall()
    assert len(tables) == 9
    assert {strict for _, strict in tables} == {1}


WHITE_SPACE = [
    chr(code)
    for code in (
        *range(9, 14),
        *range(28, 33),
        0x85,
        0xA0,
        0x1680,
        *range(0x2000, 0x200B),
        0x2028,
        0x2029,
        0x202F,
        0x205F,
        0x3000,
        0xFEFF,
    )
]
GOOD: dict[str, dict[str, Any]] = {
    "tools": {"tenant_id": "a", "name": "n", "description": "d", "created_at": NOW, "updated_at": NOW},
    "agents": {
        "id": 1,
        "tenant_id": "a",
        "name": "n",
        "role": "r",
        "description": "d",
        "created_at": NOW,
        "updated_at": NOW,
    },
    "runs": {
        "tenant_id": "a",
        "agent_id": 1,
        "agent_name": "n",
        "model": "gpt-4o",
        "status": "completed",
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "created_at": NOW,
        "duration_ms": 0,
        "task": "t",
        "response": "r",
        "error": None,
        "steps": "[]",
        "prompt": "p",
    },
}
TEXTS = [("tools", "name", 100), ("tools", "description", 2000), ("agents", "name", 100), ("agents", "role", 100)]
TEXTS += [("agents", "description", 2000), ("runs", "task", 20000), ("runs", "agent_name", 100)]


def insert(connection: sqlite3.Connection, table: str, **changes: Any) -> None:
    row = GOOD[table] | changes
    names = ", ".join(row)
    connection.execute(f"insert into {table} ({names}) values ({', '.join('?' * len(row))})", list(row.values()))


@pytest.fixture
def prepared(path: Path) -> Any:
    with closing(connect(path)) as connection:
        connection.execute("insert into tenants values ('a', ?)", (NOW,))
        connection.execute("insert into agent_ids (tenant_id) values ('a')")
        yield connection


@pytest.mark.parametrize(("table", "column", "most"), TEXTS)
def test_the_database_refuses_the_texts_that_the_api_refuses(
    prepared: sqlite3.Connection, table: str, column: str, most: int
) -> None:
    for text in ("", "x" * (most + 1), "nul\0inside", "".join(WHITE_SPACE), *WHITE_SPACE):
        with pytest.raises(sqlite3.IntegrityError, match=f"{column}_"):
            insert(prepared, table, **{column: text})
    insert(prepared, table, **{column: "🔎" * most})


def test_white_space_is_the_same_to_the_database_and_the_spec(contract: Contract) -> None:
    validator = contract.validator(contract.spec["components"]["schemas"]["Name"])
    migration = (FOLDER / "0002_tools_and_agents.sql").read_text()
    listed = ",".join(str(ord(each)) for each in WHITE_SPACE)
    assert migration.count(f"char({listed})") == 5
    assert [code for code in range(0x11000) if not 0xD800 <= code < 0xE000 and not validator.is_valid(chr(code))] == [
        0,
        *map(ord, WHITE_SPACE),
    ]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"status": "done"}, "status_is_known"),
        ({"status": "failed"}, "answer_fits_the_status"),
        ({"response": None}, "answer_fits_the_status"),
        ({"error": "{}"}, "answer_fits_the_status"),
        ({"status": "failed", "response": None, "error": "no json"}, "error_is_json"),
        ({"steps": "{}"}, "steps_are_a_json_array"),
        ({"prompt_tokens": -1}, "tokens_are_counted"),
        ({"duration_ms": -1}, "duration_is_not_negative"),
        ({"created_at": "2026-11-22 10:00"}, "created_at_is_utc"),
        ({"duration_ms": 1.5}, "INTEGER column"),
        ({"id": 2**53}, "id_fits_a_json_number"),
    ],
)
def test_the_database_refuses_runs_that_can_not_have_happened(
    prepared: sqlite3.Connection, changes: dict[str, Any], rule: str
) -> None:
    with pytest.raises(sqlite3.IntegrityError, match=rule):
        insert(prepared, "runs", **changes)


def test_the_database_refuses_a_fifty_first_tool(prepared: sqlite3.Connection) -> None:
    insert(prepared, "agents")
    for number in range(51):
        insert(prepared, "tools", name=f"tool {number}")
    prepared.executemany("insert into agent_tools values ('a', 1, ?)", [(number,) for number in range(1, 51)])
    with pytest.raises(sqlite3.IntegrityError, match="agent_has_at_most_50_tools"):
        prepared.execute("insert into agent_tools values ('a', 1, 51)")


def test_times_that_ran_backwards_are_put_in_order_by_the_upgrade(tmp_path: Path) -> None:
    file = tmp_path / "upgrade.db"
    times = ["2026-01-01T00:05:00.000000Z", "2026-01-01T00:04:00.000000Z", "2026-01-01T00:06:00.000000Z"]
    with closing(hold(file)):
        migrate(file, FOLDER)
        with closing(connect(file)) as connection:
            connection.execute("insert into tenants values ('a', ?), ('b', ?)", (NOW, NOW))
            connection.execute("insert into agent_ids (tenant_id) values ('a'), ('b')")
            for time in times:
                insert(connection, "runs", created_at=time)
            insert(connection, "runs", tenant_id="b", agent_id=2, created_at=times[1])
            connection.executescript((FOLDER / "0004_flat_history.rollback.sql").read_text())
            connection.execute("delete from _yoyo_migration where migration_id = '0004_flat_history'")
        assert migrate(file, FOLDER) == ["0004_flat_history"]
        with closing(connect(file)) as connection:
            stored = [time for (time,) in connection.execute("select created_at from runs order by id")]
            counts = connection.execute("select tenant_id, agent_id, runs from run_counts order by 1, 2").fetchall()
    assert stored == [times[0], times[0], times[2], times[1]]
    assert counts == [("a", 0, 3), ("a", 1, 3), ("b", 0, 1), ("b", 2, 1)]
