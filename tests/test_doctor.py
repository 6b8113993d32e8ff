"""`agent-platform doctor`: it finds what is wrong, says what to do, and changes nothing."""

import json
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.commands import doctor
from service.config import Config
from service.resources import resource
from service.storage import examination, postgresql_examination
from service.storage.migrations import MigrationError
from tests.support import postgresql
from tests.support.command import agent_platform, done, refusal, status
from tests.support.database import migrated
from tests.support.direct import direct
from tests.support.process import Service
from tests.support.storage import execute, made

TIME = "2099-01-01T00:00:00.000000Z"
LINE = re.compile(r"(ok     |warning|problem)  [A-Z0-9/].*\S")
# what is so on the machine that the tests run on
MACHINE = ("SQLite is", "is a superuser", "fsync")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return migrated(tmp_path / "doctor.db")


@pytest.fixture(scope="module")
def kept() -> dict[str, Path | str]:
    return {}


@pytest.fixture
def served(engine: str, kept: dict[str, Path | str], tmp_path_factory: pytest.TempPathFactory) -> Path | str:
    """A database of this module's on either engine."""
    if engine not in kept:
        kept[engine] = made(engine, tmp_path_factory.mktemp("doctor") / "doctor.db")
    return kept[engine]


def examined(database: Path | str, *options: str) -> tuple[int, list[str]]:
    """The exit code, and all that is not well but for what the machine is to blame for."""
    ended = agent_platform("doctor", "--database", str(database), *options)
    assert ended.stderr == "", ended
    lines = ended.stdout.splitlines()
    assert [line for line in lines if not LINE.fullmatch(line)] == []
    return ended.returncode, [
        line for line in lines if not line.startswith("ok ") and not any(known in line for known in MACHINE)
    ]


def test_beside_a_server_all_is_well_and_nothing_is_changed(served: Path | str) -> None:
    with Service(served) as service:
        before = contents(served)
        assert examined(served) == (0, [])
        assert contents(served) == before
        assert status(service.origin, "/ready") == 200


def contents(database: Path | str) -> object:
    with direct(database) as beside:
        found = beside.contents()
    return (found, sorted(each.name for each in database.parent.iterdir())) if isinstance(database, Path) else found


def test_a_file_that_is_not_served_stays_as_it_is(file: Path) -> None:
    before = file.read_bytes()
    assert examined(file) == (0, [])
    assert file.read_bytes() == before
    assert [each.name for each in file.parent.iterdir()] == ["doctor.db"]


def test_findings_are_told_as_json_too(file: Path) -> None:
    told = json.loads(done("doctor", "--format", "json", "--database", str(file)))
    said = done("doctor", "--database", str(file)).splitlines()
    # but for the time
    assert len(told) == len(said) > 8
    for finding, line in zip(told, said, strict=True):
        assert finding.keys() == {"level", "what", "help"}
        assert line.startswith(finding["level"])
        assert finding["help"] in line
        assert (finding["level"] == "ok") == (finding["help"] == "")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("insert into _yoyo_migration values ('0', '9999_flying', '2099-01-01')", "by a newer version: it has 9999_flying"),
        ("delete from _yoyo_migration where migration_id like '0004%'", "lacks the migration 0004"),
    ],
)
def test_a_database_of_another_version_is_a_problem(served: Path | str, change: str, says: str) -> None:
    with direct(served) as beside:
        (before,) = beside.run("select * from _yoyo_migration where migration_id like '0004%'")
        beside.run(change)
        code, (said,) = examined(served)
        beside.run("delete from _yoyo_migration where migration_id like '9999%' or migration_id like '0004%'")
        beside.run("insert into _yoyo_migration values (:a, :b, :c)", **dict(zip("abc", before, strict=True)))
    assert code == 1
    assert said.startswith("problem  ")
    assert says in said
    assert examined(served) == (0, [])


def broken(file: Path, how: str) -> None:
    if how == "damaged":
        with file.open("r+b") as opened:
            opened.seek(4096 * 5)
            opened.write(b"\0" * 4096)
    elif how == "linked":
        file.with_name("other.db").hardlink_to(file)
    elif how == "readable":
        file.chmod(0o644)
    elif how == "another mode":
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("pragma journal_mode = delete")
    elif how == "dangling":
        with closing(sqlite3.connect(file)) as connection:
            connection.execute(f"insert into agent_ids (tenant_id) values ('nobody') -- {how}")
            connection.commit()
    else:
        execute(file, f"insert into tenants (id, created_at) values ('acme', '{TIME}')")
        execute(file, "insert into agent_ids (tenant_id) values ('acme')")
        columns = "tenant_id, agent_id, agent_name, model, status, prompt_tokens, completion_tokens, created_at, duration_ms"
        values = f"'acme', 1, 'Ann', 'gpt-4o', 'completed', 1, 1, '{TIME}', 1, 'Say hello', 'Hello.', '[]', 'p'"
        execute(file, f"insert into runs ({columns}, task, response, steps, prompt) values ({values})")


@pytest.mark.parametrize(
    ("how", "level", "says"),
    [
        ("damaged", "problem", "is damaged: .*Stop the service, and restore the newest backup"),
        ("dangling", "problem", "is damaged: a row of agent_ids refers to one of tenants that is not there"),
        ("another mode", "warning", "The journal mode is delete.*sqlite3 .*doctor.db 'pragma journal_mode = wal'"),
        ("readable", "problem", "Others than its owner may open the database.*Run: chmod 600 .*doctor.db"),
        ("linked", "problem", r"has a second name \(a hard link\)"),
        ("future", "warning", f"The newest run is of {TIME}, and it is .* now. Set the clock"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_what_to_do(file: Path, how: str, level: str, says: str) -> None:
    broken(file, how)
    code, found = examined(file)
    assert code == (level == "problem")
    assert re.match(f"{level}  .*{says}", found[0])


def test_what_can_not_be_looked_at_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "letter.db").write_text("Dear Ann, " * 1_000)
    with closing(sqlite3.connect(tmp_path / "notes.db")) as connection:
        connection.execute("create table notes (body text)")
    for name, says in (
        ("missing.db", "There is no database"),
        ("letter.db", "can't be read as a database"),
        ("notes.db", "is a database of another program"),
    ):
        assert says in refusal(1, "doctor", "--database", str(tmp_path / name))
    assert {each.name for each in tmp_path.iterdir()} == {"letter.db", "notes.db"}


def test_who_may_not_write_the_database_is_told_so_first(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        error = sqlite3.OperationalError("attempt to write a readonly database")
        error.sqlite_errorcode = sqlite3.SQLITE_READONLY_DIRECTORY
        raise error

    # who may do everything is refused nothing
    monkeypatch.setattr(examination.os, "access", lambda path, how: path != file)
    monkeypatch.setattr("service.storage.migrations.connect", refused)
    found = examination.examine(file, resource("migrations"), {})
    assert next(found) == examination.problem(
        f"This user may not write {file}.", "Run this, and the service, as the database's owner."
    )
    with pytest.raises(MigrationError, match=r"can't be opened \(attempt to write a readonly database\): this user may not"):
        next(found)


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--host", "0.0.0.0", "--demo"), 1, ["problem  On 0.0.0.0, whoever reaches this machine may use the demo keys"]),
        (("--host", "0.0.0.0"), 0, []),
        (("--limiter", "redis://:hunter2@127.0.0.1:1"), 1, ["problem  The shared limiter does not answer (Error 111"]),
        (
            ("--limiter", "redis://127.0.0.1:1", "--limiter-fallback", "local"),
            0,
            ["warning  The shared limiter does not answer (Error 111"],
        ),
        (("--workers", "2"), 1, ["problem  Together these options are not served: more than one worker wants a database"]),
        (
            ("--port", "8123", "--metrics-port", "8123"),
            1,
            ["problem  Together these options are not served: --metrics-port"],
        ),
        (("--concurrency", "100000000"), 2, []),
    ],
)
def test_what_a_service_of_these_options_would_do_is_told(
    file: Path, options: tuple[str, ...], code: int, says: list[str]
) -> None:
    if code == 2:
        assert "'--concurrency'" in refusal(2, "doctor", "--database", str(file), *options)
        return
    ended, found = examined(file, *options)
    assert ended == code
    assert [line[: len(said)] for line, said in zip(found, says, strict=True)] == says
    assert "hunter2" not in "".join(found)


def test_a_limiter_that_answers_is_well_and_counts_nothing(file: Path, store: str) -> None:
    assert "ok       The shared limiter answers.\n" in done("doctor", "--database", str(file), "--limiter", store)


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ((3, 40, 1), "warning"),
        ((3, 44, 5), "warning"),
        ((3, 44, 6), "ok"),
        ((3, 45, 0), "warning"),
        ((3, 50, 6), "warning"),
        ((3, 50, 7), "ok"),
        ((3, 51, 2), "warning"),
        ((3, 51, 3), "ok"),
        ((3, 52, 0), "ok"),
        ((4, 0, 0), "ok"),
    ],
)
def test_the_versions_of_sqlite_that_may_damage_a_file_are_known(version: tuple[int, ...], level: str) -> None:
    assert examination._sqlite(version).level == level


def test_a_disk_that_is_nearly_full_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(file)
    with file.open("r+b") as opened:
        opened.truncate(2**30)
    for free, level in ((2**31, "ok"), (2**29, "warning"), (2**25, "problem")):
        assert examination._space(file, usage._replace(free=free).free).level == level


@pytest.mark.parametrize(("year", "level"), [(1970, "problem"), (2026, "ok"), (2030, "ok"), (2106, "problem")])
def test_a_clock_that_can_not_be_right_is_a_problem(year: int, level: str) -> None:
    assert doctor._clock(datetime(year, 6, 1, tzinfo=UTC)).level == level


def test_too_few_open_files_are_told() -> None:
    for most, level in ((1_024, "warning"), (4_096, "ok"), (-1, "ok")):
        assert doctor._files(Config(concurrency=512), most).level == level


# PostgreSQL


@pytest.fixture
def beside_shared(shared_database: str) -> Iterator[str]:
    yield shared_database
    execute(shared_database, "alter table runs enable row level security, force row level security")


def test_a_table_without_forced_row_level_security_is_a_problem(beside_shared: str) -> None:
    execute(beside_shared, "alter table runs no force row level security")
    assert examined(beside_shared) == (
        1,
        [
            "problem  Row-level security is not forced on runs. "
            "Run: alter table runs enable row level security, force row level security"
        ],
    )


@pytest.mark.parametrize(
    ("broken", "mended", "says"),
    [
        (
            "create policy leak on tools to agent_platform_tenant using (true)",
            "drop policy leak on tools",
            "problem  Which rows each role sees is not as this version has it: leak on tools. Run: {mended}",
        ),
        (
            "drop policy its_own on tools",
            "create policy its_own on tools to agent_platform_tenant "
            "using ((tenant_id = current_setting('agent_platform.tenant_id'::text, true)))",
            "problem  Which rows each role sees is not as this version has it: its_own on tools. Run: {mended}",
        ),
        (
            "drop policy noted on audit_log",
            "create policy noted on audit_log for insert to agent_platform_operator with check (true)",
            "problem  Which rows each role sees is not as this version has it: noted on audit_log. Run: {mended}",
        ),
        (
            "revoke select, update on tools from agent_platform_tenant",
            "grant select on tools to agent_platform_tenant; grant update on tools to agent_platform_tenant",
            "problem  The roles lack rights, as after a restore without them: agent_platform_tenant tools select, "
            "agent_platform_tenant tools update. Run: {mended}",
        ),
        (
            "revoke execute on function not_before_the_last_run from agent_platform_tenant, public",
            "grant execute on function not_before_the_last_run(text, text) to agent_platform_tenant",
            "problem  The roles lack rights, as after a restore without them: "
            "agent_platform_tenant function not_before_the_last_run(text, text) execute. Run: {mended}",
        ),
    ],
    ids=("a policy more", "a policy less", "nothing can be noted", "no rights", "a function less"),
)
def test_what_the_roles_see_and_may_do_is_told_where_it_has_changed(
    shared_database: str, broken: str, mended: str, says: str
) -> None:
    execute(shared_database, broken)
    try:
        ended = examined(shared_database)
    finally:
        for statement in mended.split("; "):
            execute(shared_database, statement)
    assert ended == (1, [says.format(mended=mended)])
    assert examined(shared_database) == (0, [])


def test_a_limit_of_connections_that_is_too_small_is_a_problem(shared_database: str) -> None:
    name = shared_database.rpartition("/")[2]
    execute(shared_database, f'alter database "{name}" connection limit 5')
    try:
        code, (said,) = examined(shared_database)
    finally:
        execute(shared_database, f'alter database "{name}" connection limit -1')
    assert code == 1
    assert re.match(
        r"problem  1 worker may want 9 connections, and there are \d+, of which this .* may have 5\. Raise it", said
    )


def test_more_workers_than_connections_are_a_problem(shared_database: str, store: str) -> None:
    code, (said,) = examined(shared_database, "--workers", "900", "--limiter", store)
    assert code == 1
    assert re.match(r"problem  900 workers may want 7201 connections, and there are \d+\. Raise max_connections", said)


def test_two_clocks_that_differ_are_told(shared_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with direct(shared_database) as beside:
        assert postgresql_examination._clock(beside._connection).level == "ok"
        now = postgresql_examination.time.time
        monkeypatch.setattr(postgresql_examination.time, "time", lambda: now() + 60)
        assert "60 s apart" in postgresql_examination._clock(beside._connection).what


def test_an_index_that_is_not_valid_is_a_problem(shared_database: str) -> None:
    execute(shared_database, "update pg_index set indisvalid = false where indexrelid = 'runs_by_agent'::regclass")
    try:
        code, (said,) = examined(shared_database)
    finally:
        execute(shared_database, "update pg_index set indisvalid = true where indexrelid = 'runs_by_agent'::regclass")
    assert code == 1
    assert "Not valid: the index runs_by_agent. Run `reindex index NAME`" in said


@pytest.mark.skipif(postgresql.server() is None, reason=postgresql.HOW_TO_RUN)
def test_a_server_that_is_away_is_one_line_without_the_password() -> None:
    said = refusal(1, "doctor", "--database", "postgresql://postgres:hunter2@127.0.0.1:1/x")
    assert "can't be reached" in said
    assert "hunter2" not in said
