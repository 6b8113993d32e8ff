"""Keys: made, looked at, rotated and revoked over HTTP and on the command line; what they open, and for how long."""

import asyncio
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service import access
from service.auth import SCOPES, new_key
from service.config import Config
from service.errors import NotFound
from service.state import STATE
from service.times import utc_now
from tests.conftest import KEY_A, KEY_B, Client, Serve
from tests.support.command import KEY, agent_platform, done, refusal
from tests.support.http import TOOL, Wire, make_agent, refused
from tests.support.keys import store
from tests.support.storage import execute, rows

LARGEST = 2**53 - 1
RUN = {"task": "Say hello", "model": "gpt-4o"}


async def made(client: Client, key: dict[str, str] = KEY_A, **body: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """A new key as it is sent, and as it is shown."""
    shown = await client.json("POST", "/keys", key, json=body)
    assert KEY.fullmatch(shown["key"])
    return {"X-API-Key": shown.pop("key")}, shown


def forget(client: Client) -> None:
    """Lets what keys open be looked up anew, as a second does."""
    client.app[STATE].authenticator._found.clear()


def stored(config: Config) -> list[Any]:
    return [rows(config.database, f"select * from {table} order by id") for table in ("api_keys", "audit_log")]


def when(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def test_a_key_is_shown_once_and_opens_its_tenant(client: Client, config: Config) -> None:
    response = await client.post("/keys", headers=KEY_A, json={"label": "nightly job"})
    shown = await response.json()
    key = shown.pop("key")
    assert response.headers["Location"] == f"/keys/{shown['id']}"
    assert (shown["label"], shown["scopes"], shown["prefix"]) == ("nightly job", [*SCOPES], key[:9])
    assert (shown["expires_at"], shown["last_used_at"], shown["revoked_at"]) == (None, None, None)
    assert await client.json("GET", response.headers["Location"]) == shown
    assert (await client.json("GET", "/keys"))["items"] == [shown]
    assert await client.json("GET", "/whoami", {"X-API-Key": key}) == {"tenant_id": "tenant_a", "key_id": shown["id"]}
    # but for its beginning it stands nowhere
    assert key[9:] not in str(
        rows(config.database, "select * from api_keys") + rows(config.database, "select * from audit_log")
    )


async def test_an_idempotency_key_does_not_keep_a_key(client: Client, config: Config) -> None:
    once = KEY_A | {"Idempotency-Key": "once"}
    first, second = [await client.json("POST", "/keys", once, json={}) for _ in range(2)]
    assert first["id"] != second["id"]
    assert rows(config.database, "select * from kept_answers") == []


# what takes which scope, with a body that is taken
OPENED: dict[str, dict[str, Any]] = {
    "read": dict.fromkeys(("GET /tools", "GET /agents/1", "GET /runs", "GET /agents/1/runs", "GET /models", "GET /audit")),
    "write": {"POST /tools": TOOL, "PATCH /agents/1": {"role": "r"}, "PUT /tools/1": TOOL, "DELETE /tools/1": None},
    "run": {"POST /agents/1/run": RUN},
    "keys": {"GET /keys": None, "POST /keys": {}, "POST /keys/1/rotate": {}, "DELETE /keys/1": None},
}


@pytest.mark.parametrize("scope", OPENED)
async def test_a_scope_opens_its_own_and_nothing_else(client: Client, scope: str) -> None:
    await make_agent(client)
    await made(client)
    key, _ = await made(client, scopes=["keys", "read", "run", "write"] if scope == "keys" else [scope])
    for other, each in OPENED.items():
        for name, body in each.items():
            method, path = name.split()
            if other == scope:
                response = await client.request(method, path, headers=key, json=body)
                assert response.status < 300, (name, await response.text())
            elif scope != "keys":
                problem = await refused(client, 403, method, path, key, json=body)
                assert problem["type"] == "urn:agent-platform:problem:missing-scope"
                assert problem["detail"] == f"This takes a key with the scope {other}."
    assert (await client.get("/whoami", headers=key)).status == 200


async def test_a_missing_scope_is_told_before_anything_else_is_looked_at(client: Client) -> None:
    key, _ = await made(client, scopes=["read"])
    await refused(client, 403, "POST", "/agents/1/run?unknown=1", key, data=b"no json")
    await refused(client, 403, "DELETE", "/tools/none", key)
    # and a run that is refused so costs nothing
    await make_agent(client)
    ran = await client.post("/agents/1/run", headers=KEY_A, json=RUN)
    assert ran.headers["RateLimit"].startswith('"run";r=4')


async def test_no_key_gives_what_it_has_not_got(client: Client) -> None:
    key, shown = await made(client, scopes=["keys", "read"], expires_in="1h")
    # what is not said, it has of the one that asks
    same, child = await made(client, key)
    assert (child["scopes"], child["expires_at"]) == (["keys", "read"], shown["expires_at"])
    for more in ({"scopes": ["read", "run"]}, {"scopes": ["write"]}, {"expires_in": "2h"}):
        assert "hasn't got" in (problem := await refused(client, 403, "POST", "/keys", key, json=more))["detail"] or (
            "no more time" in problem["detail"]
        )
    _, less = await made(client, key, scopes=["read"], expires_in="30m")
    assert less["scopes"] == ["read"]
    # nor by rotating one that has more
    _, whole = await made(client)
    await refused(client, 403, "POST", f"/keys/{whole['id']}/rotate", key)
    assert (await client.post(f"/keys/{less['id']}/rotate", headers=key)).status == 201
    # but itself a key may always put another one in its place
    assert (await client.post(f"/keys/{shown['id']}/rotate", headers=key)).status == 201
    assert (await client.get("/whoami", headers=same)).status == 200


async def test_a_rotated_key_works_until_the_overlap_is_over(client: Client, config: Config) -> None:
    key, old = await made(client, label="job", scopes=["read"], expires_in="90d")
    new = await client.json("POST", f"/keys/{old['id']}/rotate", json={"overlap": "1h"})
    assert (new["label"], new["scopes"]) == ("job", ["read"])
    # as long as the old one was to live, from now on
    assert timedelta() <= when(new["expires_at"]) - when(old["expires_at"]) < timedelta(seconds=30)
    ends = when((await client.json("GET", f"/keys/{old['id']}"))["expires_at"])
    assert abs(ends - when(utc_now(timedelta(hours=1)))) < timedelta(seconds=30)
    for each in (key, {"X-API-Key": new["key"]}):
        assert (await client.get("/tools", headers=each)).status == 200
    execute(config.database, f"update api_keys set expires_at = '{utc_now(timedelta(seconds=-1))}' where id = {old['id']}")
    forget(client)
    assert (await client.get("/tools", headers=key)).status == 401
    assert (await client.get("/tools", headers={"X-API-Key": new["key"]})).status == 200
    await refused(client, 409, "POST", f"/keys/{old['id']}/rotate")


async def test_without_a_body_the_overlap_is_a_day_and_never_longer_than_the_key_had(client: Client) -> None:
    _, lasting = await made(client)
    _, short = await made(client, expires_in="1h")
    for each in (lasting, short):
        assert (await client.post(f"/keys/{each['id']}/rotate", headers=KEY_A)).status == 201
    ends = when((await client.json("GET", f"/keys/{lasting['id']}"))["expires_at"])
    assert abs(ends - when(utc_now(timedelta(days=1)))) < timedelta(seconds=30)
    assert (await client.json("GET", f"/keys/{short['id']}"))["expires_at"] == short["expires_at"]


async def test_a_revoked_key_opens_nothing_and_is_still_listed(client: Client) -> None:
    key, shown = await made(client)
    assert (await client.get("/tools", headers=key)).status == 200
    for _ in range(2):
        assert (await client.delete(f"/keys/{shown['id']}", headers=KEY_A)).status == 204
    forget(client)
    assert (await client.get("/tools", headers=key)).status == 401
    assert (await client.json("GET", f"/keys/{shown['id']}"))["revoked_at"] is not None
    await refused(client, 409, "POST", f"/keys/{shown['id']}/rotate")
    # one may revoke itself
    key, shown = await made(client)
    assert (await client.delete(f"/keys/{shown['id']}", headers=key)).status == 204


async def test_a_key_stops_within_two_seconds_when_it_expires_or_is_revoked(client: Client) -> None:
    revoked, shown = await made(client)
    ending, _ = await made(client, expires_in="1s")
    for key in (revoked, ending):
        assert (await client.get("/whoami", headers=key)).status == 200
    await client.delete(f"/keys/{shown['id']}", headers=KEY_A)
    await asyncio.sleep(1.9)
    for key in (revoked, ending):
        assert (await client.get("/whoami", headers=key)).status == 401


async def test_a_key_that_ends_while_a_body_is_on_its_way_does_nothing(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.contract._HELD", 0.0)
    for path, more in (("/keys", []), ("/tools", []), ("/tools", ["Idempotency-Key: once"])):
        key, shown = await made(client)
        body = b"{}" if path == "/keys" else json.dumps(TOOL).encode()
        headers = [f"X-API-Key: {key['X-API-Key']}", "Content-Type: application/json", f"Content-Length: {len(body)}"]
        async with Wire(client) as wire:
            head = "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *headers, *more, "", ""])
            await wire.send(head.encode() + body[:1])
            async with asyncio.timeout(5):
                while not client.app[STATE].gate.lent:  # noqa: ASYNC110  # nothing announces it
                    await asyncio.sleep(0.005)
            assert (await client.delete(f"/keys/{shown['id']}", headers=KEY_A)).status == 204
            forget(client)
            await wire.send(body[1:])
            assert (await wire.receive()).status == 401
    assert (await client.json("GET", "/tools"))["total"] == 0


async def test_what_is_remembered_of_a_key_does_not_make_keys_that_outlive_it(client: Client) -> None:
    key, shown = await made(client)
    await client.json("POST", f"/keys/{shown['id']}/rotate", json={"overlap": "1h"})
    ends = (await client.json("GET", f"/keys/{shown['id']}"))["expires_at"]
    # this one is remembered as one that never ends
    _, child = await made(client, key)
    assert child["expires_at"] == ends
    await refused(client, 403, "POST", "/keys", key, json={"expires_in": "2h"})
    await client.delete(f"/keys/{shown['id']}", headers=KEY_A)
    problem = await client.post("/keys", headers=key, json={})
    assert (problem.status, "WWW-Authenticate" in problem.headers) == (401, True)


async def test_a_key_is_rotated_once(client: Client, place: tuple[str, str]) -> None:
    key, shown = await made(client)
    await client.json("POST", f"/keys/{shown['id']}/rotate", json={"overlap": "1h"})
    for each in (key, KEY_A):
        problem = await refused(client, 409, "POST", f"/keys/{shown['id']}/rotate", each)
        assert problem["detail"] == "The key was rotated already: rotate the one that took its place."
    assert "rotated already" in refusal(1, "keys", "rotate", str(shown["id"]), *place)


def test_a_key_that_goes_meanwhile_is_one_that_is_not_there() -> None:
    row = {"revoked_at": None, "expires_at": None, "created_at": utc_now(), "scopes": "read", "label": None}
    for unit, answers in (
        (access.revoke_key(1), [row, None]),
        (access.rotate_key(1, new_key(), timedelta(1), lambda *_: None), [row, False, None]),
    ):
        next(unit)
        *first, last = answers
        for answer in first:
            unit.send(answer)
        with pytest.raises(NotFound):
            unit.send(last)


async def test_a_label_forges_no_line_of_the_list(client: Client, place: tuple[str, str]) -> None:
    await made(client, label="x\n7   mk_FORGED\x1b[8m")
    lines = done("keys", "list", "--tenant", "tenant_a", *place).splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


async def test_keys_of_another_tenant_are_the_404_of_an_unknown_one(client: Client) -> None:
    _, shown = await made(client)
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/rotate")):
        for key_id in (shown["id"], 999, LARGEST):
            problem = await refused(client, 404, method, f"/keys/{key_id}{path}", KEY_B)
            assert problem["detail"] == "There is no such key."
    assert (await client.json("GET", "/keys", KEY_B))["total"] == 0
    assert (await client.json("GET", f"/keys/{shown['id']}"))["revoked_at"] is None


async def test_the_last_use_is_noted_without_a_write_for_each_request(client: Client, config: Config) -> None:
    key, shown = await made(client)
    before = rows(config.database, "select count(*) from audit_log")
    for _ in range(5):
        assert (await client.get("/whoami", headers=key)).status == 200
    assert (await client.json("GET", f"/keys/{shown['id']}"))["last_used_at"] is None
    async with asyncio.timeout(5):
        while (used := (await client.json("GET", f"/keys/{shown['id']}"))["last_used_at"]) is None:  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.05)
    assert abs(when(used) - when(utc_now())) < timedelta(seconds=30)
    # not again within a minute
    forget(client)
    assert (await client.get("/whoami", headers=key)).status == 200
    await client.app[STATE].authenticator._note_uses()
    assert (await client.json("GET", f"/keys/{shown['id']}"))["last_used_at"] == used
    assert rows(config.database, "select count(*) from audit_log") == before


async def test_what_was_used_at_the_end_is_noted_as_the_service_stops(serve: Serve, config: Config) -> None:
    client = await serve(config)
    key, shown = await made(client)
    assert (await client.get("/whoami", headers=key)).status == 200
    await client.close()
    ((used,),) = rows(config.database, f"select last_used_at from api_keys where id = {shown['id']}")
    assert used is not None


async def test_rotating_a_key_is_all_or_nothing(client: Client, config: Config) -> None:
    _, shown = await made(client)
    taken = new_key()
    database = client.app[STATE].authenticator._database
    await store(database, "tenant_a", taken)
    scope = client.app[STATE].authenticator.scope(await client.app[STATE].authenticator.caller("key_tenant_a"), "r")
    before = stored(config)
    with pytest.raises(Exception, match="hash"):
        await scope.write(access.rotate_key(shown["id"], taken, timedelta(hours=1), lambda old, expires_at: None))
    assert stored(config) == before


@pytest.fixture
def place(config: Config) -> tuple[str, str]:
    """The options that name the database, with a tenant in it."""
    options = ("--database", str(config.database))
    done("tenants", "create", "acme", *options)
    return options


def test_the_command_line_makes_lists_rotates_and_revokes(place: tuple[str, str]) -> None:
    created = agent_platform(
        "keys", "create", "--tenant", "acme", "--label", "job", "--scope", "run", "--scope", "read", *place
    )
    first = created.stdout.strip()
    assert KEY.fullmatch(first)
    assert "for read, run. It is shown this once." in created.stderr
    rotated = agent_platform("keys", "rotate", "1", "--overlap", "1h", *place)
    second = rotated.stdout.strip()
    assert KEY.fullmatch(second)
    assert second != first
    listed = done("keys", "list", "--tenant", "acme", *place)
    head, *lines = listed.splitlines()
    assert head.split() == ["ID", "KEY", "LABEL", "SCOPES", "CREATED", "EXPIRES", "LAST", "USED", "REVOKED"]
    prefixes = [f"{key[:9]}…" for key in (first, second)]
    assert [line.split()[:4] for line in lines] == [
        [str(at), each, "job", "read,run"] for at, each in enumerate(prefixes, 1)
    ]
    assert first not in listed
    assert done("keys", "revoke", "2", *place).startswith("Revoked the key 2 (mk_")
    assert done("keys", "list", "--tenant", "acme", *place).splitlines()[2].split()[-1].endswith("Z")


def test_what_the_command_line_can_not_do_is_one_line_and_changes_nothing(place: tuple[str, str], config: Config) -> None:
    done_ = agent_platform("keys", "create", "--tenant", "acme", "--expires-in", "1s", *place)
    assert done_.returncode == 0
    execute(config.database, "update api_keys set expires_at = '2026-01-01T00:00:00.000000Z'")
    before = rows(config.database, "select * from api_keys")
    assert "there is no tenant 'nobody'" in refusal(2, "keys", "create", "--tenant", "nobody", *place)
    assert "as in 90d" in refusal(2, "keys", "create", "--tenant", "acme", "--expires-in", "tomorrow", *place)
    assert "--scope" in refusal(2, "keys", "create", "--tenant", "acme", "--scope", "everything", *place)
    assert "there is no key with the id 99" in refusal(2, "keys", "rotate", "99", *place)
    assert "there is no key with the id 99" in refusal(2, "keys", "revoke", "99", *place)
    assert "as in 90d" in refusal(2, "keys", "rotate", "1", "--overlap", "1", *place)
    assert "no longer works" in refusal(1, "keys", "rotate", "1", *place)
    assert rows(config.database, "select * from api_keys") == before


def test_more_keys_than_a_page_are_all_listed(place: tuple[str, str], config: Config) -> None:
    execute(
        config.database,
        "insert into api_keys (tenant_id, prefix, hash, created_at) values ('acme', 'mk_000000', ?, ?)",
        *((f"{number:064x}", utc_now()) for number in range(250)),
    )
    assert len(done("keys", "list", "--tenant", "acme", *place).splitlines()) == 251


def test_a_file_that_is_none_of_ours_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database at all, but long enough to be looked at" * 30)
    for command in (
        ("keys", "rotate", "1"),
        ("keys", "list", "--tenant", "a"),
        ("tenants", "disable", "a"),
        ("tenants", "list"),
    ):
        assert "can't be read as a database" in refusal(1, *command, "--database", str(tmp_path / "text.db"))
        assert "There is no database" in refusal(1, *command, "--database", str(tmp_path / "none.db"))
