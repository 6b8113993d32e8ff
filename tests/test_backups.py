"""`agent-platform backup` and `restore`: what is copied and put back, and all that is refused, with nothing changed."""

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.resources import resource
from service.storage import backups
from service.storage.backups import BackupError
from service.storage.engines import engine_of
from service.storage.migrations import hold
from service.storage.queries import load_queries
from service.storage.sqlite import connect
from tests.support import postgresql
from tests.support.command import done, refusal, status
from tests.support.database import migrated
from tests.support.process import ROOT, Service, clean_environment
from tests.support.storage import execute, rows

TIME = "2026-01-01T00:00:00.000000Z"
QUERIES = load_queries(resource("sql"), "sqlite")
FOLDER = resource("migrations")
KEPT = "agent-platform.db.before-restore-"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """The database that a command takes which is told of no other, with the tenant acme and one run."""
    file = migrated(tmp_path / "agent-platform.db")
    add_tenant(file, "acme")
    execute(file, "insert into agent_ids (tenant_id) values ('acme')")
    columns = "tenant_id, agent_id, agent_name, model, status, prompt_tokens, completion_tokens, created_at, duration_ms"
    values = f"'acme', 1, 'Ann', 'gpt-4o', 'completed', 1, 1, '{TIME}', 1, 'Say hello', 'Hello.', '[]', 'p'"
    execute(file, f"insert into runs ({columns}, task, response, steps, prompt) values ({values})")
    return file


@pytest.fixture
def copy(database: Path, tmp_path: Path) -> Path:
    """A backup of it."""
    done("backup", "copy.db")
    return tmp_path / "copy.db"


def add_tenant(database: Path, name: str) -> None:
    execute(database, f"insert into tenants (id, created_at) values ('{name}', '{TIME}')")


def tenants(database: Path) -> list[str]:
    return [name for (name,) in rows(database, "select id from tenants order by id")]


def files(folder: Path) -> dict[str, bytes]:
    """All that there is in a folder, but the files of locks, which are empty."""
    found = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    return {name: text for name, text in found.items() if not name.endswith(("-server", "-writer"))}


def test_a_backup_is_one_file_for_its_owners_eyes_and_says_what_it_holds(database: Path, tmp_path: Path) -> None:
    before = files(tmp_path)
    said = done("backup", "copy.db")
    size = f"{(tmp_path / 'copy.db').stat().st_size / 2**20:.1f} MiB"
    held = f"1 tenant and 1 run, the newest of {TIME}"
    assert said == f"Copied {held} from {database} to {tmp_path / 'copy.db'}: {size}, checked.\n"
    assert files(tmp_path).keys() == before.keys() | {"copy.db"}
    assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600
    assert rows(tmp_path / "copy.db", "select * from runs") == rows(database, "select * from runs")


def test_a_restored_copy_is_what_the_database_was_and_that_is_kept_which_was_there(copy: Path, database: Path) -> None:
    add_tenant(database, "late")
    said = done("restore", "copy.db", "--replace").splitlines()
    assert said[0] == f"Restored 1 tenant and 1 run, the newest of {TIME} from {copy} to {database}."
    assert tenants(database) == ["acme"]
    (kept,) = database.parent.glob(f"{KEPT}*Z")
    assert said[1:] == [f"What was there before is kept as {kept}."]
    assert tenants(kept) == ["acme", "late"]
    assert stat.S_IMODE(database.stat().st_mode) == 0o600
    # and it can be served as ever
    with Service(database) as service:
        assert status(service.origin, "/ready") == 200
        assert rows(database, "pragma journal_mode") == [("wal",)]


def test_a_copy_is_restored_where_nothing_is(copy: Path, tmp_path: Path) -> None:
    for target in ("new.db", "empty.db", "migrated.db"):
        (tmp_path / "empty.db").touch()
        migrated(tmp_path / "migrated.db")
        assert done("restore", "copy.db", "--database", target).count("\n") == 1
        assert tenants(tmp_path / target) == ["acme"]
    assert not list(tmp_path.glob("*before-restore*"))


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A database as a server that was killed leaves it: the tenant stands in the log alone."""
    folder, database = tmp_path / "killed", migrated(tmp_path / "killed.db")
    folder.mkdir()
    with closing(connect(database)) as connection:
        connection.execute(f"insert into tenants (id, created_at) values ('logged', '{TIME}')")
        for suffix in ("", "-wal"):
            shutil.copy(f"{database}{suffix}", folder / f"agent-platform.db{suffix}")
    return folder / "agent-platform.db"


def test_the_log_of_the_old_database_is_kept_with_it_and_never_taken_for_the_new_ones(copy: Path, killed: Path) -> None:
    done("restore", "copy.db", "--replace", "--database", str(killed))
    (kept,) = killed.parent.glob(f"{KEPT}*Z")
    assert files(killed.parent).keys() == {killed.name, kept.name}
    assert tenants(kept) == ["logged"]
    assert tenants(killed) == ["acme"]


def test_a_damaged_database_is_replaced_and_kept_as_it_is_with_its_log(copy: Path, killed: Path) -> None:
    damaged, log = b"no database" * 1_000, killed.with_name("agent-platform.db-wal").read_bytes()
    killed.write_bytes(damaged)
    assert "--replace" in refusal(1, "restore", "copy.db", "--database", str(killed))
    done("restore", "copy.db", "--replace", "--database", str(killed))
    left = files(killed.parent)
    assert {name.rpartition("Z")[2]: text for name, text in left.items() if name.startswith(KEPT)} == {
        "": damaged,
        "-wal": log,
    }
    assert len(left) == 3
    assert tenants(killed) == ["acme"]


def test_a_copy_of_an_older_version_is_restored_and_migrated(database: Path, tmp_path: Path) -> None:
    execute(database, "delete from _yoyo_migration where migration_id = '0007_keys_by_tenant'")
    done("backup", "copy.db")
    said = done("restore", "copy.db", "--database", "new.db")
    assert "lacks 0007_keys_by_tenant, which `migrate` adds" in said
    done("migrate", "--database", "new.db")
    assert tenants(tmp_path / "new.db") == ["acme"]


def test_a_newer_database_gives_way_to_the_backup_that_was_made_before_it(copy: Path, database: Path) -> None:
    execute(database, "insert into _yoyo_migration values ('0', '9999_flying', '2099-01-01')")
    assert "newer version" in refusal(1, "backup", "newer.db")
    done("restore", "copy.db", "--replace")
    assert done("tenants", "list").count("acme") == 1


def test_a_copy_that_another_tool_made_is_served_in_the_right_mode(database: Path, tmp_path: Path) -> None:
    with closing(connect(database)) as connection:
        connection.execute("vacuum into 'copy.db'")
    done("restore", "copy.db", "--database", "new.db")
    assert rows(tmp_path / "new.db", "pragma journal_mode") == [("wal",)]


def test_a_file_that_is_there_is_replaced_only_if_asked_and_when_the_copy_is_whole(
    copy: Path, database: Path, tmp_path: Path
) -> None:
    add_tenant(database, "late")
    before = files(tmp_path)
    assert refusal(1, "backup", "copy.db") == (f"{copy} is there already; choose another name, or say --overwrite.")
    assert files(tmp_path) == before
    done("backup", "copy.db", "--overwrite")
    assert tenants(copy) == ["acme", "late"]
    damage(database)
    good = copy.read_bytes()
    assert "is damaged" in refusal(1, "backup", "copy.db", "--overwrite")
    assert copy.read_bytes() == good
    assert files(tmp_path).keys() == before.keys()


def damage(database: Path) -> None:
    """Writes over what stands in the middle of the file: the page of an index or a table."""
    with closing(sqlite3.connect(database)) as connection:
        (page,) = connection.execute("select rootpage from sqlite_master where name = 'runs_by_agent'").fetchone()
        (size,) = connection.execute("pragma page_size").fetchone()
    with database.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\0" * size)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("nowhere/copy.db", "The folder {folder}/nowhere does not exist"),
        ("agent-platform.db", "{folder}/agent-platform.db belongs to the database itself"),
        ("agent-platform.db-wal", "belongs to the database itself"),
        ("agent-platform.db-server", "belongs to the database itself"),
        ("x" * 300, "can't be written: File name too long"),
        ("/dev/null", "/dev/null is no file"),
    ],
)
def test_a_target_that_no_copy_can_stand_at_is_one_line(database: Path, tmp_path: Path, target: str, says: str) -> None:
    before = files(tmp_path)
    assert says.format(folder=tmp_path) in refusal(1, "backup", target, "--overwrite")
    assert files(tmp_path) == before
    assert not Path("/dev/null").is_file()


def test_a_database_that_is_served_is_no_target(database: Path, tmp_path: Path) -> None:
    other = migrated(tmp_path / "other.db")
    before = other.read_bytes()
    with closing(hold(other)):
        assert not other.with_name("other.db-wal").exists()
        assert "other.db is a database that is served" in refusal(1, "backup", "other.db", "--overwrite")
    assert other.read_bytes() == before


@pytest.mark.parametrize("is_there", [True, False])
def test_a_log_that_was_left_spoils_no_copy(database: Path, killed: Path, is_there: bool) -> None:
    if not is_there:
        killed.unlink()
    before = files(killed.parent)
    said = refusal(1, "backup", str(killed), "--overwrite")
    assert "its log agent-platform.db-wal is beside it, and would spoil the copy" in said
    assert files(killed.parent) == before


def test_a_file_with_a_second_name_is_no_target(copy: Path, database: Path, tmp_path: Path) -> None:
    (tmp_path / "second.db").hardlink_to(copy)
    assert "copy.db has a second name (a hard link)" in refusal(1, "backup", "copy.db", "--overwrite")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_backup_that_is_stopped_leaves_nothing_or_what_the_next_one_takes_away(
    database: Path, tmp_path: Path, number: signal.Signals
) -> None:
    stopped = f"""
import os, signal
from service.__main__ import main
from service.storage import backups
# what these tests are run by may ignore it, as nohup does
signal.signal(signal.SIGHUP, signal.SIG_DFL)
backups.contents_of = lambda *_, **__: os.kill(os.getpid(), {int(number)})
main(["backup", "stopped.db"])
"""
    before = files(tmp_path)
    code = subprocess.run(
        [sys.executable, "-c", stopped], env=clean_environment(PYTHONPATH=str(ROOT)), check=False
    ).returncode
    assert code == (128 + number if number is not signal.SIGKILL else -number)
    left = files(tmp_path).keys() - before.keys()
    assert all(name.startswith(".agent-platform-") for name in left)
    assert bool(left) is (number is signal.SIGKILL)
    with backups._unfinished(tmp_path / "beside.db"):
        # what is being made at this moment stays
        done("backup", "whole.db")
        assert len(list(tmp_path.glob(".agent-platform-*.part"))) == 1
    assert files(tmp_path).keys() - before.keys() == {"whole.db"}


def test_what_root_restores_is_the_owners(
    copy: Path, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners: list[tuple[str, int, int]] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", lambda file, *who: owners.append((file.name, *who)))
    engine_of(database).restore(copy, FOLDER, QUERIES, replace=True)
    found = database.stat()
    assert set(owners) >= {(f"agent-platform.db{each}", found.st_uid, found.st_gid) for each in ("", "-server", "-writer")}


def test_two_restores_of_one_second_keep_both(copy: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Now(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime(2026, 1, 1, tzinfo=UTC)

    monkeypatch.setattr(backups, "datetime", Now)
    kept = [engine_of(database).restore(copy, FOLDER, QUERIES, replace=True).kept for _ in range(3)]
    assert [each.name for each in kept if each] == [f"{KEPT}20260101T000000Z{more}" for more in ("", "-2", "-3")]


def test_a_folder_is_no_target_and_no_backup(database: Path) -> None:
    for command in ("backup", "restore"):
        assert "is a directory" in refusal(2, command, ".")
    assert "'FILE'" in refusal(2, "backup")


def test_what_is_no_database_of_ours_is_not_backed_up(tmp_path: Path) -> None:
    (tmp_path / "letter.db").write_text("Dear Ann, " * 1_000)
    (tmp_path / "empty.db").touch()
    with closing(sqlite3.connect("notes.db")) as connection:
        connection.execute("create table notes (body text)")
    before = files(tmp_path)
    for name, says in (
        ("missing.db", "There is no database"),
        ("letter.db", "can't be read as a database"),
        ("empty.db", "holds nothing yet"),
        ("notes.db", "is a database of another program"),
    ):
        assert says in refusal(1, "backup", "copy.db", "--database", name)
    assert files(tmp_path) == before


def made_worse(copy: Path, how: str) -> Path:
    """A file that is not, or no longer, a backup of ours."""
    file = copy.with_name("worse.db")
    if how == "foreign":
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("create table notes (body text)")
        return file
    text = copy.read_bytes()
    file.write_bytes({"empty": b"", "letter": b"Dear Ann, " * 1_000, "half": text[: len(text) // 2]}.get(how, text))
    if how == "damaged":
        damage(file)
    elif how == "dangling":
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            connection.execute("delete from tenants")
    elif how == "newer":
        execute(file, "insert into _yoyo_migration values ('0', '9999_flying', '2099-01-01')")
    elif how == "logged":
        file.with_name("worse.db-wal").write_bytes(b"x")
    return file


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("empty", "is no backup: it is empty, or the database of another program"),
        ("foreign", "is no backup: it is empty, or the database of another program"),
        ("letter", "can't be read as a database"),
        ("half", "malformed"),
        ("damaged", "is damaged: "),
        ("dangling", "is damaged: a row of"),
        ("newer", "was migrated by a newer version"),
        ("logged", "has a log beside it, worse.db-wal"),
    ],
)
def test_what_is_no_whole_backup_is_not_restored(copy: Path, tmp_path: Path, how: str, says: str) -> None:
    worse = made_worse(copy, how)
    before = files(tmp_path)
    for options in (["--replace"], ["--database", "new.db"]):
        said = refusal(1, "restore", "worse.db", *options)
        assert says in said
        assert str(worse) in said
    assert files(tmp_path) == before


def test_a_restore_that_is_refused_changes_nothing(copy: Path, database: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect("notes.db")) as connection:
        connection.execute("create table notes (body text)")
    before = files(tmp_path)
    for arguments, says in (
        (["copy.db"], "isn't empty; choose another one, or say --replace"),
        (["copy.db", "--replace", "--database", "notes.db"], "is a database of another program"),
        (["agent-platform.db", "--replace"], "is the database itself"),
        (["/dev/null", "--replace"], "is no file"),
    ):
        assert says in refusal(1, "restore", *arguments)
    assert "does not exist" in refusal(2, "restore", "missing.db", "--replace")
    assert files(tmp_path) == before


def test_a_database_that_is_served_is_backed_up_and_not_replaced(copy: Path, database: Path, tmp_path: Path) -> None:
    with Service(database) as service:
        assert "is in use by another server" in refusal(1, "restore", "copy.db", "--replace")
        done("backup", "served.db")
        assert status(service.origin, "/ready") == 200
    assert tenants(tmp_path / "served.db") == ["acme", "tenant_a", "tenant_b"]
    assert not list(tmp_path.glob("*before-restore*"))


def test_a_database_that_another_command_has_open_is_not_replaced(
    copy: Path, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impatient(file: Path) -> sqlite3.Connection:
        connection = connect(file)
        connection.execute("pragma busy_timeout = 10")
        return connection

    monkeypatch.setattr(backups, "connect", impatient)
    with closing(hold(database)), closing(connect(database)) as other:
        other.execute("select * from tenants").fetchall()
        before = files(tmp_path)
        with pytest.raises(BackupError, match="in use by another command"):
            backups.put_back(database, copy, replace=True)
        assert files(tmp_path).keys() == before.keys()
        assert other.execute("select id from tenants").fetchall() == [("acme",)]


@pytest.mark.parametrize(
    ("fails", "error", "raised"),
    [
        ("_copy", sqlite3.OperationalError("database or disk is full"), BackupError),
        ("_flush", OSError(28, "No space left on device"), BackupError),
        ("contents_of", KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_copy_that_does_not_get_whole_leaves_nothing(
    database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: str,
    error: BaseException,
    raised: type[Exception],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(backups, fails, fail)
    before = files(tmp_path)
    with pytest.raises(raised):
        backups.back_up(database, tmp_path / "copy.db", FOLDER, QUERIES, overwrite=False, progress=lambda *_: None)
    assert files(tmp_path) == before


def test_a_disk_without_room_for_the_restored_database_leaves_the_old_one(
    copy: Path, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    before = files(tmp_path)
    for target in (database, tmp_path / "new.db"):
        with pytest.raises(BackupError, match="No space left on device"):
            engine_of(target).restore(copy, FOLDER, QUERIES, replace=True)
    assert files(tmp_path) == before


def test_what_is_committed_during_a_copy_is_not_in_it_and_it_does_not_begin_anew(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backups, "_STEP", 1)
    seen: list[tuple[int, int]] = []

    def commit(done: int, total: int) -> None:
        seen.append((done, total))
        add_tenant(database, f"late-{len(seen)}")

    backups.back_up(database, tmp_path / "copy.db", FOLDER, QUERIES, overwrite=False, progress=commit)
    assert [done for done, _ in seen] == [*range(1, seen[-1][1] + 1)]
    assert len(seen) > 20
    assert tenants(tmp_path / "copy.db") == ["acme"]
    assert len(tenants(database)) == len(seen) + 1


@pytest.mark.skipif(postgresql.server() is None, reason=postgresql.HOW_TO_RUN)
def test_on_postgresql_the_tools_of_its_own_are_named_without_the_password(tmp_path: Path) -> None:
    url = "postgresql://postgres:hunter2@db.example:5433/platform"
    (tmp_path / "a copy.dump").touch()
    for command, tool in (
        ("backup", f"pg_dump --format=custom --file='{tmp_path}/a copy.dump' postgresql://db.example:5433/platform"),
        (
            "restore",
            "pg_restore --clean --if-exists --no-owner --single-transaction --dbname=postgresql://db.example:5433/platform "
            f"'{tmp_path}/a copy.dump'",
        ),
    ):
        said = refusal(1, command, "a copy.dump", "--database", url)
        assert tool in said
        assert "hunter2" not in said
