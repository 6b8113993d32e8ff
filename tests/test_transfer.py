"""`tenants export`, `import` and `delete`: what was exported answers the same elsewhere, and what was deleted is gone."""

import asyncio
import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from service.__main__ import cli
from service.commands import transfer
from service.config import Config
from service.resources import resource
from service.state import STATE
from service.storage import importing, portable, removing
from service.storage.engines import engine_of
from service.storage.portable import TransferError
from service.storage.queries import load_queries
from service.storage.scope import Database
from service.storage.units import ask
from tests.conftest import KEY_A, KEY_B, Client, Serve
from tests.support import postgresql
from tests.support.command import create_key, done, refusal, status
from tests.support.database import migrated
from tests.support.http import Answer, answer, make_agent, make_tool, run
from tests.support.process import Service
from tests.support.storage import execute, made, rows
from tests.support.tables import TABLES, Rows, put_back, tables

Key = dict[str, str]
TIME = "2026-01-01T00:00:00.000000Z"
_elsewhere: dict[str, str] = {}
_furnished: dict[str, dict[str, Rows]] = {}


@pytest.fixture(params=["sqlite", "postgresql"])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """An empty database of either engine, which is not the one that the service is on."""
    if request.param == "sqlite":
        return migrated(tmp_path / "elsewhere.db")
    if postgresql.server() is None:
        pytest.skip(postgresql.HOW_TO_RUN)
    if not _elsewhere:
        _elsewhere["url"] = str(made("postgresql", Path("elsewhere")))
    put_back(_elsewhere["url"], {table: [] for table in TABLES})
    return _elsewhere["url"]


async def furnish(client: Client) -> None:
    """Gives both tenants something of everything, by turns, with gaps where the last of each kind was deleted."""
    tools: dict[str, list[int]] = {"a": [], "b": []}
    for name in (*(f"tool{number}" for number in range(9)), "gone", "last"):
        tools["a"].append((await make_tool(client, name, description="日本語 'q'\n\"t\""))["id"])
        if name in ("tool0", "gone", "last"):
            tools["b"].append((await make_tool(client, name, KEY_B))["id"])
    for key, mine in ((KEY_A, tools["a"]), (KEY_B, tools["b"])):
        one = (await make_agent(client, "one", key, tool_ids=mine[:-1]))["id"]
        two = (await make_agent(client, "two", key, tool_ids=mine[:1]))["id"]
        await run(client, one, "Say gone, tool1 and 🔎", key)
        # too many for one run, which fails
        await run(client, one, " ".join(f"tool{number}" for number in range(9)), key)
        await run(client, two, "Say hello", key)
        once = key | {"Idempotency-Key": "once"}
        await client.json("POST", f"/agents/{two}/run", once, json={"task": "Say it once", "model": "gpt-4o"})
        await client.json("PATCH", f"/tools/{mine[0]}", key, json={"description": "changed"})
        for path in (f"/tools/{mine[-2]}", f"/tools/{mine[-1]}", f"/agents/{two}"):
            await client.json("DELETE", path, key)


async def all_answers(client: Client, key: Key = KEY_A) -> dict[str, Answer]:
    """Every list, page by page, with every filter, and every object that they name, with all that comes with them."""
    found: dict[str, Answer] = {}

    async def read(path: str) -> dict[str, Any]:
        found[path] = await answer(client, "GET", path, key)
        body: dict[str, Any] = found[path].json()
        return body

    history = await client.json("GET", "/runs?limit=100", key)
    times = sorted(each["created_at"] for each in history["items"])
    agents = sorted({each["agent_id"] for each in history["items"]})
    lists = ["/tools", "/agents", "/runs", "/runs?status=failed", "/runs?status=completed", "/runs?model=gpt-4o"]
    lists += ["/audit", "/audit?resource=tool", "/usage", "/usage?group_by=day", "/usage?group_by=agent"]
    lists += ["/tools?name=tool1", "/tools?agent_name=one", "/agents?name=one", "/agents?tool_name=tool1"]
    lists += [f"/runs?created_after={times[1]}", f"/runs?created_before={times[2]}&status=completed"]
    lists += [f"/runs?agent_id={agent}" for agent in agents]
    lists += [f"/agents/{agent}/runs" for agent in agents]
    for each in lists:
        path = f"{each}{'&' if '?' in each else '?'}limit=2"
        page = await read(path)
        while page.get("next"):
            page = await read(f"{path}&cursor={page['next']}")
    for kind, last in (("tools", 15), ("agents", 5), ("runs", 9)):
        for number in range(1, last):
            await read(f"/{kind}/{number}")
    return found


async def command(*arguments: str | Path, typed: str = "") -> Result:
    """Runs a command in this process, beside the service in it."""
    return await asyncio.to_thread(CliRunner().invoke, cli, ["tenants", *map(str, arguments)], input=typed)


async def told(*arguments: str | Path) -> str:
    """What a command prints that must succeed."""
    ended = await command(*arguments)
    assert (ended.exit_code, ended.stderr) == (0, ""), ended
    return ended.stdout


@pytest.fixture
async def furnished(client: Client, database: Path | str, engine: str) -> Client:
    """A service whose tenants have something of everything, which is made once; the next ids are those behind it."""
    if engine not in _furnished:
        await furnish(client)
        _furnished[engine] = tables(database)
    put_back(database, _furnished[engine])
    return client


async def test_what_was_exported_answers_the_same_elsewhere(
    client: Client, serve: Serve, database: Path | str, elsewhere: Path | str, tmp_path: Path
) -> None:
    await furnish(client)
    before = await all_answers(client)
    assert sum(each.status == 200 for each in before.values()) >= 40
    file = tmp_path / "a.jsonl"
    said = await told("export", "tenant_a", file, "--database", database)
    assert said == f"Exported the tenant tenant_a to {file}: 9 tools, 1 agent and 4 runs.\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert not [each for each in names_in(tmp_path) if each.endswith(".part")]
    assert not re.search(rb"key_tenant|mk_|hash", file.read_bytes())
    said = await told("import", file, "--database", elsewhere)
    assert said == (
        "Imported the tenant tenant_a: 9 tools, 1 agent and 4 runs. It has no keys yet: `agent-platform keys create`.\n"
    )
    there = await serve(Config(database=elsewhere))
    assert await all_answers(there) == before
    assert (await there.json("GET", "/tools", KEY_B))["total"] == 0
    # and what the source has given it does not give again
    for make in (make_tool, make_agent):
        assert (await make(there, "new"))["id"] == (await make(client, "new"))["id"]
    agent = (await there.json("GET", "/agents?name=new"))["items"][0]["id"]
    assert (await run(there, agent))["id"] == 9


def names_in(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


def without_ids(value: Any) -> Any:
    """An answer's body without the ids in it, and without what stands for a place among them."""
    if isinstance(value, dict):
        ids = {"id", "agent_id", "tool_id", "tool_ids", "next"}
        return {name: without_ids(each) for name, each in value.items() if name not in ids}
    return [without_ids(each) for each in value] if isinstance(value, list) else value


def of_no_change(answers: dict[str, Answer]) -> dict[str, Answer]:
    """Those that a change does not alter by being noted."""
    return {path: each for path, each in answers.items() if not path.startswith("/audit")}


async def test_ids_that_others_have_become_new_ones_in_the_same_order(
    furnished: Client, database: Path | str, tmp_path: Path
) -> None:
    file = tmp_path / "a.jsonl"
    await told("export", "tenant_a", file, "--database", database)
    before, theirs = tables(database), await all_answers(furnished, KEY_B)
    said = refusal(1, "tenants", "import", str(file), "--as", "twin", "--keep-ids", "--database", str(database))
    assert said == "Other tenants have some of the ids in the file. Nothing was changed."
    assert tables(database) == before
    said = await told("import", file, "--as", "twin", "--database", database)
    assert "all of it has new ones: of tools, 1 is " in said
    key = {"X-API-Key": create_key(database, "twin")[0]}
    for path in ("/tools?limit=100", "/agents", "/runs", "/runs?status=failed", "/tools?agent_name=one"):
        one, other = [await furnished.json("GET", path, each) for each in (KEY_A, key)]
        assert without_ids(one) == without_ids(other)
        assert one["items"]
        assert not {each["id"] for each in one["items"]} & {each["id"] for each in other["items"]}
    runs = [(await furnished.json("GET", "/runs", each))["items"] for each in (KEY_A, key)]
    tools = [(await furnished.json("GET", "/tools?limit=100", each))["items"] for each in (KEY_A, key)]
    # one and the same number lies between all of them, those of a deleted tool's steps and of a deleted agent included
    moved = tools[1][0]["id"] - tools[0][0]["id"]
    steps = [[step["tool_id"] for each in history for step in each["steps"]] for history in runs]
    assert [step + moved for step in steps[0]] == steps[1]
    assert set(steps[0]) - {each["id"] for each in tools[0]}
    for one, other in zip(*runs, strict=True):
        history = await furnished.json("GET", f"/runs?agent_id={other['agent_id']}", key)
        assert {each["agent_name"] for each in history["items"]} == {one["agent_name"]}
        assert (await furnished.json("GET", f"/runs/{other['id']}", key)) == other
    # the service gives others, and nobody else has noticed
    new = await make_tool(furnished, "new", KEY_B)
    assert new["id"] > tools[1][-1]["id"]
    await furnished.json("DELETE", f"/tools/{new['id']}", KEY_B)
    assert of_no_change(await all_answers(furnished, KEY_B)) == of_no_change(theirs)
    # what was done to a thing is found under its new id
    for change, again in zip(
        *[(await furnished.json("GET", "/audit", each))["items"][-5:] for each in (KEY_A, key)], strict=True
    ):
        assert without_ids(change["after"]) == without_ids(again["after"])
        assert again["after"] is None or again["after"]["id"] == again["resource_id"] > change["resource_id"]


async def test_what_was_deleted_is_gone_and_comes_back_with_its_ids(
    furnished: Client, database: Path | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removing, "_FORGOTTEN", 0.0)
    file, at = tmp_path / "a.jsonl", ("--database", str(database))
    key = {"X-API-Key": create_key(database, "tenant_a")[0]}
    await told("export", "tenant_a", file, *at)
    before, theirs = await all_answers(furnished, key), await all_answers(furnished, KEY_B)
    changed = (await furnished.json("GET", "/audit?limit=100", key))["items"]
    stored = tables(database)
    said = await told("delete", "tenant_a", "--confirm", "tenant_a", *at)
    assert said == (
        "Deleted the tenant tenant_a: 1 key, 9 tools, 1 agent and 4 runs.\n"
        "It is a demo tenant: a server that accepts the demo keys makes it anew, empty, when it starts.\n"
    )
    left = tables(database)
    for table, had in stored.items():
        whose = "id" if table == "tenants" else "tenant_id"
        assert left[table] == [row for row in had if row[whose] != "tenant_a"]
        assert len(left[table]) < len(had)
    assert await all_answers(furnished, KEY_B) == theirs
    assert "has new ones" not in await told("import", file, "--keep-ids", *at)
    again = {"X-API-Key": create_key(database, "tenant_a")[0]}
    assert of_no_change(await all_answers(furnished, again)) == of_no_change(before)
    changes = (await furnished.json("GET", "/audit?limit=100", again))["items"]
    # the newest one is the key's
    assert [change["resource"] for change in changes[:2]] == ["key", "key"]
    assert [without_ids(change) for change in changes[1:]] == [without_ids(change) for change in changed]
    # and no id is given again, not even that of a tool that only a step or the audit log speaks of
    assert (await make_tool(furnished, "new", KEY_B))["id"] == 14


async def test_an_imported_audit_log_speaks_of_nobody_elses_things(
    client: Client, database: Path | str, elsewhere: Path | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "_MARGIN", 0)
    *gone, kept = [(await make_tool(client, f"tool{number}"))["id"] for number in range(6)]
    for each in gone:
        await client.json("DELETE", f"/tools/{each}")
    created = int(create_key(database, "tenant_a")[1])
    file, at = tmp_path / "a.jsonl", ("--database", str(elsewhere))
    await told("export", "tenant_a", file, "--database", str(database))
    execute(elsewhere, f"insert into tenants (id, created_at) values ('other', '{TIME}')")
    columns = "tenant_id, id, name, description, created_at, updated_at"
    execute(elsewhere, f"insert into tools ({columns}) values ('other', {kept}, 'taken', 'd', '{TIME}', '{TIME}')")
    if isinstance(elsewhere, str):
        execute(elsewhere, f"select setval('tools_id_seq', {kept})")
    assert "has new ones" in await told("import", file, *at)
    spoken = {each for (each,) in rows(elsewhere, "select resource_id from audit_log where resource = 'tool'")}
    assert len(spoken) == 6
    assert min(spoken) >= 1
    assert kept not in spoken
    # no key gets the deeds of another one
    assert int(create_key(elsewhere, "tenant_a")[1]) > created


async def test_a_key_that_is_made_while_its_tenant_is_deleted_goes_with_it(
    furnished: Client, database: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removing, "_FORGOTTEN", 0.0)
    keys, batch = ["mk_latest"], removing._batch

    async def late(view: Any, table: str, turns: Any) -> int:
        if keys:
            parts = {"prefix": keys.pop(), "hash": "0" * 64, "label": None, "scopes": "read", "expires_at": None}
            await view.write(importing._one(ask("create_key", **parts, now=TIME)))
        return await batch(view, table, turns)

    monkeypatch.setattr(removing, "_batch", late)
    assert "Deleted the tenant tenant_a" in await told(
        "delete", "tenant_a", "--confirm", "tenant_a", "--database", str(database)
    )
    assert rows(database, "select count(*) from api_keys where tenant_id = 'tenant_a'") == [(0,)]


async def test_an_export_takes_no_place_that_was_taken_meanwhile(
    furnished: Client, database: Path | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = transfer.write_tenant

    async def slowly(*arguments: Any) -> None:
        (tmp_path / "a.jsonl").write_text("precious")
        await write(*arguments)

    monkeypatch.setattr(transfer, "write_tenant", slowly)
    ended = await command("export", "tenant_a", tmp_path / "a.jsonl", "--database", str(database))
    assert ended.exit_code == 1
    assert "can't be written: File exists" in ended.stderr
    # and leaves nothing beside it
    left = {each.name: each.read_text() for each in tmp_path.glob("a.jsonl*")}  # noqa: ASYNC240  # nobody else waits
    assert left == {"a.jsonl": "precious"}


async def test_what_is_under_way_for_a_tenant_that_is_gone_is_503_and_leaves_nothing(
    client: Client, database: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removing, "_FORGOTTEN", 0.0)
    authenticator = client.app[STATE].authenticator
    monkeypatch.setattr(authenticator, "_memory", 60)
    authenticator._found.clear()
    await make_tool(client, "first")
    await told("delete", "tenant_a", "--confirm", "tenant_a", "--database", database)
    assert (await client.post("/tools", headers=KEY_A, json={"name": "late", "description": "d"})).status == 503
    assert tables(database)["tools"] == []
    # as soon as the key is looked up again
    authenticator._found.clear()
    assert (await client.get("/tools", headers=KEY_A)).status == 401


@pytest.mark.parametrize("typed", ["", "TENANT_A\n"])
async def test_a_tenant_whose_name_is_not_typed_stays(client: Client, database: Path | str, typed: str) -> None:
    before = tables(database)
    asked = await command("delete", "tenant_a", "--database", database, typed=typed)
    assert asked.exit_code == 1
    assert "The tenant tenant_a has 0 keys, 0 tools, 0 agents and 0 runs. All of it will be gone." in asked.stderr
    assert tables(database) == before


async def test_a_tenant_whose_name_is_typed_or_piped_goes(client: Client, database: Path | str) -> None:
    asked = await command("delete", "tenant_a", "--database", database, typed="tenant_a\n")
    assert asked.exit_code == 0
    assert "tenant_a" not in {row["id"] for row in tables(database)["tenants"]}
    assert "no tenant 'tenant_a'" in refusal(2, "tenants", "delete", "tenant_a", "--database", str(database))
    said = refusal(1, "tenants", "delete", "tenant_b", "--confirm", "tenant_a", "--database", str(database))
    assert said == "That is not the id tenant_b. Nothing was deleted."


def test_a_tenant_goes_while_a_server_serves_another_one(engine: str, tmp_path: Path) -> None:
    database = made(engine, tmp_path / "served.db")
    for tenant in ("acme", "other"):
        done("tenants", "create", tenant, "--database", str(database))
    execute(database, "insert into agent_ids (tenant_id, id) values ('acme', 1)")
    columns = "tenant_id, agent_id, agent_name, model, status, prompt_tokens, completion_tokens, created_at, duration_ms"
    values = f"('acme', 1, 'n', 'gpt-4o', 'completed', 1, 1, '{TIME}', 1, 't', 'r', '[]', 'p')"
    insert = f"insert into runs ({columns}, task, response, steps, prompt) values {', '.join([values] * 500)}"
    execute(database, insert)
    execute(database, insert)
    acme, other = [create_key(database, tenant)[0] for tenant in ("acme", "other")]
    with Service(database) as service:
        assert [status(service.origin, "/runs", key) for key in (acme, other)] == [200, 200]
        said = done("tenants", "delete", "acme", "--confirm", "acme", "--database", str(database))
        assert said == "Deleted the tenant acme: 1 key, 0 tools, 0 agents and 1000 runs.\n"
        assert [status(service.origin, "/runs", key) for key in (acme, other)] == [401, 200]
    assert rows(database, "select tenant_id from runs union select tenant_id from run_counts") == []


# files that are not what an export has written


def with_older_last_run(lines: list[bytes]) -> list[bytes]:
    last = max(at for at, line in enumerate(lines) if line.startswith(b'{"table":"runs"'))
    return [*lines[:last], lines[last].replace(b'"created_at":"2', b'"created_at":"1'), *lines[last + 1 :]]


def signed(lines: list[bytes]) -> bytes:
    """Lines with a last one that fits them, as somebody would make it who alters a file with care."""
    counts = dict.fromkeys(portable.TABLES, 0)
    for line in lines[1:]:
        counts[json.loads(line)["table"]] += 1
    body = b"".join(lines)
    return body + json.dumps({"counts": counts, "sha256": sha256(body).hexdigest()}).encode() + b"\n"


Alter = Callable[[list[bytes]], bytes]
ALTERED: dict[str, tuple[Alter, str]] = {
    "nothing": (lambda lines: b"", "is no export of a tenant"),
    "a text": (lambda lines: b"Dear customer,\n", "is no export of a tenant"),
    "of a newer version": (
        lambda lines: lines[0].replace(b'"version":1', b'"version":2') + b"".join(lines[1:]),
        "not the version 1",
    ),
    "cut off behind a line": (lambda lines: b"".join(lines[:5]), "ends without its last line"),
    "cut off within a line": (lambda lines: b"".join(lines)[:-3], "was altered or cut off"),
    "without a line": (lambda lines: b"".join(lines[:-6] + lines[-5:]), "other counts or another checksum"),
    "with a letter changed": (
        lambda lines: b"".join(lines).replace(b"Say hello", b"Say hullo"),
        "other counts or another checksum",
    ),
    "with something behind it": (lambda lines: b"".join([*lines, lines[1]]), "something stands behind"),
    "with a line twice": (lambda lines: signed([*lines[:2], *lines[1:-1]]), "line 3 is not what"),
    "with a table that is unknown": (
        lambda lines: b"".join(lines).replace(b'"tools"', b'"tricks"'),
        "line 2 is not what",
    ),
    "with a value of another type": (lambda lines: signed([lines[0], lines[1].replace(b":1,", b":true,", 1)]), "line 2"),
    "with an id too large": (
        lambda lines: signed([lines[0], lines[1].replace(b'"id":1,', b'"id":9007199254740991,')]),
        "line 2",
    ),
    "with a time that is none": (
        lambda lines: signed([lines[0], lines[1].replace(b'"created_at":"2', b'"created_at":"9999-99-99', 1)]),
        "line 2",
    ),
    "with a NUL": (lambda lines: signed([lines[0], lines[1].replace(b"tool0", b"to\\u0000l")]), "line 2"),
    "with a day that is none": (
        lambda lines: signed([re.sub(rb'"day":"[^"]*"', b'"day":"2026-02-30"', line) for line in lines[:-1]]),
        "is not what",
    ),
    "with more tokens than can be added up": (
        lambda lines: signed(
            [re.sub(rb'"prompt_tokens":[0-9]+', b'"prompt_tokens":4611686018427387904', line) for line in lines[:-1]]
        ),
        "is not what",
    ),
    "with a change of nothing": (
        lambda lines: signed([line.replace(b'"resource":"tool"', b'"resource":"spoon"') for line in lines[:-1]]),
        "is not what",
    ),
    "with an agent that is not there": (
        lambda lines: signed([line for line in lines[:-1] if b'"agent_ids"' not in line]),
        "refers to what is not there",
    ),
    "with a run that is older than the one before it": (
        lambda lines: signed(with_older_last_run(lines[:-1])),
        "not in the order of their times",
    ),
    "of a tenant whose id can't be": (
        lambda lines: signed([lines[0].replace(b'"tenant_a"', b'"../etc"'), *lines[1:-1]]),
        "a tenant's id is 1 to 64",
    ),
    "with a row that the database refuses": (
        lambda lines: signed([*(line.replace(b'"name":"one"', b'"name":" "') for line in lines[:-1])]),
        "The database refuses a row of the file. Nothing was kept.",
    ),
}


@pytest.mark.embedded
async def test_a_file_that_no_export_has_written_changes_nothing(
    furnished: Client, database: Path | str, elsewhere: Path | str, tmp_path: Path
) -> None:
    whole = tmp_path / "a.jsonl"
    await told("export", "tenant_a", whole, "--database", database)
    file, before = tmp_path / "altered.jsonl", tables(elsewhere)
    for name, (alter, said) in ALTERED.items():
        file.write_bytes(alter(whole.read_bytes().splitlines(keepends=True)))
        ended = await command("import", file, "--database", elsewhere)
        assert ended.exit_code in (1, 2), name
        assert said in " ".join(ended.stderr.split()), (name, ended.stderr)
        assert tables(elsewhere) == before, name


def test_the_words_that_an_import_takes_are_those_of_the_spec() -> None:
    schemas = yaml.safe_load(resource("openapi").joinpath("openapi.yaml").read_text(encoding="utf-8"))["components"][
        "schemas"
    ]
    assert {name: list(words) for name, words in portable._WORDS.items()} == {
        "action": schemas["AuditAction"]["enum"],
        "resource": schemas["AuditResource"]["enum"],
    }


async def test_what_can_not_be_done_is_one_line(client: Client, database: Path | str, tmp_path: Path) -> None:
    at, file = ("--database", str(database)), str(tmp_path / "a.jsonl")
    for code, arguments, said in (
        (2, ("export", "nobody", file), "no tenant 'nobody'"),
        (1, ("export", "tenant_a", str(tmp_path / "no" / "folder")), "can't be written: No such file or directory."),
        (1, ("export", "tenant_a", str(tmp_path)), "exists already"),
        (1, ("import", file), "can't be read: No such file or directory."),
        (1, ("import", str(tmp_path)), "can't be read: Is a directory."),
        (2, ("import", file, "--as", "a/b"), "'--as'"),
    ):
        assert said in refusal(code, "tenants", *arguments, *at)
    assert "a.jsonl" not in names_in(tmp_path)
    await told("export", "tenant_a", file, *at)
    before = (tmp_path / "a.jsonl").read_bytes()
    assert "exists already" in refusal(1, "tenants", "export", "tenant_b", file, *at)
    assert (tmp_path / "a.jsonl").read_bytes() == before
    assert refusal(1, "tenants", "import", file, *at) == "The tenant tenant_a exists already."


# what is interrupted, and what happens meanwhile


async def opened(database: Path | str) -> Database:
    engine = engine_of(database)
    return await engine.open(load_queries(resource("sql"), engine.name))


@pytest.mark.embedded
async def test_an_import_that_is_interrupted_leaves_nothing(
    furnished: Client, database: Path | str, elsewhere: Path | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, before = tmp_path / "a.jsonl", tables(elsewhere)
    await told("export", "tenant_a", path, "--database", database)
    storage = await opened(elsewhere)

    def interrupt(count: int) -> None:
        if tables(elsewhere)["runs"]:
            raise KeyboardInterrupt

    monkeypatch.setattr(importing, "_BATCH", 2)
    with path.open("rb") as file:
        contents = importing.check(file)
        with pytest.raises(KeyboardInterrupt):
            await importing.import_tenant(storage, file, contents, "tenant_a", keep_ids=False, written=interrupt)
        assert tables(elsewhere) == before

        # as one that is killed
        async def nothing(*_: Any) -> None:
            pass

        monkeypatch.setattr(importing, "_take_back", nothing)
        with pytest.raises(KeyboardInterrupt):
            await importing.import_tenant(storage, file, contents, "tenant_a", keep_ids=False, written=interrupt)
    await storage.close()
    at = ("--database", str(elsewhere))
    assert "its import has not ended" in await told("list", *at)
    assert "has not ended" in refusal(1, "tenants", "export", "tenant_a", str(tmp_path / "b.jsonl"), *at)
    for command in ("create", "list"):
        assert "has not ended" in refusal(1, "keys", command, "--tenant", "tenant_a", *at)
    assert "An earlier import" in refusal(1, "tenants", "import", str(path), *at)
    assert "Deleted the tenant tenant_a" in await told("delete", "tenant_a", "--confirm", "tenant_a", *at)
    assert tables(elsewhere) == before
    await told("import", path, *at)
    assert len(tables(elsewhere)["runs"]) == 4


async def test_runs_stored_during_an_export_are_not_in_it_and_runs_deleted_end_it(
    furnished: Client, database: Path | str, tmp_path: Path
) -> None:
    from service.storage.exporting import export_tenant

    storage = await opened(database)
    tenant = {"id": "tenant_b", "created_at": TIME} | dict.fromkeys(("disabled_at", "run_limit", "run_window"))

    async def export(then: str) -> dict[str, int]:
        with (tmp_path / "b.jsonl").open("w+b") as file:
            writer = portable.Writer(file, tenant, TIME, "x")
            add = writer.add

            def meanwhile(table: str, rows: list[Any]) -> None:
                if table == "agent_tools":
                    execute(database, then)
                add(table, rows)

            writer.add = meanwhile  # type: ignore[method-assign]
            await export_tenant(storage, writer, "tenant_b", id)
            return importing.check(file).counts

    another = "insert into runs select 99" + ", ".join(["", *RUN]) + " from runs where id = 8"
    assert (await export(another))["runs"] == 4
    with pytest.raises(TransferError, match="Runs of the tenant tenant_b were deleted meanwhile"):
        await export("delete from runs where id = 6")
    await storage.close()


RUN = (
    *("tenant_id", "agent_id", "agent_name", "model", "status", "prompt_tokens", "completion_tokens", "created_at"),
    *("duration_ms", "task", "response", "error", "steps", "prompt"),
)


@pytest.mark.embedded
def test_every_table_and_column_is_exported_and_deleted(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        found = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
        ours = {name for name in found if "yoyo" not in name and not name.startswith("sqlite_")}
        # keys and kept answers stay behind, and the triggers count runs anew
        assert ours == {*portable.TABLES, "tenants", "api_keys", "kept_answers", "run_counts"} - {"last_ids"}
        assert ours == {*removing.TABLES, "tenants", "api_keys", "agent_tools"}
        for name in set(portable.TABLES) - {"last_ids"}:
            columns = {row[1] for row in connection.execute(f"pragma table_info({name})")} - {"tenant_id"}
            assert set(portable.TABLES[name].columns) == columns, name
        assert {row[1] for row in connection.execute("pragma table_info(tenants)")} == {
            "id",
            "created_at",
            "disabled_at",
            "deleted_at",
            "run_limit",
            "run_window",
        }


def test_an_id_that_was_given_is_not_given_again_by_a_smaller_file(shared_database: str, tmp_path: Path) -> None:
    """A sequence only grows, by a few numbers or by many."""
    file = tmp_path / "a.jsonl"
    done("tenants", "create", "acme", "--database", shared_database)
    done("tenants", "export", "acme", str(file), "--database", shared_database)
    header = file.read_bytes().splitlines(keepends=True)[0]
    for number, (last, expected) in enumerate(((70_000, 70_000), (5, 70_000), (70_010, 70_010))):
        file.write_bytes(signed([header, f'{{"table":"last_ids","row":{{"name":"runs","last_id":{last}}}}}\n'.encode()]))
        done("tenants", "import", str(file), "--as", f"t{number}", "--database", shared_database)
        assert rows(shared_database, "select last_value, is_called from runs_id_seq") == [(expected, True)]
