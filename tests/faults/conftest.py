"""Tenants of a test's own, so that tests can share a server that takes long to start."""

from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from service.auth import key_hash, key_prefix, new_key
from service.storage.lock import writer_lock
from service.storage.sqlite import connect
from service.times import utc_now

NewTenant = Callable[[Path], dict[str, str]]
_number = count()


@pytest.fixture(scope="session")
def new_tenant() -> NewTenant:
    """Adds a tenant to the database of a running server, and gives the header with its key."""

    def add(database: Path) -> dict[str, str]:
        key, name, now = new_key(), f"tenant-{next(_number)}", utc_now()
        with closing(writer_lock(database)) as lock, closing(connect(database)) as connection:
            lock.acquire(5.0)
            connection.execute("insert into tenants values (?, ?)", (name, now))
            connection.execute(
                "insert into api_keys (tenant_id, prefix, hash, created_at) values (?, ?, ?, ?)",
                (name, key_prefix(key), key_hash(key), now),
            )
        return {"X-API-Key": key}

    return add
