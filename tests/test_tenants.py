"""Tenants: shut out and let in again, and given limits of their own, beside a server that runs."""

from pathlib import Path

import pytest
from aiohttp import ClientResponse

from service.config import Config
from tests.conftest import KEY_A, KEY_B, Client
from tests.support.command import done, refusal
from tests.support.http import make_agent
from tests.support.storage import execute, rows
from tests.test_keys import forget, made

TIME = "2026-01-01T00:00:00.000000Z"


@pytest.fixture
def place(config: Config) -> tuple[str, str]:
    return ("--database", str(config.database))


async def ran(client: Client, agent_id: int, key: dict[str, str] = KEY_A) -> ClientResponse:
    return await client.post(f"/agents/{agent_id}/run", headers=key, json={"task": "Say hello", "model": "gpt-4o"})


async def test_a_tenant_that_is_disabled_is_shut_out_with_all_its_keys(client: Client, place: tuple[str, str]) -> None:
    key, _ = await made(client)
    assert done("tenants", "disable", "tenant_a", *place) == "Disabled the tenant tenant_a.\n"
    forget(client)
    for each in (KEY_A, key):
        assert (await client.get("/tools", headers=each)).status == 401
    assert (await client.get("/tools", headers=KEY_B)).status == 200
    listed = done("tenants", "list", *place).splitlines()
    assert listed[0].split() == ["TENANT", "KEYS", "LIMIT", "CREATED", "DISABLED"]
    assert listed[1].split()[-1].endswith("Z")
    assert listed[2].split()[-1] == "-"
    assert done("tenants", "enable", "tenant_a", *place) == "Enabled the tenant tenant_a.\n"
    forget(client)
    for each in (KEY_A, key):
        assert (await client.get("/tools", headers=each)).status == 200


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("created_at = '0001-01-01T00:00:00.000000Z'", "The import of the tenant tenant_a has not ended."),
        (f"disabled_at = '{TIME}', deleted_at = '{TIME}'", "The deletion of the tenant tenant_a has not ended."),
    ],
    ids=["import", "deletion"],
)
async def test_a_tenant_that_is_half_there_is_left_alone(
    client: Client, config: Config, place: tuple[str, str], tmp_path: Path, change: str, says: str
) -> None:
    execute(config.database, f"update tenants set {change} where id = 'tenant_a'")
    for command in (
        ("keys", "create", "--tenant", "tenant_a"),
        ("tenants", "enable", "tenant_a"),
        ("tenants", "disable", "tenant_a"),
        ("tenants", "limit", "tenant_a", "--runs", "7"),
        ("tenants", "export", "tenant_a", str(tmp_path / "a.jsonl")),
    ):
        assert says in refusal(1, *command, *place)
    forget(client)
    assert (await client.get("/tools", headers=KEY_A)).status == 401
    # whoever lets it in by another way opens nothing either
    execute(config.database, "update tenants set disabled_at = null where id = 'tenant_a'")
    forget(client)
    assert (await client.get("/tools", headers=KEY_A)).status == 401
    assert rows(config.database, "select count(*) from api_keys") == [(0,)]
    assert not (tmp_path / "a.jsonl").exists()


async def test_a_limit_of_its_own_holds_for_one_tenant_alone(client: Client, place: tuple[str, str]) -> None:
    agents = {"a": await make_agent(client), "b": await make_agent(client, key=KEY_B)}
    assert done("tenants", "limit", "tenant_a", "--runs", "2", "--window", "30", *place) == (
        "The limit of the tenant tenant_a: 2 runs in 30 s.\n"
    )
    forget(client)
    answers = [await ran(client, agents["a"]["id"]) for _ in range(3)]
    assert [each.status for each in answers] == [200, 200, 429]
    assert {each.headers["RateLimit-Policy"] for each in answers} == {'"run";q=2;w=30'}
    assert 0 < int(answers[2].headers["Retry-After"]) <= 30
    others = [await ran(client, agents["b"]["id"], KEY_B) for _ in range(6)]
    assert [each.status for each in others] == [200] * 5 + [429]
    assert (
        done("tenants", "limit", "tenant_a", "--default", *place)
        == "The limit of the tenant tenant_a: as the server says.\n"
    )
    forget(client)
    assert (await ran(client, agents["a"]["id"])).headers["RateLimit-Policy"] == '"run";q=5;w=60'


def test_what_can_not_be_done_is_one_line(place: tuple[str, str], config: Config) -> None:
    done("tenants", "create", "acme", *place)
    before = rows(config.database, "select * from tenants")
    for command in (("disable",), ("enable",), ("limit", "--runs", "5")):
        assert "there is no tenant 'nobody'" in refusal(2, "tenants", command[0], "nobody", *command[1:], *place)
    for options in ((), ("--runs", "5", "--default"), ("--window", "5")):
        assert "--runs" in refusal(2, "tenants", "limit", "acme", *options, *place)
    for options in (("--runs", "0"), ("--runs", "x"), ("--runs", "5", "--window", "86401")):
        refusal(2, "tenants", "limit", "acme", *options, *place)
    assert rows(config.database, "select * from tenants") == before
