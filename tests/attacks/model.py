"""What one tenant has, as dictionaries, and what the service must answer to a request of theirs: the model of tenants.py.

It holds JSON as the API shows it, and follows README.md and openapi.yaml, not the service's code. Three things it can't know
before the service says them, and takes over when it has: ids (never seen before), times (in order) and ETags (new ones).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.http import Answer

JSON = dict[str, Any]
# the filters of a list, by their parameters' names
Filters = Mapping[str, Any]

RATE_LIMIT, RATE_WINDOW = 3, 60
NO_TIME_YET = "the service has yet to say"
SINGULAR = {"tools": "tool", "agents": "agent", "runs": "run"}

_PROBLEMS = {
    "invalid-request": (400, "Invalid request"),
    "malformed-request": (400, "Malformed request"),
    "guardrail": (400, "Stopped by the guardrail"),
    "unauthorized": (401, "Unauthorized"),
    "not-found": (404, "Not found"),
    "method-not-allowed": (405, "Method not allowed"),
    "conflict": (409, "Conflict"),
    "precondition-failed": (412, "Precondition failed"),
    "unsupported-media-type": (415, "Unsupported media type"),
    "idempotency-key-reused": (422, "Idempotency key reused"),
    "too-many-runs": (429, "Too many runs"),
}


@dataclass(frozen=True)
class Refusal:
    """A problem that the service must answer with; `errors` are (pointer or parameter, detail)."""

    kind: str
    detail: str
    errors: Sequence[tuple[str, str]] = ()
    rule: str | None = None

    @property
    def status(self) -> int:
        return _PROBLEMS[self.kind][0]

    def body(self, path: str, request_id: str) -> JSON:
        """The problem as it is sent, its errors in the order of their places."""
        status, title = _PROBLEMS[self.kind]
        problem: JSON = {"type": f"urn:agent-platform:problem:{self.kind}", "title": title, "status": status}
        problem |= {"detail": self.detail, "instance": path, "request_id": request_id}
        if self.rule:
            problem["rule"] = self.rule
        if self.errors:
            problem["errors"] = [
                {"pointer" if place.startswith("#") else "parameter": place, "detail": detail}
                for place, detail in sorted(self.errors)
            ]
        return problem


UNAUTHORIZED = Refusal("unauthorized", "Send a valid API key in the header X-API-Key.")
KEY_REUSED = Refusal("idempotency-key-reused", "This Idempotency-Key came with another request before; use a new one.")


def invalid(*errors: tuple[str, str]) -> Refusal:
    """The refusal of a request that breaks the contract at these places."""
    places = "1 place" if len(errors) == 1 else f"{len(errors)} places"
    return Refusal("invalid-request", f"The request breaks the contract in {places}.", errors)


def not_found(kind: str) -> Refusal:
    """The 404 of what does not exist for this tenant, whoever has it."""
    return Refusal("not-found", f"There is no such {SINGULAR[kind]}.")


def has_changed(kind: str) -> Refusal:
    """The 412 of a thing that has another version than If-Match names."""
    return Refusal("precondition-failed", f"The {SINGULAR[kind]} has another version than If-Match names: read it again.")


@dataclass
class Tags:
    """A thing's ETags: the one of now, None where it has changed since it was last shown, and those of before."""

    now: str | None = None
    before: list[str] = field(default_factory=list)

    def change(self) -> None:
        if self.now is not None:
            self.before.append(self.now)
            self.now = None


@dataclass
class Kept:
    """What an idempotency key came with, and what it was answered."""

    asked: str
    answer: Answer


@dataclass
class Cursor:
    """A cursor that the service gave out: of which list, behind which item, and how many items that were."""

    route: str
    filters: Filters
    text: str
    last: int
    passed: int


class Tenant:
    """One tenant: keys, `tools`, `agents` and `runs` by id, deleted ids, ETags, kept answers, given cursors, the window."""

    def __init__(self, tenant_id: str, marker: str) -> None:
        self.tenant_id = tenant_id
        self.marker = marker
        # those that work by their ids, and those that don't any more
        self.keys: dict[int, str] = {}
        self.revoked: list[str] = []
        self.tools: dict[int, JSON] = {}
        self.agents: dict[int, JSON] = {}
        self.runs: dict[int, JSON] = {}
        self.gone: dict[str, list[int]] = {"tools": [], "agents": [], "runs": []}
        self.tags: dict[tuple[str, int], Tags] = {}
        self.kept: dict[str, Kept] = {}
        self.cursors: list[Cursor] = []
        # when it ends, and how many runs it has counted
        self.window: tuple[float, int] | None = None
        # grows with each change, so that an answer that was compared once need not be parsed again
        self.revision = 0

    def things(self, kind: str) -> dict[int, JSON]:
        things: dict[int, JSON] = getattr(self, kind)
        return things

    def shown(self, kind: str, thing_id: int) -> JSON:
        """A tool, an agent or a run as the API shows it."""
        thing = self.things(kind)[thing_id]
        if kind != "agents":
            return thing
        return thing | {"tools": [{"id": each, "name": self.tools[each]["name"]} for each in thing["tool_ids"]]}

    def faults(self, kind: str, body: JSON, own_id: int | None = None) -> list[Refusal]:
        """Why a body that keeps to the schema can't be stored: a name that is taken, tool ids that are none of theirs.

        Which of both reasons is named is the service's choice.
        """
        found = []
        name = body.get("name")
        if any(thing["name"] == name and thing_id != own_id for thing_id, thing in self.things(kind).items()):
            article = {"tools": "A tool", "agents": "An agent"}[kind]
            found.append(Refusal("conflict", f"{article} named '{name}' already exists."))
        unknown = [(place, each) for place, each in enumerate(body.get("tool_ids") or ()) if each not in self.tools]
        if unknown:
            errors = [(f"#/tool_ids/{place}", f"There is no tool with the id {each}.") for place, each in unknown]
            found.append(Refusal("invalid-request", "Every id in tool_ids must be a tool of the tenant.", errors))
        return found

    def add(self, kind: str, thing: JSON) -> None:
        """Takes over what was created."""
        self.revision += 1
        self.things(kind)[thing["id"]] = {name: value for name, value in thing.items() if name != "tools"}
        self.tags[kind, thing["id"]] = Tags()

    def change(self, kind: str, thing_id: int, body: JSON) -> None:
        """Changes what `body` holds, and what else shows it."""
        self.revision += 1
        thing = self.things(kind)[thing_id]
        renamed = kind == "tools" and body.get("name", thing["name"]) != thing["name"]
        if "tool_ids" in body:
            body = body | {"tool_ids": sorted(body["tool_ids"] or [])}
        thing |= body | {"updated_at": NO_TIME_YET}
        self.tags[kind, thing_id].change()
        for agent_id in self.agents_with(thing_id) if renamed else ():
            self.tags["agents", agent_id].change()

    def delete(self, kind: str, thing_id: int) -> None:
        """Deletes a tool, which its agents lose, or an agent, whose runs stay."""
        self.revision += 1
        if kind == "tools":
            for agent_id in self.agents_with(thing_id):
                agent = self.agents[agent_id]
                agent["tool_ids"] = [each for each in agent["tool_ids"] if each != thing_id]
                agent["updated_at"] = NO_TIME_YET
                self.tags["agents", agent_id].change()
        del self.things(kind)[thing_id]
        self.gone[kind].append(thing_id)

    def agents_with(self, tool_id: int) -> list[int]:
        return [agent_id for agent_id, agent in self.agents.items() if tool_id in agent["tool_ids"]]

    def is_used(self, kind: str, thing_id: int) -> bool:
        """Has an agent the tool, or has the agent runs?"""
        if kind == "tools":
            return bool(self.agents_with(thing_id))
        return any(run["agent_id"] == thing_id for run in self.runs.values())

    def listing(self, route: str, filters: Filters) -> list[JSON] | None:
        """All items of a list in order; None where the agent whose runs it holds is not there."""
        kind = "runs" if route.endswith("runs") else route.removeprefix("/")
        wanted = dict(filters)
        if kind == "tools" and (agent_name := wanted.pop("agent_name", None)) is not None:
            ids = next((agent["tool_ids"] for agent in self.agents.values() if agent["name"] == agent_name), [])
        elif kind == "agents" and (tool_name := wanted.pop("tool_name", None)) is not None:
            ids = next((self.agents_with(each) for each, tool in self.tools.items() if tool["name"] == tool_name), [])
        elif route not in ("/tools", "/agents", "/runs"):
            agent_id = int(route.split("/")[2])
            if agent_id not in self.agents:
                return None
            wanted["agent_id"] = agent_id
            ids = list(self.runs)
        else:
            ids = list(self.things(kind))
        after, before = wanted.pop("created_after", ""), wanted.pop("created_before", "~")
        items = [self.shown(kind, each) for each in sorted(ids, reverse=kind == "runs")]
        return [
            item
            for item in items
            if all(item[name] == value for name, value in wanted.items())
            and (kind != "runs" or after < item["created_at"] < before)
        ]

    def rate_headers(self, now: float) -> dict[str, str]:
        """What the answers to a run say of the limit."""
        ends, used = self.open_window(now)
        policy, left = f'"run";q={RATE_LIMIT};w={RATE_WINDOW}', math.ceil(ends - now)
        return {"RateLimit-Policy": policy, "RateLimit": f'"run";r={RATE_LIMIT - used};t={left}'}

    def over_limit(self, now: float) -> Refusal | None:
        """The 429 of a tenant whose window is full."""
        ends, used = self.open_window(now)
        if used < RATE_LIMIT:
            return None
        wait = math.ceil(ends - now)
        return Refusal(
            "too-many-runs", f"The limit is {RATE_LIMIT} runs in {RATE_WINDOW} seconds; try again in {wait} seconds."
        )

    def count_run(self, now: float) -> None:
        ends, used = self.open_window(now)
        self.window = (ends, used + 1)

    def open_window(self, now: float) -> tuple[float, int]:
        """The window's end and what it has counted: a window that would begin now where none is open."""
        if self.window is not None and self.window[0] > now:
            return self.window
        return now + RATE_WINDOW, 0


def asked(path: str, body: JSON) -> str:
    """What makes two requests with one idempotency key the same, however the body is written."""
    return json.dumps([path, body], sort_keys=True)
