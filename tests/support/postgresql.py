"""The PostgreSQL that the tests run on: AGENT_PLATFORM_TEST_DATABASE, or the server on the standard local port.

Each process of the tests has a database of its own there, migrated once and emptied before each test.
"""

import atexit
import functools
import os
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from service.resources import resource
from service.storage.engines import engine_of

_STANDARD = "postgresql://postgres@127.0.0.1:5432/postgres"
HOW_TO_RUN = (
    "There is no PostgreSQL to test with: start one on 127.0.0.1:5432, or name one in AGENT_PLATFORM_TEST_DATABASE, as a "
    "superuser of it."
)
# in an order in which nothing that goes is still referred to
_TABLES = (
    "audit_log",
    "kept_answers",
    "usage",
    "run_counts",
    "runs",
    "agent_tools",
    "agents",
    "agent_ids",
    "tools",
    "api_keys",
    "tenants",
)
_COUNTED = ("runs", "agent_ids", "tools", "api_keys", "audit_log")


@functools.cache
def server() -> str | None:
    """The URL of the server's own database, None where there is no server."""
    url = os.environ.get("AGENT_PLATFORM_TEST_DATABASE", _STANDARD)
    try:
        _run(url, "select 1")
    except psycopg.OperationalError:
        return None
    return url


def url_of(name: str) -> str:
    """The URL of the database `name` of the same server."""
    url = server()
    assert url is not None
    head, _, query = url.partition("?")
    return f"{head.rpartition('/')[0]}/{name}{f'?{query}' if query else ''}"


def create(name: str) -> str:
    """Makes an empty database, which goes when this process ends; its URL."""
    url = server()
    assert url is not None
    _run(url, f'drop database if exists "{name}" with (force)', f'create database "{name}"')
    atexit.register(_run, url, f'drop database if exists "{name}" with (force)')
    return url_of(name)


def emptied() -> str:
    """The URL of this process's database, migrated and empty, its ids beginning with 1."""
    url = _own()
    # what a tenant has in the audit log goes only with the tenant
    deletes = ["update tenants set deleted_at = created_at", *(f"delete from {table}" for table in _TABLES)]
    restarts = [f"alter sequence {table}_id_seq restart" for table in _COUNTED]
    connection = _connection()
    with connection.transaction():
        connection.execute("; ".join([*deletes, *restarts]))
    return url


@functools.cache
def _own() -> str:
    url = create(f"agent_platform_test_{os.getpid()}")
    engine_of(url).migrate(resource("migrations"))
    return url


@functools.cache
def _connection() -> "psycopg.Connection[Any]":
    connection: psycopg.Connection[Any] = psycopg.connect(_own(), autocommit=True)
    atexit.register(connection.close)
    # the tests' own cleaning need not reach the disk
    connection.execute("set synchronous_commit = off")
    return connection


def _run(url: str, *statements: str) -> None:
    with psycopg.connect(make_conninfo(url, connect_timeout=2), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)
