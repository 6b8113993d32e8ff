"""A short run of tenants.py, and what it must not overlook: services in which one thing is broken."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

import service.app
from service.limiter import FixedWindow
from service.storage.queries import Query, load_queries
from tests.attacks.tenants import STEPS, attack

SEQUENCES = 20

# the query, what stands in it, and what stands there in the broken service
BROKEN = {
    "a tool is read whosever it is": ("get_tool", "tenant_id = :tenant_id", ":tenant_id <> ''"),
    "keys of retries meet": ("get_kept_answer", "tenant_id = :tenant_id", ":tenant_id <> ''"),
    "a revoked key opens": ("find_api_key", " and revoked_at is null", ""),
    "an update loses a field": ("change_agent", "role = coalesce(:role, role)", "role = coalesce(role, :role)"),
    "an agent's tag outlives a tool's name": ("tool_is_renamed", "version + 1", "version"),
}


def breaking(name: str, old: str, new: str) -> Callable[[Path], Mapping[str, Query]]:
    """load_queries with one text in one query changed."""

    def load(folder: Path) -> Mapping[str, Query]:
        queries = dict(load_queries(folder))
        assert old in queries[name].sql, f"{name} has changed: break it in another way"
        queries[name] = replace(queries[name], sql=queries[name].sql.replace(old, new))
        return queries

    return load


def test_two_tenants_and_a_stranger_find_what_the_model_has(tmp_path: Path) -> None:
    counts = attack(1, SEQUENCES, tmp_path)
    assert counts[f"sequences of {STEPS} steps"] >= SEQUENCES
    assert counts["steps"] >= SEQUENCES * STEPS


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_query_is_found(broken: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.app, "load_queries", breaking(*broken))
    with pytest.raises(AssertionError, match=r"(?s)The last requests before it.*The sequence"):
        attack(2, SEQUENCES, tmp_path, shrink=False)


def test_a_limit_that_tenants_share_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_window = FixedWindow._open_window
    monkeypatch.setattr(FixedWindow, "_open_window", lambda limiter, _, now: open_window(limiter, "everybody", now))
    admit = FixedWindow.admit
    monkeypatch.setattr(FixedWindow, "admit", lambda limiter, _: admit(limiter, "everybody"))
    with pytest.raises(AssertionError, match="The last requests before it"):
        attack(2, SEQUENCES, tmp_path, shrink=False)
