"""Tenants of a test's own, so that tests can share a server that takes long to start."""

from collections.abc import Callable
from itertools import count

import pytest

from service.auth import key_hash, key_prefix, new_key
from service.times import utc_now
from tests.support.storage import Database, execute

NewTenant = Callable[[Database], dict[str, str]]
_number = count()


@pytest.fixture(scope="session")
def new_tenant() -> NewTenant:
    """Adds a tenant to the database of a running server, and gives the header with its key."""

    def add(database: Database) -> dict[str, str]:
        key, name, now = new_key(), f"tenant-{next(_number)}", utc_now()
        execute(database, "insert into tenants (id, created_at) values (?, ?)", (name, now))
        execute(
            database,
            "insert into api_keys (tenant_id, prefix, hash, created_at) values (?, ?, ?, ?)",
            (name, key_prefix(key), key_hash(key), now),
        )
        return {"X-API-Key": key}

    return add
