"""Migrations, on both engines: up, down, up; crashes between their steps; databases that are not ours."""

import os
import shutil
import sqlite3
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest

from service.resources import resource
from service.storage import migrations, postgresql_migrations
from service.storage.engines import Embedded, Engine, engine_of
from service.storage.migrations import DatabaseInUse, MigrationError, hold, migrate
from service.storage.sqlite import connect
from service.times import utc_now
from tests.support import postgresql
from tests.support.direct import direct
from tests.support.schema import schema

FOLDER = resource("migrations")
NOW = utc_now()

# yoyo knows a migration by its name: one that has been released and is edited would differ between databases, unnoticed
RELEASED: dict[str, dict[str, str]] = {
    "sqlite": {
        "0001_tenants.sql": "fc3a04e2cc242dd9379491a1b52029a0eaaca3f4ebf45de1cd34fd3dbf92b2aa",
        "0002_tools_and_agents.sql": "34526523dd79099c40be002236fa9ae07f634d3c9ce81610b8a7a85c4c276cad",
        "0003_runs.sql": "75c628b1d81560707912366ffbd678e7b1b13417502dd0b7cc1886b3ce6f3619",
        "0004_flat_history.sql": "8b74bd37e7e00f2d529ff442df00f53928b827fb1606545990118028b9e6b7e6",
        "0005_versions.py": "1a0a1be1698dfd79480951f951c50c377a29d292a8ee21ed781e9b7d3e1b4615",
        "0006_kept_answers.sql": "65d5c6bdc98ad483aa5c4d3da35edf99595c0eda816a5a39da0190585095af5c",
        "0007_keys_by_tenant.sql": "55028484469c6ec20b4a2dbf67366dd75b0e45fdbdcc9c8dba8802827500e169",
        "0008_access.py": "26ac24ee0b56fd45f2f0ba15975259e1a20c7a1791a0d863a6a657691d9f7590",
        "0009_usage.sql": "56d6180b1632cf852366bce6a51e51fde49cbd61ce9b9bee447bea31a2a82e69",
    },
    "postgresql": {
        "0001_tenants.sql": "a97ef005816cceba4dc0d76a1eedc2dda987b548427111ca603f3b53df07172b",
        "0002_tools_and_agents.sql": "8297a529904a5e1e342ae15f13fb3df2e0bb228594a1e27b3460a55748075a47",
        "0003_runs.sql": "472e996a7c39e36ff8f61f500aba55733b15c1504123e6d5553e447e5aa89776",
        "0004_kept_answers.sql": "acc8980389f63ac2a8d8bb3f050a003f82a1bd7706f329d1ed1746da840f4f67",
        "0005_access.sql": "04c84a78bb43fad28c310cf8913aa0d20686ffca185e19707fb97ab62f70a71e",
        "0006_usage.sql": "6045d8363ae21608d0dfaab5b460d55a3d7275755eebf6d91e3d2d0d6a4780f9",
        "0007_deletion.sql": "4d714f8b5c19dbfc85e8cf0500debc91dd6bc427cdde9306fbe55c8ca330f19e",
        "0008_times_of_runs.sql": "b3a22ef6dc1d3b0d1f7f75f39ad8ddad3f527ba4fc1b5c9055de0a02b4f69293",
    },
}
IDS = {engine: [name.partition(".")[0] for name in files] for engine, files in RELEASED.items()}
FOLDERS = {"sqlite": FOLDER, "postgresql": FOLDER / "postgresql"}


@pytest.fixture
def fresh(engine: str, tmp_path: Path) -> Path | str:
    """A database that nobody has touched: a file that is not there, or one that is empty on the server."""
    return tmp_path / "fresh.db" if engine == "sqlite" else postgresql.create(f"agent_platform_fresh_{os.getpid()}")


@pytest.fixture
def keeper(fresh: Path | str) -> Engine:
    return engine_of(fresh)


def roll_back(database: Path | str) -> list[str]:
    if isinstance(database, Path):
        return migrations.roll_back(database, FOLDER)
    return postgresql_migrations.roll_back(database, FOLDERS["postgresql"])


@pytest.mark.parametrize("kind", RELEASED)
def test_released_migrations_stay_as_they_were(kind: str) -> None:
    assert {
        file.name: sha256(file.read_bytes()).hexdigest()
        for file in FOLDERS[kind].glob("[0-9]*")
        if ".rollback" not in file.name
    } == RELEASED[kind]


def test_up_down_up_gives_the_same_schema(fresh: Path | str, keeper: Engine, engine: str) -> None:
    with keeper.held():
        assert keeper.migrate(FOLDER) == IDS[engine]
        up = schema(fresh)
        assert keeper.migrate(FOLDER) == []
        assert roll_back(fresh) == IDS[engine][::-1]
        assert [row for row in schema(fresh) if row[0] != "sqlite_sequence"] == []
        assert keeper.migrate(FOLDER) == IDS[engine]
        assert schema(fresh) == up


def test_a_migration_that_was_applied_and_not_recorded_is_applied_again(
    fresh: Path | str, keeper: Engine, engine: str
) -> None:
    with keeper.held():
        keeper.migrate(FOLDER)
        whole = schema(fresh)
        for place, last in enumerate(IDS[engine]):
            with direct(fresh) as beside:
                beside.run("delete from _yoyo_migration where migration_id >= :last", last=last)
                # what a migrator that was killed leaves in yoyo's own lock table
                beside.run("insert into yoyo_lock (locked, ctime, pid) values (1, '2026-01-01', 999999)")
            assert keeper.migrate(FOLDER) == IDS[engine][place:]
            assert schema(fresh) == whole, last


@pytest.mark.embedded
def test_a_lock_that_outlived_its_migrator_goes_even_where_nothing_is_to_be_applied(fresh: Path, keeper: Engine) -> None:
    with keeper.held():
        keeper.migrate(FOLDER)
        with closing(connect(fresh)) as connection:
            connection.execute("insert into yoyo_lock (locked, ctime, pid) values (1, '2026-01-01', 999999)")
            assert keeper.migrate(FOLDER) == []
            assert connection.execute("select count(*) from yoyo_lock").fetchone() == (0,)


def test_a_database_in_which_only_yoyo_began_is_migrated(fresh: Path | str, keeper: Engine, engine: str) -> None:
    with direct(fresh) as beside:
        beside.run("create table yoyo_lock (locked int default 1, ctime timestamp, pid int not null, primary key (locked))")
    with keeper.held():
        assert keeper.migrate(FOLDER) == IDS[engine]


def test_a_database_of_a_newer_version_is_refused_and_left_alone(fresh: Path | str, keeper: Engine) -> None:
    with keeper.held():
        keeper.migrate(FOLDER)
        with direct(fresh) as beside:
            beside.run("insert into _yoyo_migration values ('hash', '9999_future', '2030-01-01')")
        before = schema(fresh)
        for attempt in (keeper.migrate, keeper.check):
            with pytest.raises(MigrationError, match=r"newer version \(it has 9999_future\)"):
                attempt(FOLDER)
        assert schema(fresh) == before


def test_a_database_of_another_program_is_refused_and_left_alone(fresh: Path | str, keeper: Engine) -> None:
    with direct(fresh) as beside:
        beside.run("create table recipes (name text)")
    before = fresh.read_bytes() if isinstance(fresh, Path) else schema(fresh)
    with keeper.held():
        for attempt in (keeper.migrate, keeper.check):
            with pytest.raises(MigrationError, match="another program"):
                attempt(FOLDER)
    assert before == (fresh.read_bytes() if isinstance(fresh, Path) else schema(fresh))


def test_a_database_that_was_not_migrated_is_named_as_such(fresh: Path | str, keeper: Engine) -> None:
    if isinstance(fresh, Path):
        with pytest.raises(MigrationError, match="There is no database"):
            keeper.check(FOLDER)
        fresh.touch()
    with pytest.raises(MigrationError, match=r"not migrated yet \(it lacks 0001_tenants\)"):
        keeper.check(FOLDER)


# what is about files


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


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "mode.db"
    with closing(hold(file)):
        migrate(file, FOLDER)
        assert {each.stat().st_mode & 0o777 for each in tmp_path.iterdir()} == {0o600}


def undo(file: Path, migration: str) -> None:
    """As the version before `migration` would have left the file."""
    with closing(connect(file)) as connection:
        connection.executescript((FOLDER / f"{migration}.rollback.sql").read_text())
        connection.execute("delete from _yoyo_migration where migration_id = ?", (migration,))


def test_times_that_ran_backwards_are_put_in_order_by_the_upgrade(tmp_path: Path) -> None:
    file = tmp_path / "upgrade.db"
    times = ["2026-01-01T00:05:00.000000Z", "2026-01-01T00:04:00.000000Z", "2026-01-01T00:06:00.000000Z"]
    run = {"agent_name": "n", "model": "gpt-4o", "status": "completed", "prompt_tokens": 0, "completion_tokens": 0}
    run |= {"duration_ms": 0, "task": "t", "response": "r", "steps": "[]", "prompt": "p"}
    with closing(hold(file)):
        migrate(file, FOLDER)
        with direct(file) as beside:
            for number, tenant in enumerate("ab", 1):
                beside.add("tenants", id=tenant, created_at=NOW)
                beside.add("agent_ids", tenant_id=tenant, id=number)
            for time in times:
                beside.add("runs", tenant_id="a", agent_id=1, created_at=time, **run)
            beside.add("runs", tenant_id="b", agent_id=2, created_at=times[1], **run)
        undo(file, "0004_flat_history")
        assert migrate(file, FOLDER) == ["0004_flat_history"]
        with direct(file) as beside:
            stored = [time for (time,) in beside.run("select created_at from runs order by id")]
            counts = beside.run("select tenant_id, agent_id, runs from run_counts order by 1, 2")
    assert stored == [times[0], times[0], times[2], times[1]]
    assert counts == [("a", 0, 3), ("a", 1, 3), ("b", 0, 1), ("b", 2, 1)]


def test_the_keys_outlive_the_upgrade_with_their_ids_and_the_id_given_last(tmp_path: Path) -> None:
    file, folder = tmp_path / "upgrade.db", tmp_path / "migrations"
    # what came later added columns to the keys
    shutil.copytree(FOLDER, folder, ignore=lambda _, names: [name for name in names if name[:4] > "0007"])
    key = {"prefix": "mk_000000", "created_at": NOW}
    with closing(hold(file)):
        migrate(file, folder)
        whole = schema(file)
        undo(file, "0007_keys_by_tenant")
        with direct(file) as beside:
            for tenant in "ab":
                beside.add("tenants", id=tenant, created_at=NOW)
            for number in (3, 7, 8):
                beside.add(
                    "api_keys", id=number, tenant_id="ab"[number % 2], hash=f"{number:064x}", label=f"{number}", **key
                )
            beside.run("update api_keys set revoked_at = :now where id = 7", now=NOW)
            with pytest.raises(sqlite3.IntegrityError, match=r"api_keys\.hash"):
                beside.add("api_keys", tenant_id="a", hash=f"{3:064x}", **key)
            # the last id is nobody's any more, and will be nobody's again
            beside.run("delete from api_keys where id = 8")
            before = beside.contents()
            for _ in range(2):
                assert migrate(file, folder) == ["0007_keys_by_tenant"]
                assert beside.contents() == before
                assert schema(file) == whole
                # applied, and not recorded
                beside.run("delete from _yoyo_migration where migration_id = '0007_keys_by_tenant'")
            migrate(file, folder)
            for _ in range(2):
                undo(file, "0007_keys_by_tenant")
                assert beside.contents() == before
            assert migrate(file, folder) == ["0007_keys_by_tenant"]
            beside.add("api_keys", tenant_id="a", hash=f"{9:064x}", **key)
            assert beside.run("select max(id) from api_keys") == [(9,)]
            assert beside.run("pragma integrity_check") == [("ok",)]
            assert beside.run("pragma foreign_key_check") == []


def test_an_embedded_database_is_one_process_and_the_other_is_for_many() -> None:
    assert not Embedded(Path("x.db")).is_shared
    assert engine_of("postgresql://x/y").is_shared
