"""Why a request that the schemas allow may be refused: each reason in the spec's own words.

A schema can't say which names are taken or which ids exist. Such a refusal is let pass where one of these reasons fits the
request and the answer; any other one is a valid request that was rejected.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from schemathesis import Case, Response

from tests.support.contract import Contract


@dataclass(frozen=True)
class Reason:
    """One reason: its name, the status that it has, the spec's sentence, and when it fits (case, problem)."""

    name: str
    status: int
    sentence: str
    fits: Callable[[Case, Mapping[str, Any]], bool]


def _kind(problem: Mapping[str, Any]) -> str:
    return str(problem["type"]).rpartition(":")[2]


def _places(problem: Mapping[str, Any]) -> set[str]:
    """The parameters, and the fields of the body, that the problem names."""
    errors = problem.get("errors", [])
    return {error.get("parameter") or "/".join(error["pointer"].split("/")[:2]) for error in errors}


def _has(case: Case, header: str) -> bool:
    return header in (case.headers or {})


def _sent(case: Case, parameter: str) -> str:
    """What a case has for a parameter of the path or the query: links hand on what an answer had, null included."""
    given = {**(case.query or {}), **(case.path_parameters or {})}
    return str(given.get(parameter))


def _body_has(case: Case, name: str) -> bool:
    return isinstance(case.body, dict) and name in case.body


REASONS = (
    Reason(
        "missing",
        404,
        "There is no such thing, or it is another tenant's.",
        lambda case, problem: _kind(problem) == "not-found" and "{" in case.operation.path,
    ),
    Reason(
        "name taken",
        409,
        "Names are unique within the tenant, case and all.",
        lambda case, problem: _kind(problem) == "conflict" and _body_has(case, "name"),
    ),
    Reason(
        "days in the wrong order",
        400,
        "Not later than `to`.",
        lambda case, problem: case.operation.path == "/usage" and _places(problem) == {"from"},
    ),
    Reason(
        "key that has no id",
        400,
        "The tenant that the key belongs to, and the id of the key, which is null for a demo key.",
        lambda case, problem: _places(problem) == {"key_id"} and not _sent(case, "key_id").isdecimal(),
    ),
    Reason(
        "key ended",
        409,
        "The key no longer works, or was rotated already, so that there is nothing to rotate.",
        lambda case, problem: _kind(problem) == "conflict" and case.operation.path.endswith("/rotate"),
    ),
    Reason(
        "tool in use",
        409,
        "Refuse with 409 where an agent has the tool.",
        lambda case, problem: _kind(problem) == "conflict" and case.operation.label == "DELETE /tools/{tool_id}",
    ),
    Reason(
        "agent in use",
        409,
        "Refuse with 409 where the agent has runs.",
        lambda case, problem: _kind(problem) == "conflict" and case.operation.label == "DELETE /agents/{agent_id}",
    ),
    Reason(
        "version changed",
        412,
        "Do it only if what is stored has one of these ETags; `*` stands for any.",
        lambda case, problem: _kind(problem) == "precondition-failed" and _has(case, "If-Match"),
    ),
    Reason(
        "key reused",
        422,
        "The same key with another request is 422",
        lambda case, problem: _kind(problem) == "idempotency-key-reused" and _has(case, "Idempotency-Key"),
    ),
    Reason(
        "over the limit",
        429,
        "Runs are limited per tenant.",
        lambda case, problem: _kind(problem) == "too-many-runs" and case.operation.path.endswith("/run"),
    ),
    Reason(
        "cursor of another list",
        400,
        "It serves the list that it came from and no other",
        lambda case, problem: _places(problem) == {"cursor"} and "cursor" in (case.query or {}),
    ),
    Reason(
        "cursor with offset",
        400,
        "is not given together with `offset`.",
        lambda case, problem: _places(problem) == {"offset"} and {"cursor", "offset"} <= set(case.query or {}),
    ),
    Reason(
        "unknown tools",
        400,
        "Every id in `tool_ids` must be a tool of the tenant.",
        lambda case, problem: _places(problem) == {"#/tool_ids"} and _body_has(case, "tool_ids"),
    ),
    Reason(
        "guardrail",
        400,
        "A task that tries to override the agent's instructions is refused with 400, and `rule` names the guardrail's rule.",
        lambda case, problem: _kind(problem) == "guardrail" and _body_has(case, "task"),
    ),
)


# what counts as a valid header and is none; told by a validator of the spec (Refusals._mislabelled)
MISLABELLED = Reason("mislabelled header", 400, "Must be * or a list of ETags in quotes.", lambda case, problem: False)


class Refusals:
    """Judges the refusals of valid requests and counts the reasons found."""

    def __init__(self, contract: Contract) -> None:
        self.counts: dict[str, int] = {}
        self._contract = contract

    def reason(self, case: Case, response: Response) -> str | None:
        """The name of the reason that fits; None where there is none, or the answer is no problem of ours."""
        try:
            problem = json.loads(response.content or b"")
            if problem.get("status") != response.status_code:
                return None
            reasons = (*REASONS, replace(MISLABELLED, fits=self._mislabelled))
            fitting = (each.name for each in reasons if each.status == response.status_code and each.fits(case, problem))
            name = next(fitting, None)
        except (ValueError, KeyError, AttributeError):
            return None
        if name is not None:
            self.counts[name] = self.counts.get(name, 0) + 1
        return name

    def _mislabelled(self, case: Case, problem: Mapping[str, Any]) -> bool:
        """Is each named place a header that, by our own validator, breaks its schema after all?

        The coverage phase narrows header values to letters and digits before it looks at their pattern, and then takes `0`
        for a valid `If-Match`. The fuzzing phase makes valid ones.
        """
        operation = self._contract.spec["paths"][case.operation.path][case.operation.method.lower()]
        declared = {each["name"]: each for each in self._contract.parameters(case.operation.path, operation)}
        places = _places(problem)
        return bool(places) and all(
            place in declared
            and declared[place]["in"] == "header"
            and _has(case, place)
            and not self._contract.validator(declared[place]["schema"]).is_valid(case.headers[place])
            for place in places
        )
