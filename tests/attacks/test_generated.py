"""The generated requests, few of them, and what they notice; each reason to refuse a valid one stands in the spec."""

from pathlib import Path
from typing import Any

import pytest

import service.handlers.service
from service.validation import Validator
from tests.attacks.generated import attack, is_empty_page
from tests.attacks.generated_refusals import MISLABELLED, REASONS
from tests.support.contract import SPEC_FILE


def test_generated_requests_find_nothing(engine: str, tmp_path: Path) -> None:
    # each phase on one engine; what coverage sends depends on the spec alone, and most is refused before the engine is asked
    last, amount = {"sqlite": ("coverage", 1_000), "postgresql": ("stateful", 200)}[engine]
    first = ("examples", "fuzzing", last)
    counts = attack(4, amount, tmp_path, engine, first)
    assert counts["requests"] >= amount
    assert counts["operations"] == 28
    assert counts["check_kinds"] == 15
    assert counts["checks"] > 10 * counts["requests"]
    if last == "stateful":
        assert counts["links"] > 5
        assert counts["stateful_sequences"] >= 4
    assert {"status_200", "status_201", "status_204", "status_400", "status_401", "status_404", "status_429"} <= set(counts)


async def _says_too_much() -> dict[str, Any]:
    return {"status": "ok", "secret": 1}


async def _fails() -> dict[str, Any]:
    raise RuntimeError


@pytest.mark.parametrize(("handler", "noticed"), [(_says_too_much, "Additional properties"), (_fails, "not_a_server_error")])
@pytest.mark.embedded
def test_a_broken_answer_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, handler: Any, noticed: str) -> None:
    monkeypatch.setattr(service.handlers.service, "get_health", handler)
    with pytest.raises(AssertionError, match=noticed):
        attack(4, 1, tmp_path)


def test_an_unknown_field_that_is_let_pass_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    errors = Validator.errors

    def lenient(self: Validator, value: Any) -> list[tuple[str, str]]:
        return [place for place in errors(self, value) if place[1] != "This field is not known."]

    monkeypatch.setattr(Validator, "errors", lenient)
    with pytest.raises(AssertionError, match="negative_data_rejection"):
        attack(4, 1, tmp_path)


def test_a_valid_request_that_is_refused_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    errors = Validator.errors

    def choosy(self: Validator, value: Any) -> list[tuple[str, str]]:
        disliked = isinstance(value, dict) and value.get("name") == "search"
        return [("#/name", "Not this one.")] if disliked else errors(self, value)

    monkeypatch.setattr(Validator, "errors", choosy)
    with pytest.raises(AssertionError, match="positive_data_acceptance"):
        attack(4, 1, tmp_path)


def test_each_reason_to_refuse_a_valid_request_stands_in_the_spec() -> None:
    spec = " ".join(SPEC_FILE.read_text(encoding="utf-8").split())
    assert [reason.name for reason in (*REASONS, MISLABELLED) if reason.sentence not in spec] == []


@pytest.mark.parametrize(
    ("body", "is_one"),
    [
        (b'{"items":[],"total":0,"limit":3,"offset":1430,"next":null}', True),
        (b'{"items":[{"id":3}],"total":1,"limit":3,"offset":0,"next":null}', False),
        # how many there are is something of a tenant's, too
        (b'{"items":[],"total":1,"limit":3,"offset":1430,"next":null}', False),
        (b'{"id":3,"items":[]}', False),
        (b"[]", False),
        (b"", False),
    ],
)
def test_only_a_page_with_nothing_in_it_is_nobodys(body: bytes, is_one: bool) -> None:
    assert is_empty_page(body) is is_one
