"""What a query may be asked with: PostgreSQL takes a parameter's type from where it first meets it."""

import asyncpg
import pytest

from service.resources import resource
from service.storage.postgresql_queries import PostgresqlQuery
from service.storage.queries import load_queries
from tests.conftest import Client

LARGEST = 2**53 - 1


async def test_no_parameter_is_too_small_for_an_id(shared_database: str) -> None:
    connection = await asyncpg.connect(shared_database)
    try:
        for name, query in load_queries(resource("sql"), "postgresql").items():
            types = (await connection.prepare(PostgresqlQuery(query)._sql)).get_parameters()
            found = {parameter: each.name for parameter, each in zip(query.parameters, types, strict=True)}
            assert set(found.values()) <= {"text", "int8", "json"}, f"{name}: {found}"
    finally:
        await connection.close()


@pytest.mark.parametrize("more", ["", "&created_after=2020-01-01T00:00:00Z", "&status=failed&model=gpt-4o"])
async def test_runs_of_an_agent_with_the_largest_id_are_none(client: Client, more: str) -> None:
    page = await client.json("GET", f"/runs?agent_id={LARGEST}{more}")
    assert page["items"] == []
    assert page["total"] == 0
