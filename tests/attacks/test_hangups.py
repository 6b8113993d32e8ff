"""A hundred cancellations; and an application that writes in two steps, or does not count who has gone, is found out."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from service.gate import Gate
from service.handlers import agents
from service.storage.scope import Scope
from tests.attacks import hangups


def test_what_is_cut_off_is_done_whole_or_not_at_all(engine: str, tmp_path: Path) -> None:
    counts = hangups.attack(1, 60, tmp_path, engine)
    assert counts["cancellations"] >= 60
    assert counts["done"] > 5
    assert counts["not_done"] > 5
    assert counts["acknowledged"] == counts["found"] > 50


def test_an_agent_that_is_written_in_two_steps_is_found_out(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def create_agent(tenant: Scope, body: dict[str, Any]) -> Any:
        made = await tenant.write(agents._create({**body, "tool_ids": []}))
        await asyncio.sleep(0)
        changed = await tenant.write(agents._change(made[0]["id"], {"tool_ids": body.get("tool_ids", [])}, None))
        shown = {name: value for name, value in changed.items() if name != "version"}
        return shown, *made[1:]

    monkeypatch.setattr(agents, "create_agent", create_agent)
    with pytest.raises(AssertionError, match=r"neither is it undone|not done, but replayed"):
        hangups.attack(2, 300, tmp_path, engine)


@pytest.mark.embedded
def test_a_gate_that_does_not_see_the_cancelled_go_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(self: Gate, kind: type[BaseException] | None, *_: object) -> None:
        self.inside -= kind is not asyncio.CancelledError

    monkeypatch.setattr(Gate, "__exit__", leave)
    with pytest.raises(AssertionError, match="are inside still"):
        hangups.attack(3, 100, tmp_path)
