"""A few bursts; and an application that does not know what it has answered, or what has changed, is found out."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service.idempotency import Retries
from tests.attacks import bursts, retries
from tests.support import postgresql


def test_fifty_at_once_have_one_effect(engine: str, tmp_path: Path) -> None:
    # each kind of burst twice
    bursts, elsewhere = {"sqlite": (12, 0), "postgresql": (18, 6)}[engine]
    counts = retries.attack(1, bursts, tmp_path, engine)
    assert counts["bursts"] == bursts
    assert counts["elsewhere"] == elsewhere
    assert counts["requests"] > bursts * 50
    for name in ("effects", "replays", "over_limit", "under_way", "reused", "hung_up", "changed"):
        assert counts[name] > 0, counts


def test_an_application_that_forgets_its_answers_is_found_out(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: Any) -> None:
        return None

    monkeypatch.setattr(Retries, "_kept", never)
    # nothing expires sooner than what is kept from now on
    monkeypatch.setattr("service.idempotency.KEPT_FOR", timedelta(hours=-1))
    monkeypatch.setattr(bursts, "_KINDS", ("runs",))
    with pytest.raises(AssertionError, match="first Answer"):
        retries.attack(2, 1, tmp_path, engine)


def test_an_application_that_lets_all_in_at_once_is_found_out(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def each(self: Retries, tenant: Any, key: str, fingerprint: str, work: Any) -> Any:
        return self._render(await work(tenant)), False

    monkeypatch.setattr(Retries, "once", each)
    monkeypatch.setattr(bursts, "_KINDS", ("runs",))
    with pytest.raises(AssertionError, match="requests were done"):
        retries.attack(3, 6, tmp_path, engine)


def test_an_application_that_ignores_if_match_is_found_out(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for handlers in ("agents", "tools"):
        monkeypatch.setattr(f"service.handlers.{handlers}.versions", lambda if_match: None)
    monkeypatch.setattr(retries, "BURSTS", (bursts._lost_updates,))
    with pytest.raises(AssertionError, match="of 50 requests were done"):
        retries.attack(4, 1, tmp_path, engine)


@pytest.mark.skipif(postgresql.server() is None, reason=postgresql.HOW_TO_RUN)
@pytest.mark.parametrize("burst", bursts.BETWEEN_SERVERS[:2], ids=lambda burst: burst.__name__.strip("_"))
def test_servers_that_do_not_know_of_each_other_are_found_out(
    burst: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = Retries.once

    async def alone(self: Retries, tenant: Any, key: str, *more: Any) -> Any:
        # what another one has kept is under another key
        return await once(self, tenant, f"{key} of {id(self)}", *more)

    monkeypatch.setattr(Retries, "once", alone)
    monkeypatch.setattr(retries, "BURSTS", ())
    monkeypatch.setattr(retries, "BETWEEN_SERVERS", (burst,))
    monkeypatch.setattr(bursts, "_KINDS", ("runs",))
    with pytest.raises(AssertionError, match="2 of 50 requests were done"):
        retries.attack(5, 1, tmp_path, "postgresql")
