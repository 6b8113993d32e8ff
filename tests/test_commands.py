"""The commands that look after a database, on both engines; and the databases that they refuse, each in one line."""

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.storage.engines import engine_of
from tests.support import postgresql
from tests.support.command import agent_platform, ask, create_key, done, refusal, status
from tests.support.direct import direct
from tests.support.process import Service, clean_environment
from tests.support.schema import schema
from tests.support.storage import made

needs_postgresql = pytest.mark.skipif(postgresql.server() is None, reason=postgresql.HOW_TO_RUN)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a command makes by default, it makes in a folder that goes away."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def kept() -> dict[str, Path | str]:
    """The databases of this module."""
    return {}


@pytest.fixture
def database(engine: str, kept: dict[str, Path | str], tmp_path_factory: pytest.TempPathFactory) -> Path | str:
    """A migrated database with the tenant acme, which no server holds; all tests of this module share it."""
    if engine not in kept:
        kept[engine] = made(engine, tmp_path_factory.mktemp("commands") / "commands.db")
        done("tenants", "create", "acme", "--database", str(kept[engine]))
    return kept[engine]


@pytest.fixture
def fresh(engine: str, tmp_path: Path) -> Path | str:
    """A database that nobody has touched."""
    return tmp_path / "fresh.db" if engine == "sqlite" else postgresql.create(f"agent_platform_fresh_{os.getpid()}")


def contents(database: Path | str) -> dict[str, list[Any]]:
    with direct(database) as beside:
        return beside.contents()


def whole(database: Path | str) -> Any:
    """All that a command must not touch: a file's bytes, or tables and their rows."""
    return database.read_bytes() if isinstance(database, Path) else (schema(database), contents(database))


def test_migrate_makes_the_database_and_then_has_nothing_to_do(fresh: Path | str) -> None:
    assert done("migrate", "--database", str(fresh)).startswith("Applied 0001_tenants, ")
    before = whole(fresh)
    assert done("migrate", "--database", str(fresh)) == "Nothing to apply: the database is up to date.\n"
    assert whole(fresh) == before


def test_tenants_are_created_once_and_listed(database: Path | str) -> None:
    at = ("--database", str(database))
    assert done("tenants", "create", "Beta.2-x_y", *at) == "Created the tenant Beta.2-x_y.\n"
    assert refusal(1, "tenants", "create", "Beta.2-x_y", *at) == "The tenant Beta.2-x_y exists already."
    head, *rows = done("tenants", "list", *at).splitlines()
    assert head.split() == ["TENANT", "KEYS", "LIMIT", "CREATED", "DISABLED"]
    # byte by byte: capitals come first
    assert [row.split()[0] for row in rows][:2] == ["Beta.2-x_y", "acme"]
    assert all(re.fullmatch(r"\S+ +\d+ +as the server says +\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z +-", row) for row in rows)


def test_a_key_is_printed_once_and_kept_nowhere(database: Path | str) -> None:
    key, key_id = create_key(database, "acme", "--label", "for the tests")
    listed = done("keys", "list", "--tenant", "acme", "--database", str(database))
    assert re.search(rf"^{key_id} +{key[:9]}… +for the tests +keys,read,run,write +\S+Z +- +- +-$", listed, re.MULTILINE)
    assert key[:10] not in listed
    if isinstance(database, Path):
        files = list(database.parent.glob(f"{database.name}*"))
        assert database in files
        kept = b"".join(file.read_bytes() for file in files)
    else:
        kept = repr(contents(database)).encode()
    assert key[:9].encode() in kept
    assert key.encode() not in kept
    assert key[9:].encode() not in kept


def test_every_key_is_another_one(database: Path | str) -> None:
    (first, first_id), (second, second_id) = create_key(database), create_key(database)
    assert first != second
    assert int(first_id) < int(second_id)


def test_keys_are_listed_by_tenant_and_stay_in_the_list_when_revoked(database: Path | str) -> None:
    at = ("--database", str(database))
    done("tenants", "create", "gamma", *at)
    ids = [create_key(database, "gamma")[1] for _ in range(2)]
    revoked = done("keys", "revoke", ids[0], *at)
    assert re.fullmatch(rf"Revoked the key {ids[0]} \(mk_\w{{6}}…\) of the tenant gamma\.\n", revoked)
    head, *rows = done("keys", "list", "--tenant", "gamma", *at).splitlines()
    assert head.split() == ["ID", "KEY", "LABEL", "SCOPES", "CREATED", "EXPIRES", "LAST", "USED", "REVOKED"]
    assert [row.split()[0] for row in rows] == ids
    assert [row.split()[-1] == "-" for row in rows] == [False, True]
    assert re.search(r"^gamma +1 ", done("tenants", "list", *at), re.MULTILINE)
    assert done("keys", "revoke", ids[0], *at) == revoked
    assert done("keys", "list", "--tenant", "gamma", *at).splitlines() == [head, *rows]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["keys", "create", "--tenant", "nobody"], "no tenant 'nobody'"),
        (["keys", "list", "--tenant", "nobody"], "no tenant 'nobody'"),
        (["keys", "revoke", "999999"], "999999"),
    ],
    ids=["a key of an unknown tenant", "keys of an unknown tenant", "an unknown key"],
)
def test_what_is_not_there_is_one_line_that_names_it(arguments: list[str], names: str, database: Path | str) -> None:
    before = contents(database)
    assert names in refusal(2, *arguments, AGENT_PLATFORM_DATABASE=str(database))
    assert contents(database) == before
    assert not any(Path().iterdir())


def test_commands_take_their_options_from_the_environment(fresh: Path | str) -> None:
    variables = {
        "AGENT_PLATFORM_DATABASE": str(fresh),
        "AGENT_PLATFORM_TENANT": "acme",
        "AGENT_PLATFORM_LABEL": "from the environment",
    }
    done("migrate", **variables)
    done("tenants", "create", "acme", **variables)
    assert agent_platform("keys", "create", **variables).returncode == 0
    assert "from the environment" in done("keys", "list", **variables)
    assert refusal(2, "keys", "list", "--tenant", "other", **variables).count("other") == 1


def test_a_key_made_beside_a_running_server_works_at_once_and_a_revoked_one_ends_within_two_seconds(
    database: Path | str,
) -> None:
    with Service(database) as service:
        key, key_id = create_key(database)
        other, _ = create_key(database)
        answered, body = ask(service.origin, "/whoami", key)
        assert (answered, json.loads(body)) == (200, {"tenant_id": "acme", "key_id": int(key_id)})
        done("keys", "revoke", key_id, "--database", str(database))
        revoked = time.monotonic()
        while (answered := status(service.origin, "/whoami", key)) == 200:
            assert time.monotonic() < revoked + 2
            time.sleep(0.05)
        assert answered == 401
        assert status(service.origin, "/whoami", other) == 200


# databases that can't be used


def commands(database: Path | str) -> Iterator[list[str]]:
    """One command of each way in."""
    yield ["migrate", "--database", str(database)]
    yield ["serve", "--port", "0", "--database", str(database)]
    yield ["tenants", "list", "--database", str(database)]
    yield ["copy", "--from", str(database), "--to", "copied.db"]


def test_a_database_of_a_newer_version_is_refused_as_it_is(fresh: Path | str) -> None:
    done("migrate", "--database", str(fresh))
    with direct(fresh) as beside:
        beside.run("insert into _yoyo_migration values ('0', '9999_flying', '2099-01-01')")
        if isinstance(fresh, Path):
            beside.run("pragma wal_checkpoint(truncate)")
    before = whole(fresh)
    for command in commands(fresh):
        assert refusal(1, *command) == (
            f"The database {engine_of(fresh)} was migrated by a newer version (it has 9999_flying). "
            "Install that version, or restore a backup made before it."
        )
    assert whole(fresh) == before


def test_a_database_of_another_program_is_refused_as_it_is(fresh: Path | str) -> None:
    with direct(fresh) as beside:
        beside.run("create table notes (body text)")
    before = whole(fresh)
    for command in commands(fresh):
        said = f"{engine_of(fresh)} is a database of another program; choose another --database."
        assert refusal(1, *command) == said
    assert whole(fresh) == before


def test_a_command_on_a_database_that_is_not_migrated_says_what_does_it(fresh: Path | str) -> None:
    said = refusal(1, "tenants", "list", "--database", str(fresh))
    assert "agent-platform migrate" in said
    assert str(engine_of(fresh)) in said
    assert not any(Path().iterdir())


@needs_postgresql
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("127.0.0.1:5432", "127.0.0.1:1"), "refused"),
        (("127.0.0.1:5432", "nowhere.invalid:5432"), "nowhere.invalid"),
        (("/away", "/not_there_at_all"), '"not_there_at_all" does not exist'),
        (("postgres:", "nobody:"), '"nobody" does not exist'),
    ],
    ids=["no server", "no host", "no database", "no user"],
)
def test_a_server_that_does_not_let_us_in_is_one_line_without_the_password(change: tuple[str, str], says: str) -> None:
    url = "postgresql://postgres:hunter2@127.0.0.1:5432/away".replace(*change)
    done("migrate", "--database", "here.db")
    for command in (*commands(url), ["copy", "--from", "here.db", "--to", url]):
        said = refusal(1, *command)
        assert says in said
        assert "can't be reached" in said
        assert "hunter2" not in said


@needs_postgresql
@pytest.mark.parametrize(
    "url",
    [
        "postgresql://postgres:hunter2@127.0.0.1:port/x",
        "postgresql://postgres:hunter2@[::1/x",
        "postgresql://postgres:hunter2@127.0.0.1/x?colour=red",
        "postgresql://postgres:hunter2@127.0.0.1:70000/x",
        "postgresql://postgres:hunter2@127.0.0.1/%00",
        "postgresql://postgres:hunter2@127.0.0.1/%zz",
        "postgresql://postgres:hunter2@127.0.0.1/x?connect_timeout=3",
    ],
)
def test_a_url_that_is_none_is_one_line_without_the_password(url: str) -> None:
    for command, option in (("migrate", "--database"), ("copy", "--from")):
        said = refusal(2, command, option, url)
        assert f"'{option}'" in said
        assert "hunter2" not in said
    assert not any(Path().iterdir())


@needs_postgresql
def test_a_url_may_bear_the_settings_that_both_drivers_know() -> None:
    settings = "sslmode=prefer&target_session_attrs=read-write&application_name=mine&options=-c%20search_path%3Dpublic"
    url = postgresql.emptied()
    head = done("tenants", "list", "--database", f"{url}{'&' if '?' in url else '?'}{settings}")
    assert head.split() == ["TENANT", "KEYS", "LIMIT", "CREATED", "DISABLED"]


def test_a_url_without_its_drivers_is_one_line_that_says_how_to_get_them(tmp_path: Path) -> None:
    folder = tmp_path / "hidden"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text('import sys\nsys.modules["asyncpg"] = sys.modules["psycopg"] = None\n')
    path = f"{folder}{os.pathsep}{clean_environment()['PYTHONPATH']}"
    for command in commands("postgresql://127.0.0.1/x"):
        assert "pip install 'agent-platform[postgresql]'" in refusal(2, *command, PYTHONPATH=path)
    # a file needs none of them
    done("migrate", "--database", "file.db", PYTHONPATH=path)
    assert done("tenants", "list", "--database", "file.db", PYTHONPATH=path).count("\n") == 1


def test_the_distribution_is_printed_and_no_database_is_touched(tmp_path: Path) -> None:
    printed = done("migrate", "--print-distribution")
    assert "select create_distributed_table('runs', 'tenant_id', colocate_with => 'tenants');" in printed.splitlines()
    assert done("migrate", "--print-distribution", "--database", str(tmp_path / "x.db")) == printed
    assert not any(tmp_path.iterdir())
