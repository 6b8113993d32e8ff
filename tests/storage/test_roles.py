"""Who may migrate and serve a PostgreSQL database: the two roles are the cluster's, and its users are an operator's."""

from collections.abc import Iterator

import psycopg
import pytest

from service.resources import resource
from service.storage import postgresql_migrations
from service.storage.migrations import MigrationError
from tests.support.cluster import HOW_TO_RUN, Cluster, can_be_started, cluster
from tests.support.command import agent_platform

pytestmark = pytest.mark.skipif(not can_be_started(), reason=HOW_TO_RUN)


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with cluster() as started:
        started.ask("create role owner login", "create role another login")
        yield started


def owned(server: Cluster, user: str) -> str:
    """The URL of an empty database as its owner opens it."""
    url = server.create()
    server.ask(f"alter database {url.rpartition('/')[2]} owner to {user}")
    return url.replace("postgres@", f"{user}@")


def test_who_may_make_no_roles_is_told_so_until_the_roles_are_there_and_his(server: Cluster) -> None:
    url = owned(server, "owner")
    refused = agent_platform("migrate", "--database", url)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert "with the right to make roles (createrole)" in refused.stderr
    # another platform of the cluster has made them
    assert agent_platform("migrate", "--database", server.create()).returncode == 0
    server.ask("grant agent_platform_tenant, agent_platform_operator to owner")
    assert agent_platform("migrate", "--database", url).returncode == 0
    assert agent_platform("tenants", "create", "acme", "--database", url).returncode == 0


def test_an_owner_who_may_not_become_the_roles_is_told_what_to_grant(server: Cluster) -> None:
    url = owned(server, "another")
    assert agent_platform("migrate", "--database", url.replace("another@", "postgres@")).returncode == 0
    with psycopg.connect(url.replace("another@", "postgres@")) as connection:
        connection.execute("grant select on _yoyo_migration to another")
    refused = agent_platform("tenants", "list", "--database", url)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert "grant agent_platform_tenant, agent_platform_operator to USER" in refused.stderr


def test_a_server_that_is_too_old_is_told(server: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql_migrations, "OLDEST", 990_000)
    with pytest.raises(MigrationError, match="PostgreSQL 99 or newer is needed"):
        postgresql_migrations.migrate(server.create(), resource("migrations") / "postgresql")


def test_a_database_that_may_only_be_read_is_one_line(server: Cluster) -> None:
    url = server.create()
    server.set(default_transaction_read_only="on")
    try:
        refused = agent_platform("migrate", "--database", url)
    finally:
        server.set()
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert "read-only" in refused.stderr
