"""PostgreSQL is backed up and restored by its own tools, with the commands that the README and ours name."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from service.resources import resource
from service.storage.engines import engine_of
from tests.conftest import KEY_A
from tests.support import postgresql
from tests.support.cluster import HOW_TO_RUN, Cluster, can_be_started, cluster
from tests.support.command import agent_platform, ask, done
from tests.support.direct import direct
from tests.support.process import Service
from tests.support.schema import schema

pytestmark = [
    pytest.mark.skipif(not can_be_started(), reason=HOW_TO_RUN),
    pytest.mark.skipif(shutil.which("pg_dump") is None, reason="There is no pg_dump: install Debian's `postgresql-client`."),
]
DUMP = ("pg_dump", "--format=custom")
RESTORE = ("pg_restore", "--clean", "--if-exists", "--no-owner", "--single-transaction")
TIME = "2026-01-01T00:00:00.000000Z"
RUN = (
    "insert into runs (tenant_id, agent_id, agent_name, model, status, prompt_tokens, completion_tokens, created_at, "
    "duration_ms, task, response, steps, prompt) "
    f"values ('acme', 1, 'Ann', 'gpt-4o', 'completed', 1, 1, '{TIME}', 1, 'Say hello', 'Hello.', '[]', 'p')"
)


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    """A server that has nothing yet, not even the service's roles: only users of an operator's."""
    with cluster() as started:
        started.ask(
            "create role platform login createrole",
            "create role platform_backup login bypassrls",
            "grant pg_read_all_data to platform_backup",
        )
        yield started


def owned(server: Cluster) -> str:
    """The URL of an empty database as its owner opens it, who is no superuser."""
    url = server.create()
    server.ask(f"alter database {url.rpartition('/')[2]} owner to platform")
    return as_user("platform", url)


def as_user(user: str, url: str) -> str:
    return url.replace("//postgres@", f"//{user}@").replace("//platform@", f"//{user}@")


def tool(*command: str) -> tuple[int, str]:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return ended.returncode, ended.stderr


def put_back(server: Cluster, file: Path) -> str:
    """Restores a dump as the README says, in a new database; its URL as the owner opens it."""
    url = owned(server)
    # makes the roles that the dump speaks of
    done("migrate", "--database", url)
    assert tool(*RESTORE, f"--dbname={url}", str(file)) == (0, "")
    return url


def in_words(file: Path) -> str:
    """The rows in a dump, as statements."""
    words = subprocess.run(["pg_restore", "--data-only", "--file=-", str(file)], capture_output=True, text=True, check=True)
    # newer ones keep psql from being told something by a row, with a random word
    return re.sub(r"(?m)^\\(un)?restrict .*$|^--.*$", "", words.stdout)


def contents(url: str) -> object:
    with direct(as_user("postgres", url)) as beside:
        return beside.contents(), beside.run("select sequencename, last_value from pg_sequences order by 1")


def found(url: str) -> str:
    """What is not well."""
    ended = agent_platform("doctor", "--database", url)
    lines = [line for line in ended.stdout.splitlines() if not line.startswith("ok ") and "fsync" not in line]
    assert ended.stderr == ""
    assert ended.returncode == any(line.startswith("problem ") for line in lines)
    return "\n".join(lines)


def test_doctor_sees_a_server_that_may_only_be_read_and_has_no_roles_yet(server: Cluster) -> None:
    """The first test here: the roles, which are the whole server's, come with the first migration."""
    server.set(default_transaction_read_only="on")
    said = found(server.url())
    server.set()
    assert "problem  The database lacks the migration 0001_tenants and " in said
    assert "problem  The database may only be read, as a standby. Name the server that may be written to." in said
    assert "problem  The role agent_platform_tenant is missing. Run `agent-platform migrate`" in said


@pytest.mark.skipif(postgresql.server() is None, reason=postgresql.HOW_TO_RUN)
def test_a_dump_is_restored_on_another_server_whole_and_dumped_there_again(server: Cluster, tmp_path: Path) -> None:
    source, first, second = postgresql.emptied(), tmp_path / "first.dump", tmp_path / "second.dump"
    with direct(source) as beside:
        beside.add("tenants", id="acme", created_at=TIME)
        beside.add("agent_ids", tenant_id="acme")
        beside.run(RUN)
    # a superuser passes row-level security
    assert tool(*DUMP, f"--file={first}", source) == (0, "")
    target = put_back(server, first)
    assert contents(target) == contents(source)

    # the owner does not, for it is forced upon him, too; a dump of nothing would be worse than none
    code, said = tool(*DUMP, f"--file={second}", target)
    assert code == 1
    assert "row-level security" in said
    # and a user for this one purpose does
    assert tool(*DUMP, f"--file={second}", as_user("platform_backup", target)) == (0, "")
    assert in_words(second) == in_words(first)

    # rights, policies and all: as the migrations make it
    assert sorted(re.sub(r"\bplatform\b", "postgres", repr(row)) for row in schema(target)) == sorted(
        map(repr, schema(source))
    )

    engine_of(target).check(resource("migrations"))
    looked = agent_platform("doctor", "--database", target)
    assert looked.returncode == 0, looked
    # the tests' servers do not wait for the disk
    assert [line for line in looked.stdout.splitlines() if not line.startswith("ok ") and "fsync" not in line] == []
    with Service(target, "--log-level", "warning") as service:
        assert ask(service.origin, "/runs", KEY_A["X-API-Key"])[0] == 200


def test_doctor_sees_roles_that_pass_row_level_security_or_are_not_the_users(server: Cluster) -> None:
    url = owned(server)
    done("migrate", "--database", url)
    assert found(url) == ""
    for statement, undone, says in (
        (
            "alter role agent_platform_tenant bypassrls",
            "alter role agent_platform_tenant nobypassrls",
            "problem  Row-level security does not bind the role agent_platform_tenant. "
            "Run: alter role agent_platform_tenant nosuperuser nobypassrls",
        ),
        (
            "alter role agent_platform_operator login",
            "alter role agent_platform_operator nologin",
            "warning  The role agent_platform_operator may log in. Run: alter role agent_platform_operator nologin",
        ),
        (
            "revoke agent_platform_operator from platform",
            "grant agent_platform_operator to platform",
            "problem  The user platform may not become agent_platform_operator. "
            "Run: grant agent_platform_operator to platform",
        ),
    ):
        server.ask(statement)
        assert found(url) == says
        server.ask(undone)
    assert "The user postgres is a superuser" in found(as_user("postgres", url))
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("create role stranger login")
    assert "permission denied for table _yoyo_migration. Connect as its owner." in said_to("stranger", url)


def said_to(user: str, url: str) -> str:
    ended = agent_platform("doctor", "--database", as_user(user, url))
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    return ended.stderr
