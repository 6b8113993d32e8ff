"""A short run of tenants.py, and what it must not overlook: services in which one thing is broken."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import service.app
from service.limiter import FixedWindow
from service.storage.queries import Query, load_queries
from tests.attacks.tenants import STEPS, attack, cover_the_spec, some_sequences
from tests.support import postgresql

SEQUENCES = {"sqlite": 8, "postgresql": 2}
# a service that is broken as below is mostly found by the second sequence: the first one is always a plain one
ENOUGH = 6

# a seed under which it is soon found; the query, what stands in it, and what stands there in the broken service
BROKEN = {
    "a revoked key opens": (25, "find_api_key", " and api_keys.revoked_at is null", ""),
    "an update loses a field": (21, "change_agent", "role = coalesce(:role, role)", "role = coalesce(role, :role)"),
    "an agent's tag outlives a tool's name": (29, "tool_is_renamed", "version + 1", "version"),
}
# in PostgreSQL row-level security holds where these forget the tenant
FORGETFUL = {
    "a tool is read whosever it is": (22, "get_tool", "tenant_id = :tenant_id", ":tenant_id <> ''"),
    "keys of retries meet": (30, "get_kept_answer", "tenant_id = :tenant_id", ":tenant_id <> ''"),
}


def breaking(*changes: Sequence[str]) -> Callable[[Path, str], Mapping[str, Query]]:
    """load_queries with one text in each of these queries changed."""

    def load(folder: Path, engine: str) -> Mapping[str, Query]:
        queries = dict(load_queries(folder, engine))
        for name, old, new in changes:
            assert old in queries[name].sql, f"{name} has changed: break it in another way"
            queries[name] = replace(queries[name], sql=queries[name].sql.replace(old, new))
        return queries

    return load


def test_two_tenants_and_a_stranger_find_what_the_model_has(engine: str, tmp_path: Path) -> None:
    sequences = SEQUENCES[engine]
    counts = attack(1, sequences, tmp_path, engine)
    assert counts[f"sequences of {STEPS} steps"] >= sequences
    assert counts["steps"] >= sequences * STEPS
    if engine == "sqlite":
        # the few on the other engine do not come to everything
        cover_the_spec(counts, "operation")


def find(seed: int, folder: Path, engine: str, sequences: int = ENOUGH) -> Counter[str]:
    counts: Counter[str] = Counter()
    some_sequences(seed, sequences, folder, engine, counts, shrink=False)
    return counts


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_query_is_found(
    broken: tuple[int, str, str, str], engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed, name, old, new = broken
    monkeypatch.setattr(service.app, "load_queries", breaking((name, old, new)))
    with pytest.raises(AssertionError, match=r"(?s)The last requests before it.*The sequence"):
        find(seed, tmp_path, engine)


@pytest.mark.embedded
@pytest.mark.parametrize("broken", FORGETFUL.values(), ids=FORGETFUL)
def test_a_query_that_forgets_the_tenant_is_found(
    broken: tuple[int, str, str, str], engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed, name, old, new = broken
    monkeypatch.setattr(service.app, "load_queries", breaking((name, old, new)))
    with pytest.raises(AssertionError, match="The last requests before it"):
        find(seed, tmp_path, engine)


@pytest.mark.skipif(postgresql.server() is None, reason=postgresql.HOW_TO_RUN)
def test_in_postgresql_queries_that_forget_the_tenant_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.app, "load_queries", breaking(*(change for _, *change in FORGETFUL.values())))
    counts = find(35, tmp_path, "postgresql", 2)
    assert counts["sequences"] >= 2
    assert counts["succeeded get_tool"] > 0
    assert counts["replays"] > 0


@pytest.mark.embedded
def test_a_limit_that_tenants_share_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_window = FixedWindow._open_window
    monkeypatch.setattr(FixedWindow, "_open_window", lambda limiter, _, now: open_window(limiter, "everybody", now))
    admit = FixedWindow.admit
    monkeypatch.setattr(FixedWindow, "admit", lambda limiter, _: admit(limiter, "everybody"))
    with pytest.raises(AssertionError, match="The last requests before it"):
        find(21, tmp_path, "sqlite")
