"""Requests generated from openapi.yaml by Schemathesis, against the real service: examples, coverage, fuzzing, stateful.

All checks are on. A check that would refuse what the spec allows is not switched off: generated_refusals.py says in the
spec's own words which refusals of valid requests are right. Every answer is held against our own Contract as well.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import schemathesis
from multidict import CIMultiDict
from schemathesis import Case, HookContext, Response
from schemathesis.checks import CHECKS
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import Failure
from schemathesis.engine import Status, events, from_schema
from schemathesis.engine.recorder import ScenarioRecorder
from schemathesis.openapi.checks import ObjectLevelAuthorizationViolation, RejectedPositiveData, UseAfterFree
from schemathesis.schemas import BaseSchema

from service.config import Config
from service.contract import load_spec
from tests.attacks import databases
from tests.attacks.databases_base import Store
from tests.attacks.generated_refusals import Refusals
from tests.attacks.generated_server import Served
from tests.support.contract import SPEC_FILE, Contract

_TENANTS = ("tenant_a", "tenant_b")
# far more than any run sends
_NO_LIMIT = 1_000_000
_TIGHT_LIMIT = 1
_MORE_THAN_A_PAGE = 25
# a round sends some hundreds of requests at the least
_MOST_ROUNDS = 200
# from this many requests on it is a long run
_LONG = 5_000
_PHASES = ("examples", "coverage", "fuzzing", "stateful")
_GENERATED = frozenset(_PHASES)


class _Tally:
    """Counts what was sent and answered, and fails at the first answer that is not as the spec says."""

    def __init__(self) -> None:
        self.contract = Contract()
        self.refusals = Refusals(self.contract)
        self.counts: Counter[str] = Counter()
        self.served: set[str] = set()
        self.links: set[str] = set()
        self.checks: set[str] = set()

    def take(self, event: events.EngineEvent, where: str) -> None:
        """Adds what one event of the engine tells. `where` says how to repeat it."""
        if isinstance(event, events.FatalError):
            raise AssertionError(f"{where}: {event.exception!r}")
        if isinstance(event, events.NonFatalError):
            raise AssertionError(f"{where}: {event.label}: {event.value!r}")
        if isinstance(event, events.PhaseFinished) and event.phase.name.value in _GENERATED:
            self.counts["phases"] += event.status is Status.SUCCESS
        if not isinstance(event, events.ScenarioFinished):
            return
        for case_id, interaction in event.recorder.interactions.items():
            self._count(event.recorder, case_id, interaction, where)
        for case_id, checks in event.recorder.checks.items():
            self.counts["checks"] += len(checks)
            self.checks.update(check.name for check in checks)
            for check in checks:
                if check.failure_info is not None:
                    answer = event.recorder.interactions.get(case_id)
                    body = answer.response.content[:500] if answer and answer.response else None
                    failure = check.failure_info
                    message = f"{failure.failure.operation}: {failure.failure.title}: {failure.failure.message[:1000]}"
                    raise AssertionError(f"{where}: {check.name}: {message}\n{failure.code_sample[:3000]}\n{body!r}")
        assert event.status in (Status.SUCCESS, Status.SKIP), f"{where}: {event.label}: {event.status}"
        sent = bool(event.recorder.interactions)
        self.counts["stateful_sequences"] += sent and event.phase.value == "stateful"

    def _count(self, recorder: ScenarioRecorder, case_id: str, interaction: Any, where: str) -> None:
        response, request = interaction.response, interaction.request
        assert response is not None, f"{where}: no answer to {request.method} {request.uri}"
        self.counts["requests"] += 1
        self.counts[f"status_{response.status_code}"] += 1
        node = recorder.cases[case_id]
        if 200 <= response.status_code < 300:
            self.counts["two_hundreds"] += 1
            self.served.add(node.value.operation.label)
        if node.transition is not None and node.is_transition_applied:
            self.counts["links_followed"] += 1
            if not node.transition.is_inferred:
                self.links.add(node.transition.id)
        headers = CIMultiDict((name, value) for name, values in response.headers.items() for value in values)
        path = urlsplit(request.uri).path
        try:
            self.contract.check(request.method, path, response.status_code, headers, response.content or b"")
        except AssertionError as error:
            raise AssertionError(f"{where}: {error}") from None


def attack(seed: int, amount: int, folder: Path, engine: str = "sqlite", first: tuple[str, ...] = _PHASES) -> dict[str, int]:
    """Sends at least `amount` generated requests, some to every operation, and runs beyond their limit.

    The phases `first` are those of the first round, and of the runs beyond the limit, where that is no long run.

    Raises AssertionError for the first answer of 5xx, undocumented status, broken schema, accepted invalid and rejected
    valid request, and for whatever else a check of Schemathesis or the Contract finds; and where an operation was never
    served or a check never asked. The engine is seeded, and keeps no examples of earlier runs.
    """
    logging.getLogger("urllib3").setLevel(logging.INFO)  # two lines for each request of the client
    tally = _Tally()
    keys = folder / "keys.json"
    users = [{"name": tenant, "fixedHeaders": [{"name": "X-API-Key", "value": f"key_{tenant}"}]} for tenant in _TENANTS]
    keys.write_text(json.dumps({"auth": users}), encoding="utf-8")
    all_operations = {f"{method.upper()} {path}" for method, path, _ in tally.contract.operations()}
    with Served(_config(databases.new(engine, folder, "wide"), _NO_LIMIT)) as server:
        for turn in range(_MOST_ROUNDS):
            if turn < len(_TENANTS):
                _fill(server.url, _TENANTS[turn], _MORE_THAN_A_PAGE)
            # The first round is small. What the coverage phase sends depends on the spec alone: once is enough.
            phases = ("fuzzing", "stateful") if turn else first
            examples, sequences = (12, 25) if turn else (1, 4)
            settings = _settings(server.url, keys, seed + turn, _TENANTS[turn % 2], phases, examples, sequences)
            _run(_schema(settings, tally.refusals), tally, f"seed {seed}, round {turn}")
            if tally.counts["requests"] >= amount and tally.served == all_operations:
                break
    assert tally.counts["requests"] >= amount, f"only {tally.counts['requests']} requests"
    assert tally.served == all_operations, f"never served: {sorted(all_operations - tally.served)}"
    with Served(_config(databases.new(engine, folder, "tight"), _TIGHT_LIMIT)) as server:
        _fill(server.url, _TENANTS[0], _TIGHT_LIMIT)
        phases = tuple(each for each in first if each != "stateful" and (each != "fuzzing" or amount >= _LONG))
        settings = _settings(server.url, keys, seed, _TENANTS[0], phases, 2, 1)
        runs = _schema(settings, tally.refusals).include(path="/agents/{agent_id}/run")
        _run(runs, tally, f"seed {seed}, limited")
        if amount >= _LONG:
            settings = _settings(server.url, keys, seed, _TENANTS[0], ("stateful",), 1, 25)
            _run(_schema(settings, tally.refusals), tally, f"seed {seed}, limited, stateful")
    assert tally.counts["status_429"] > 0, "no run was over its limit"
    kinds = {check.__name__ for check in CHECKS.get_all()} | {"max_response_time"}
    assert tally.checks >= kinds, f"never asked: {sorted(kinds - tally.checks)}"
    assert tally.links or "stateful" not in first, "no link of the spec was followed"
    reasons = {f"refused_{name.replace(' ', '_')}": count for name, count in sorted(tally.refusals.counts.items())}
    counts = dict(sorted(tally.counts.items())) | {"operations": len(tally.served), "links": len(tally.links)}
    return counts | {"check_kinds": len(tally.checks)} | reasons


def _fill(url: str, tenant: str, amount: int) -> None:
    """Gives the tenant `amount` tools, agents and runs: more than a page holds, for a `next`, or the whole limit."""
    with requests.Session() as session:
        session.headers["X-API-Key"] = f"key_{tenant}"
        for number in range(amount):
            tool = {"name": f"tool {number}", "description": "Counts"}
            agent = {"name": f"agent {number}", "role": "Clerk", "description": "Counts"}
            made = [session.post(f"{url}/{kind}", json=body) for kind, body in (("tools", tool), ("agents", agent))]
            run = f"{url}/agents/{made[-1].json().get('id')}/run"
            made.append(session.post(run, json={"task": "Count", "model": "gpt-4o"}))
            assert all(answer.ok for answer in made), [answer.text for answer in made]


def _config(store: Store, rate_limit: int) -> Config:
    return Config(database=store.database, rate_limit=rate_limit, wrong_key_limit=_NO_LIMIT)


def _settings(
    url: str, keys: Path, seed: int, tenant: str, phases: tuple[str, ...], examples: int, sequences: int
) -> dict[str, Any]:
    """Schemathesis' settings as its configuration file has them; `tenant` sends, the others are to see nothing of it."""
    enabled: dict[str, dict[str, Any]] = {name: {"enabled": name in phases} for name in _PHASES}
    enabled["coverage"]["generate-duplicate-query-parameters"] = True
    enabled["stateful"] |= {"max-steps": 20, "generation": {"max-examples": sequences}}
    return {
        "seed": seed,
        "base-url": url,
        "workers": 1,
        "request-timeout": 20,
        "continue-on-failure": True,
        "output": {"truncation": {"max-recorded-payload-size": 0}},
        "auth": {"wfc": {"path": str(keys), "user": tenant, "peers": list(_TENANTS)}},
        "generation": {"database": "none", "no-shrink": True, "max-examples": examples},
        "phases": enabled,
        "checks": {
            "enabled": True,
            "max_response_time": 10,
            # the statuses that the spec has for each case: stricter than by default, but for the 304 of If-None-Match
            "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx"]},
            "positive_data_acceptance": {"expected-statuses": ["2xx", "304"]},
            "negative_data_rejection": {"expected-statuses": [400, 401, 404, 405, 415, 429]},
            "missing_required_header": {"expected-statuses": [401]},
        },
    }


def _schema(settings: Mapping[str, Any], refusals: Refusals) -> BaseSchema:
    config = SchemathesisConfig.from_dict(dict(settings))
    schema = schemathesis.openapi.from_dict(load_spec(SPEC_FILE.parent), config=config)

    def filter_failure(context: HookContext, failure: Failure, case: Case, response: Response) -> bool:
        if isinstance(failure, UseAfterFree) and case.operation.path == "/keys/{key_id}":
            # a key that is deleted is revoked, and is still shown so
            return "key_id" not in (case.path_parameters or {})
        if isinstance(failure, ObjectLevelAuthorizationViolation) and is_empty_page(response.content or b""):
            # an empty page is nobody's, though its `limit` happens to be the id that was asked for
            return False
        return not (isinstance(failure, RejectedPositiveData) and refusals.reason(case, response))

    schema.hook(filter_failure)
    return schema


def is_empty_page(body: bytes) -> bool:
    """Is it a page of a list, with nothing in it and nothing counted?"""
    try:
        page = json.loads(body)
    except ValueError:
        return False
    return isinstance(page, dict) and page.keys() >= {"items", "total"} and not page["items"] and page["total"] == 0


def _run(schema: BaseSchema, tally: _Tally, where: str) -> None:
    stream = from_schema(schema).execute()
    try:
        for event in stream:
            tally.take(event, where)
    finally:
        stream.stop()
