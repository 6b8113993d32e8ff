"""Repeated wrong keys from one address are slowed down, and right ones are not locked out."""

from dataclasses import replace

import aiohttp
import pytest

from service.auth import new_key
from service.config import Config
from service.limiter import wrong_keys
from service.state import STATE
from tests.conftest import KEY_A, Client, Serve
from tests.support.http import AGENT, refused

LIMIT = 3
UNKNOWN = {"X-API-Key": new_key()}


@pytest.fixture
async def client(serve: Serve, config: Config) -> Client:
    return await serve(replace(config, wrong_key_limit=LIMIT))


async def use_up(client: Client) -> None:
    for _ in range(LIMIT):
        await refused(client, 401, "GET", "/tools", UNKNOWN)


@pytest.mark.parametrize("key", [pytest.param(UNKNOWN["X-API-Key"], id="unknown"), "malformed", "KEY_TENANT_A"])
async def test_one_wrong_key_too_many_is_429_and_says_for_how_long(client: Client, key: str) -> None:
    await use_up(client)
    response = await client.get("/whoami", headers={"X-API-Key": key})
    problem = await response.json()
    assert (response.status, problem["type"]) == (429, "urn:agent-platform:problem:too-many-wrong-keys")
    assert 1 <= int(response.headers["Retry-After"]) <= 60
    assert key not in str(problem)


async def test_right_keys_go_on_working_from_the_same_address(client: Client) -> None:
    await use_up(client)
    for _ in range(2 * LIMIT):
        await refused(client, 429, "GET", "/tools", UNKNOWN)
        assert (await client.get("/tools", headers=KEY_A)).status == 200
    made = await client.json("POST", "/agents", json=AGENT)
    assert (await client.json("POST", f"/agents/{made['id']}/run", json={"task": "Say hello", "model": "gpt-4o"}))["id"]


async def test_a_missing_key_is_no_wrong_one(client: Client) -> None:
    for _ in range(3 * LIMIT):
        await refused(client, 401, "GET", "/tools", {})
    await use_up(client)
    await refused(client, 429, "GET", "/tools", UNKNOWN)
    await refused(client, 401, "GET", "/tools", {})


async def test_another_address_is_not_blamed(client: Client) -> None:
    await use_up(client)
    connector = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
    async with (
        aiohttp.ClientSession(connector=connector, headers=UNKNOWN) as other,
        other.get(client.make_url("/tools")) as found,
    ):
        assert found.status == 401
    await refused(client, 429, "GET", "/tools", UNKNOWN)


async def test_the_window_ends(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(client.app[STATE].wrong_keys, "_clock", lambda: now)
    await use_up(client)
    await refused(client, 429, "GET", "/tools", UNKNOWN)
    now += 60
    await refused(client, 401, "GET", "/tools", UNKNOWN)


async def test_a_run_with_a_wrong_key_tells_nothing_of_a_limit(client: Client) -> None:
    await use_up(client)
    response = await client.post("/agents/1/run", headers=UNKNOWN, json={})
    assert response.status == 429
    assert not [name for name in response.headers if name.startswith("RateLimit")]


async def test_wrong_keys_take_no_place(client: Client) -> None:
    gate = client.app[STATE].gate
    gate.inside = gate.most
    await refused(client, 401, "GET", "/tools", UNKNOWN)
    await refused(client, 503, "GET", "/tools", KEY_A)
    gate.inside = 0


def test_made_up_addresses_fill_no_memory() -> None:
    limiter = wrong_keys(1)
    for number in range(20_000):
        limiter.admit(str(number))
    assert len(limiter._windows) == 10_000
