"""Whom wrong keys are counted against behind a proxy, and that no client can say so himself."""

from dataclasses import replace
from typing import Any

import click
import pytest
from click.testing import CliRunner

from service.addresses import client_address, client_network, proxy_network
from service.auth import new_key
from service.config import Config, serve_options
from tests.conftest import KEY_A, Client, Serve
from tests.support.http import refused

LIMIT = 2
UNKNOWN = ("X-API-Key", new_key())
PROXIES = [proxy_network(each) for each in ("127.0.0.1", "10.0.0.0/8", "2001:db8:ffff::/48")]
PROXY = "10.0.0.1"


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        pytest.param(PROXY, [], PROXY, id="no header"),
        pytest.param(PROXY, ["192.0.2.1"], "192.0.2.1", id="one address"),
        pytest.param(PROXY, ["192.0.2.1, 10.0.0.2"], "192.0.2.1", id="behind two proxies"),
        pytest.param(PROXY, ["192.0.2.1", "10.0.0.3,10.0.0.2"], "192.0.2.1", id="several headers are one list"),
        pytest.param(PROXY, ["10.0.0.2", "192.0.2.1"], "192.0.2.1", id="the last header is the last"),
        pytest.param(PROXY, ["198.51.100.9, 192.0.2.1"], "192.0.2.1", id="a forged left part"),
        pytest.param(PROXY, ["10.0.0.9, 192.0.2.1, 10.0.0.2"], "192.0.2.1", id="a forged proxy at the left"),
        pytest.param(PROXY, ["198.51.100.9", "192.0.2.1"], "192.0.2.1", id="a forged header above"),
        pytest.param(PROXY, ["<script>, 192.0.2.1"], "192.0.2.1", id="garbage at the left"),
        pytest.param(PROXY, ["10.0.0.3, 10.0.0.2"], "10.0.0.3", id="nobody but proxies"),
        pytest.param(PROXY, [" ,192.0.2.1 ,\t, "], "192.0.2.1", id="empty elements and blanks"),
        pytest.param(PROXY, [""], PROXY, id="an empty header"),
        pytest.param(PROXY, ["2001:db8::1"], "2001:db8::1", id="IPv6"),
        pytest.param(PROXY, ["2001:DB8:0::1, 2001:db8:ffff::7"], "2001:db8::1", id="IPv6 through a proxy"),
        pytest.param("2001:db8:ffff::1", ["192.0.2.1"], "192.0.2.1", id="a proxy of IPv6"),
        pytest.param("::ffff:10.0.0.1", ["192.0.2.1"], "192.0.2.1", id="a mapped proxy"),
        pytest.param(PROXY, ["::ffff:192.0.2.1, ::ffff:10.0.0.2"], "192.0.2.1", id="mapped addresses"),
        pytest.param(PROXY, ["192.0.2.1:4711"], "192.0.2.1", id="a port"),
        pytest.param(PROXY, ["[2001:db8::1]:4711, 10.0.0.2:80"], "2001:db8::1", id="ports of both kinds"),
        pytest.param(PROXY, ["[2001:db8::1]"], "2001:db8::1", id="brackets"),
        pytest.param(PROXY, ["fe80::1%eth0"], "fe80::1", id="a zone"),
        pytest.param("192.0.2.7", ["198.51.100.9"], "192.0.2.7", id="a peer that is not trusted"),
        pytest.param("11.0.0.1", ["198.51.100.9, 10.0.0.1"], "11.0.0.1", id="a peer beside the network"),
        pytest.param(None, ["198.51.100.9"], None, id="no peer"),
        *[
            pytest.param(PROXY, [f"198.51.100.9, {garbage}"], PROXY, id=f"garbage: {garbage}")
            for garbage in (
                *("unknown", "_hidden", "localhost", "192.0.2", "192.0.2.256", "192.0.2.01", "0xc0000201", "3221225985"),
                *("192.0.2.1:", "192.0.2.1:http", "192.0.2.1 x", "192.0.2.0/24", "::1::", "[::1", "[::1]x", "[::1]:", "[]"),
                *('"192.0.2.1"', "for=192.0.2.1", "１92.0.2.1", "192.0.2.1:８"),
            )
        ],
        pytest.param(PROXY, ["192.0.2.1, ?, 10.0.0.2"], PROXY, id="garbage between proxies"),
        pytest.param(PROXY, ["192.0.2.1" + ", 10.0.0.2" * 16], "192.0.2.1", id="sixteen proxies"),
        pytest.param(PROXY, ["192.0.2.1" + ", 10.0.0.2" * 17], PROXY, id="more proxies than there are"),
    ],
)
def test_the_client_is_the_last_address_that_is_no_proxys(
    peer: str | None, forwarded: list[str], client: str | None
) -> None:
    assert client_address(peer, forwarded, PROXIES) == client


@pytest.mark.parametrize("forwarded", [["192.0.2.1"], ["192.0.2.1", "10.0.0.2"], ["?"]], ids=str)
@pytest.mark.parametrize("peer", [PROXY, "127.0.0.1", "::1", None], ids=str)
def test_without_the_option_nothing_of_the_header_is_believed(peer: str | None, forwarded: list[str]) -> None:
    assert client_address(peer, forwarded, []) == peer


def test_a_header_as_long_as_can_be_sent_is_not_read_to_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    monkeypatch.setattr("service.addresses.ip_address", lambda text: read.append(text) or proxy_network(text)[0])
    assert client_address(PROXY, ["10.0.0.2," * 900] * 100, PROXIES) == PROXY
    assert len(read) < 20


async def use_up(client: Client, forwarded: str) -> None:
    for _ in range(LIMIT):
        await refused(client, 401, "GET", "/tools", [UNKNOWN, ("X-Forwarded-For", forwarded)])
    await refused(client, 429, "GET", "/tools", [UNKNOWN, ("X-Forwarded-For", forwarded)])


async def behind(serve: Serve, config: Config, *proxies: str) -> Client:
    trusted = tuple(map(proxy_network, proxies))
    return await serve(replace(config, wrong_key_limit=LIMIT, trusted_proxy=trusted, demo=True))


async def test_wrong_keys_are_counted_for_each_client_of_a_proxy(serve: Serve, config: Config) -> None:
    client = await behind(serve, config, "127.0.0.0/8")
    await use_up(client, "192.0.2.1")
    await use_up(client, "192.0.2.2")
    await use_up(client, "2001:db8::1")
    # and for an IPv6 client with all that it has to itself
    await refused(client, 429, "GET", "/tools", [UNKNOWN, ("X-Forwarded-For", "2001:db8::2")])
    await refused(client, 401, "GET", "/tools", [UNKNOWN, ("X-Forwarded-For", "2001:db8:0:1::2")])
    await refused(client, 401, "GET", "/tools", [UNKNOWN])
    assert (await client.get("/tools", headers=[*KEY_A.items(), ("X-Forwarded-For", "192.0.2.1")])).status == 200


async def test_a_client_can_give_itself_no_other_address(serve: Serve, config: Config) -> None:
    client = await behind(serve, config, "127.0.0.1")
    await use_up(client, "192.0.2.1")
    # a proxy adds to the line that is there, or a line
    for lines in (["198.51.100.1, 192.0.2.1"], ["198.51.100.2", "192.0.2.1"], ["127.0.0.1", "?, 192.0.2.1"]):
        headers = [UNKNOWN, *(("X-Forwarded-For", line) for line in lines)]
        await refused(client, 429, "GET", "/tools", headers)
    # what no proxy makes is counted for the one that sent it
    for garbage in ("?", "198.51.100.3, unknown"):
        await refused(client, 401, "GET", "/tools", [UNKNOWN, ("X-Forwarded-For", garbage)])
    await refused(client, 429, "GET", "/tools", [UNKNOWN, ("X-Forwarded-For", "unknown, ?")])
    await refused(client, 429, "GET", "/tools", [UNKNOWN])


@pytest.mark.parametrize("proxies", [(), ("10.0.0.0/8", "::1")], ids=["no proxy", "another proxy"])
async def test_a_header_of_somebody_else_is_not_believed(serve: Serve, config: Config, proxies: tuple[str, ...]) -> None:
    client = await behind(serve, config, *proxies)
    await use_up(client, "192.0.2.1")
    await refused(client, 429, "GET", "/tools", [UNKNOWN, ("X-Forwarded-For", "192.0.2.2")])
    await refused(client, 429, "GET", "/tools", [UNKNOWN])


async def test_the_header_is_read_for_wrong_keys_alone(
    serve: Serve, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await behind(serve, config, "127.0.0.1")
    read: list[Any] = []
    monkeypatch.setattr("service.contract.client_address", lambda *given: read.append(given))
    forwarded = {"X-Forwarded-For": "192.0.2.1"}
    assert (await client.get("/tools", headers=KEY_A | forwarded)).status == 200
    assert (await client.get("/health", headers=forwarded)).status == 200
    await refused(client, 401, "GET", "/tools", forwarded)
    assert read == []
    await refused(client, 401, "GET", "/tools", [UNKNOWN, *forwarded.items()])
    assert len(read) == 1


def test_an_ipv6_caller_is_his_whole_network() -> None:
    assert client_network("2001:db8:1:2:3:4:5:6") == client_network("2001:db8:1:2::1%eth0") == "2001:db8:1:2::/64"
    assert client_network("2001:db8:1:3::1") != client_network("2001:db8:1:2::1")
    assert client_network("192.0.2.1") == client_network("::ffff:192.0.2.1") == "192.0.2.1"
    assert client_network(None) == ""


def test_a_mapped_network_is_the_network_that_is_mapped() -> None:
    assert proxy_network("::ffff:10.0.0.0/104") == proxy_network("10.0.0.0/8")
    assert proxy_network("::ffff:10.0.0.1") == proxy_network("10.0.0.1/32")
    assert str(proxy_network("2001:db8::/32")) == "2001:db8::/32"


@pytest.mark.parametrize("everybody", ["0.0.0.0/0", "::/0", "::ffff:0:0/96"])
def test_a_network_of_all_addresses_is_no_proxys(everybody: str) -> None:
    with pytest.raises(ValueError, match="all addresses"):
        proxy_network(everybody)


@pytest.mark.parametrize(
    ("arguments", "variable"),
    [
        (["--trusted-proxy", "10.0.0.0/8, ::1"], None),
        (["--trusted-proxy", "10.0.0.0/8", "--trusted-proxy", "::1"], None),
        ([], "10.0.0.0/8,::1"),
        ([], "10.0.0.0/8, ::1"),
        (["--trusted-proxy", "10.0.0.0/8,::1"], "192.0.2.1"),
    ],
)
def test_several_proxies_are_named_together_or_apart(arguments: list[str], variable: str | None) -> None:
    found: list[Config] = []
    command = click.command()(serve_options(lambda **options: found.append(Config(**options))))
    ended = CliRunner(env={"AGENT_PLATFORM_TRUSTED_PROXY": variable}).invoke(command, arguments)
    assert ended.exit_code == 0, ended.output
    assert found[0].trusted_proxy == (proxy_network("10.0.0.0/8"), proxy_network("::1"))


def test_behind_a_proxy_the_loopback_address_is_everybodys() -> None:
    behind = Config(trusted_proxy=(proxy_network("127.0.0.1"),))
    assert Config().serves_demo
    assert not behind.serves_demo
    assert replace(behind, demo=True).serves_demo
