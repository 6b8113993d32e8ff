"""A few bursts; and an application that does not know what it has answered, or what has changed, is found out."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service.idempotency import Retries
from tests.attacks import bursts, retries


def test_fifty_at_once_have_one_effect(tmp_path: Path) -> None:
    counts = retries.attack(1, 12, tmp_path)
    assert counts["bursts"] == 12
    assert counts["requests"] > 12 * 50
    for name in ("effects", "replays", "over_limit", "under_way", "reused", "hung_up", "changed"):
        assert counts[name] > 0, counts


def test_an_application_that_forgets_its_answers_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any) -> None:
        return None

    monkeypatch.setattr(Retries, "_kept", never)
    # nothing expires sooner than what is kept from now on
    monkeypatch.setattr("service.idempotency.KEPT_FOR", timedelta(hours=-1))
    monkeypatch.setattr(bursts, "_KINDS", ("runs",))
    with pytest.raises(AssertionError, match="first Answer"):
        retries.attack(2, 1, tmp_path)


def test_an_application_that_lets_all_in_at_once_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def each(self: Retries, tenant: Any, key: str, fingerprint: str, work: Any) -> Any:
        return self._render(await work(tenant)), False

    monkeypatch.setattr(Retries, "once", each)
    monkeypatch.setattr(bursts, "_KINDS", ("runs",))
    with pytest.raises(AssertionError, match="requests were done"):
        retries.attack(3, 6, tmp_path)


def test_an_application_that_ignores_if_match_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for handlers in ("agents", "tools"):
        monkeypatch.setattr(f"service.handlers.{handlers}.versions", lambda if_match: None)
    monkeypatch.setattr(retries, "BURSTS", (bursts._lost_updates,))
    with pytest.raises(AssertionError, match="of 50 requests were done"):
        retries.attack(4, 1, tmp_path)
