"""Runs that are older than they are kept for: deleted by a command or by the server, a few at a time, and nothing else."""

import asyncio
import logging
import re
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from service import retention
from service.__main__ import cli
from service.config import Config
from service.errors import Unavailable
from service.resources import resource
from service.storage.engines import engine_of
from service.storage.migrations import MigrationError
from service.storage.queries import load_queries
from service.times import utc_now
from tests.conftest import KEY_A, KEY_B, Client, Serve
from tests.support.command import agent_platform, ask, refusal
from tests.support.history import INSERT, row
from tests.support.http import make_agent, run
from tests.support.process import Service
from tests.support.storage import execute, held_writes, rows
from tests.support.tables import tables

# where it stands among the parameters of INSERT
CREATED_AT = 7
OLD, YOUNG = "2026-01-01", utc_now()[:10]


def store(database: Path | str, number: int, day: str = OLD, tenant: str = "tenant_a", agent_id: int = 1) -> None:
    made = [row(each % 10, day, "gpt-4o", agent_id, each % 3 == 0, tenant) for each in range(number)]
    # within a tenant, no run is older than the one stored before it
    at = CREATED_AT
    execute(
        database,
        INSERT,
        *[(*r[:at], f"{day}T10:{n // 60:02}:{n % 60:02}.000000Z", *r[at + 1 :]) for n, r in enumerate(made)],
    )


def total(database: Path | str, tenant: str = "tenant_a") -> int:
    ((found,),) = rows(database, "select count(*) from runs where tenant_id = ?", tenant)
    return int(found)


def counted(database: Path | str, tenant: str = "tenant_a") -> int:
    ((found,),) = rows(database, "select sum(runs) from run_counts where tenant_id = ? and agent_id = 0", tenant)
    return int(found)


@pytest.fixture
async def furnished(serve: Serve, config: Config) -> Path | str:
    """Two tenants with 25 and 12 old runs, and a new one each that is kept for retries."""
    client = await serve()
    for key, number, tenant in ((KEY_A, 25, "tenant_a"), (KEY_B, 12, "tenant_b")):
        agent = await make_agent(client, key=key)
        store(config.database, number, tenant=tenant, agent_id=agent["id"])
        once = key | {"Idempotency-Key": "once"}
        body = {"task": "Say hello", "model": "gpt-4o"}
        await client.json("POST", f"/agents/{agent['id']}/run", once, json=body)
    await client.close()
    return config.database


def prune(database: Path | str, *options: str) -> list[list[str]]:
    """The words of each line that the command prints."""
    ended = agent_platform("runs", "prune", *options, "--database", str(database))
    assert ended.returncode == 0, ended.stderr
    return [line.split() for line in ended.stdout.splitlines()]


def test_old_runs_go_and_nothing_else(furnished: Path | str) -> None:
    before = tables(furnished)
    said = prune(furnished, "--older-than", "1d")
    assert said[:3] == [["TENANT", "RUNS"], ["tenant_a", "25"], ["tenant_b", "12"]]
    assert said[3][:3] == ["Deleted", "37", "runs"]
    after = tables(furnished)
    assert [each["task"] for each in after["runs"]] == ["Say hello"] * 2
    assert (counted(furnished), counted(furnished, "tenant_b")) == (1, 1)
    # what they used, and what is said again to those who ask again, stays
    for table in before.keys() - {"runs", "run_counts"}:
        assert after[table] == before[table], table
    assert prune(furnished, "--older-than", "1d")[1:3] == [["tenant_a", "0"], ["tenant_b", "0"]]
    assert tables(furnished) == after


def test_a_dry_run_tells_how_many_would_go_and_deletes_none(furnished: Path | str) -> None:
    before = tables(furnished)
    said = prune(furnished, "--older-than", "12h", "--dry-run")
    assert said[:3] == [["TENANT", "RUNS"], ["tenant_a", "25"], ["tenant_b", "12"]]
    assert said[3][:4] == ["Would", "delete", "37", "runs"]
    assert tables(furnished) == before


def test_one_tenants_runs_go_and_no_others(furnished: Path | str) -> None:
    assert prune(furnished, "--older-than", "2w", "--tenant", "tenant_b")[1:-1] == [["tenant_b", "12"]]
    assert (total(furnished), total(furnished, "tenant_b")) == (26, 1)
    # all that are older than nearly nothing
    assert prune(furnished, "--older-than", "100w")[-1][1] == "0"
    assert total(furnished) == 26


def test_what_can_not_be_pruned_is_one_line(furnished: Path | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = tables(furnished)
    at = ("--database", str(furnished))
    for wrong in ("90", "0d", "-1d", "1.5h", "ninety days", "1y", ""):
        assert "as in 90d" in refusal(2, "runs", "prune", "--older-than", wrong, *at)
        assert "as in 90d" in refusal(2, "serve", "--keep-runs", wrong, *at)
    assert "'--older-than'" in refusal(2, "runs", "prune", *at)
    assert "no tenant 'nobody'" in refusal(2, "runs", "prune", "--older-than", "1d", "--tenant", "nobody", *at)
    assert "a tenant's id is" in refusal(2, "runs", "prune", "--older-than", "1d", "--tenant", "a b", *at)
    assert "There is no database" in refusal(1, "runs", "prune", "--older-than", "1d", "--database", "missing.db")
    if isinstance(furnished, str):
        assert "vacuum full" in refusal(2, "runs", "prune", "--older-than", "1d", "--vacuum", *at)
    assert tables(furnished) == before
    assert not (tmp_path / "missing.db").exists()


@pytest.mark.embedded
def test_the_space_is_used_again_and_given_back_while_no_server_runs(furnished: Path) -> None:
    execute(furnished, f"update runs set prompt = '{'long ' * 4000}' where created_at < '{YOUNG}'")
    prune(furnished, "--older-than", "1d", "--tenant", "tenant_b")
    large, ((free,),) = furnished.stat().st_size, rows(furnished, "pragma freelist_count")
    assert free > 50
    with Service(furnished):
        said = refusal(1, "runs", "prune", "--older-than", "1d", "--vacuum", "--database", str(furnished))
        assert "in use by another server" in said
        assert total(furnished) == 26
    prune(furnished, "--older-than", "1d", "--vacuum")
    assert total(furnished) == 1
    assert furnished.stat().st_size < large / 2
    assert rows(furnished, "pragma freelist_count") == [(0,)]
    assert rows(furnished, "pragma integrity_check") == [("ok",)]


@pytest.mark.embedded
def test_what_was_deleted_is_told_where_its_space_can_not_be_given_back(
    furnished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise MigrationError("The disk is full.")

    monkeypatch.setattr("service.storage.migrations.compact", full)
    ended = CliRunner().invoke(cli, ["runs", "prune", "--older-than", "1d", "--vacuum", "--database", str(furnished)])
    assert ended.exit_code == 1
    assert "Deleted 37 runs created before " in ended.stdout
    assert ended.stderr.endswith("Error: The disk is full.\n")


def test_what_was_deleted_is_told_where_it_is_interrupted(furnished: Path | str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stopped(*arguments: Any) -> int:
        arguments[-1](5)
        raise KeyboardInterrupt

    monkeypatch.setattr("service.commands.runs.prune", stopped)
    ended = CliRunner().invoke(cli, ["runs", "prune", "--older-than", "1d", "--database", str(furnished)])
    assert ended.exit_code == 1
    assert re.fullmatch(r"Deleted 5 runs created before \S+, and not all of them\.\n", ended.stdout)


def test_a_server_that_runs_goes_on_and_tells_of_what_is_left(furnished: Path | str) -> None:
    with Service(furnished) as service:
        assert b'"total":26,' in ask(service.origin, "/runs?limit=1", "key_tenant_a")[1]
        prune(furnished, "--older-than", "1d")
        assert b'"total":1,' in ask(service.origin, "/runs?limit=1", "key_tenant_a")[1]


def test_a_server_that_keeps_runs_for_so_long_deletes_older_ones_by_itself(furnished: Path | str) -> None:
    with Service(furnished, "--keep-runs", "90d") as service:
        told, deadline = "Deleted 37 runs that were older than they are kept for.", time.monotonic() + 10
        while told not in service.log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for key in ("key_tenant_a", "key_tenant_b"):
            assert b'"total":1,' in ask(service.origin, "/runs?limit=1", key)[1]


# within a service


class Rounds:
    """The rounds of a server's retention: `told` what each has deleted."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.told: asyncio.Queue[Any] = asyncio.Queue()
        prune = retention.prune

        async def watched(*arguments: Any) -> int:
            try:
                deleted = await prune(*arguments)
            except BaseException as error:
                self.told.put_nowait(error)
                raise
            self.told.put_nowait(deleted)
            return deleted

        patch.setattr(retention, "prune", watched)

    async def next(self) -> Any:
        async with asyncio.timeout(10):
            return await self.told.get()


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Rounds:
    monkeypatch.setattr(retention, "_EVERY", 0.02)
    return Rounds(monkeypatch)


async def start(serve: Serve, config: Config, **settings: Any) -> Client:
    return await serve(replace(config, keep_runs=timedelta(days=90), **settings))


async def test_what_has_become_too_old_goes_in_the_next_round(
    serve: Serve, config: Config, furnished: Path | str, rounds: Rounds
) -> None:
    client = await start(serve, config)
    assert await rounds.next() == 37
    while await rounds.next():
        pass
    store(config.database, 3)
    while (found := await rounds.next()) == 0:
        pass
    assert found == 3
    assert (await client.json("GET", "/runs"))["total"] == 1


async def test_a_round_that_fails_is_told_and_followed_by_another(
    serve: Serve,
    config: Config,
    furnished: Path | str,
    rounds: Rounds,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    listed, failures = retention.tenants_of, iter([Unavailable(), ZeroDivisionError()])

    async def fails(database: Any) -> list[str]:
        for failure in failures:
            raise failure
        return await listed(database)

    monkeypatch.setattr(retention, "tenants_of", fails)
    await start(serve, config)
    assert await rounds.next() == 37
    told = [record.getMessage() for record in caplog.records if record.name == "service.retention"]
    assert told[0].startswith("Old runs were not deleted, and will be in the next round: The storage does not answer")
    assert told[1] == "Old runs were not deleted."
    assert [record.levelno for record in caplog.records if record.name == "service.retention"][:2] == [
        logging.WARNING,
        logging.ERROR,
    ]


async def test_a_stop_ends_it_between_two_steps(
    serve: Serve, config: Config, furnished: Path | str, rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_FIRST", 1)
    monkeypatch.setattr(retention, "_MOST", 1)
    monkeypatch.setattr(retention, "_SHORTEST_PAUSE", 1000)
    client = await start(serve, config)
    async with asyncio.timeout(5):
        while total(furnished) == 26:  # noqa: ASYNC110  # nothing announces a step
            await asyncio.sleep(0.005)
        await client.close()
    assert isinstance(await rounds.next(), asyncio.CancelledError)
    assert total(furnished) == counted(furnished) == 25


async def test_runs_are_deleted_a_few_at_a_time_and_as_fast_as_they_can_be(
    furnished: Path | str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(furnished, 100)
    opened = await engine_of(furnished).open(load_queries(resource("sql"), engine))
    try:
        steps: list[int] = []
        monkeypatch.setattr(retention, "_STEP", 0)
        monkeypatch.setattr(retention, "_PAUSE", 0)
        # a step that takes longer than it may is not made cheaper by taking fewer
        store(furnished, 20, tenant="tenant_b", agent_id=2)
        assert await retention.prune(opened, ["tenant_b"], YOUNG, steps.append) == 32
        assert steps[:3] == [10, 10, 10]
        steps.clear()
        # but where it takes so long that the runs must be large
        monkeypatch.setattr(retention, "_LONG", 0)
        store(furnished, 12, tenant="tenant_b", agent_id=2)
        assert await retention.prune(opened, ["tenant_b"], YOUNG, steps.append) == 12
        assert steps[:3] == [10, 1, 1]
        steps.clear()
        monkeypatch.setattr(retention, "_STEP", 1000)
        # one that takes less, by one of twice as many
        assert await retention.prune(opened, ["tenant_a"], YOUNG, steps.append) == 125
        # the young run, behind which old ones were stored, is not among them
        assert steps[:3] == [10, 20, 40]
        assert max(steps) <= retention._MOST
    finally:
        await opened.close()


async def test_of_several_processes_one_at_a_time_deletes(shared_database: str) -> None:
    engine = engine_of(shared_database)
    async with engine.turn() as first:
        assert first
        async with engine.turn() as second:
            assert not second
    async with engine.turn() as third:
        assert third


async def test_a_process_whose_turn_it_is_not_deletes_nothing(serve: Serve, shared_database: str, rounds: Rounds) -> None:
    client = await serve(Config(database=shared_database))
    agent = await make_agent(client)
    store(shared_database, 5, agent_id=agent["id"])
    async with engine_of(shared_database).turn():
        await start(serve, Config(database=shared_database))
        await asyncio.sleep(0.1)
        assert rounds.told.empty()
        assert total(shared_database) == 5
    assert await rounds.next() == 5


async def test_a_run_that_is_stored_meanwhile_is_not_held_up_for_long(
    serve: Serve, config: Config, furnished: Path | str, rounds: Rounds
) -> None:
    """It stands in one queue with the steps, and they are short."""
    store(config.database, 500)
    client = await start(serve, config, rate_limit=1000)
    done = [await run(client, 1) for _ in range(20)]
    assert await rounds.next() == 537
    assert (await client.json("GET", "/runs?limit=1"))["total"] == 1 + len(done)


@pytest.mark.embedded
def test_a_writer_that_never_lets_go_is_one_line(furnished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.storage.sqlite._PATIENCE", 0.01)
    with held_writes(furnished):
        ended = CliRunner().invoke(cli, ["runs", "prune", "--older-than", "1d", "--database", str(furnished)])
    assert (ended.exit_code, ended.stdout) == (1, "")
    # before it stands the bar that begins
    assert ended.stderr.splitlines()[-1] == "Error: The database does not answer: it may be busy, full or read-only."
    assert total(furnished) == 26
