"""Clients that write, each with tools, agents and runs of its own, and what must be stored of what they sent.

A client sends one request at a time, so that of each but the last one it knows whether it was done. It keeps two states
of the last one: as it was before, and as it is after it, with ANY for what only the service knows.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any
from unittest.mock import ANY

Item = dict[str, Any]

# no s: the mock takes one from the end of a word. Names are single words of at most six signs, for it compares so many.
_DIGITS = "0123456789abcdefghijklmnopqrtuvwxyz"
_MOST = 6


def digits(number: int) -> str:
    """`number` in few signs."""
    return (digits(number // len(_DIGITS)) if number >= len(_DIGITS) else "") + _DIGITS[number % len(_DIGITS)]


@dataclass(frozen=True)
class State:
    """What a client has: tools and agents by name, and the runs that are not settled yet by task."""

    tools: Mapping[str, Item] = field(default_factory=dict)
    agents: Mapping[str, Item] = field(default_factory=dict)
    runs: Mapping[str, Item] = field(default_factory=dict)


@dataclass(frozen=True)
class Write:
    """A request that writes, with the state before and after it; `place` says where in the latter its answer is."""

    method: str
    path: str
    body: Item | None
    headers: Mapping[str, str]
    before: State
    after: State
    place: tuple[str, str] | None = None
    # it waits for its model until the attacker lets it go on
    held: bool = False

    @property
    def key(self) -> str | None:
        return self.headers.get("Idempotency-Key")

    @property
    def expected(self) -> Item | None:
        """What the answer's body must be, None for a delete."""
        if self.place is None:
            return None
        kind, name = self.place
        found: Item = getattr(self.after, kind)[name]
        return found

    @property
    def touched(self) -> list[tuple[str, str]]:
        """Where the states before and after it differ: kinds, each with the name of one."""
        return [
            (kind, name)
            for kind in ("tools", "agents", "runs")
            for name in {**getattr(self.before, kind), **getattr(self.after, kind)}
            if not _same(self.before, self.after, kind, name)
        ]

    def answered(self, status: int, body: bytes) -> State:
        """The state after the answer. Raises AssertionError where the answer is not what was asked for."""
        what = f"{self.method} {self.path} {self.body} {dict(self.headers)} -> {status} {body[:600]!r}"
        wanted = {"DELETE": 204, "POST": 200 if self.path.endswith("/run") else 201}.get(self.method, 200)
        assert status == wanted, what
        if self.place is None:
            return self.after
        kind, name = self.place
        answer = json.loads(body)
        assert answer == self.expected, f"{what}\nexpected {self.expected}"
        return replace(self.after, **{kind: {**getattr(self.after, kind), name: answer}})


class Writer:
    """One client. `sign` is a single letter that nobody else has; `keys` whether it may send an Idempotency-Key."""

    def __init__(self, sign: str, key: str, choice: random.Random) -> None:
        self.sign = sign
        self.api_key = key
        self.choice = choice
        self.state = State()
        # the last request, until it is answered
        self.pending: Write | None = None
        # the ids of all agents that it ever had
        self.agent_ids: set[int] = set()
        # answered requests that had an Idempotency-Key, with status and body
        self.kept: list[tuple[Write, int, bytes]] = []
        self.acknowledged = 0
        # what was answered since it was last looked for, and the state that each left behind
        self._unseen: list[Write] = []
        self._numbers = count()

    def next(self) -> Write:
        """A request that must succeed, at random, for the state as it is."""
        tools, agents = self.state.tools, self.state.agents
        choices = [
            (self._create_tool, 3 if len(tools) < _MOST else 0),
            (self._create_agent, 4 if len(agents) < _MOST else 0),
        ]
        if tools:
            choices += [(self._put_tool, 1), (self._patch_tool, 2), (self._delete_tool, 1)]
        if agents:
            choices += [(self.run, 8), (self._put_agent, 2), (self._patch_agent, 2), (self._delete_agent, 1)]
        kinds, weights = zip(*choices, strict=True)
        made: Write = self.choice.choices(kinds, weights)[0]()
        return made

    def take(self, write: Write, status: int, body: bytes) -> None:
        """Notes that `write` was answered."""
        self.state = write.answered(status, body)
        self.pending = None
        self.acknowledged += 1
        self._unseen.append(write)
        self.agent_ids |= {agent["id"] for agent in self.state.agents.values() if isinstance(agent["id"], int)}
        if write.key is not None:
            self.kept.append((write, status, body))

    def found(self, stored: State) -> int:
        """How many of the answered writes are there: what each touched is stored as the last answer or request left it."""
        states = [self.state] if self.pending is None else [self.pending.before, self.pending.after]
        seen = sum(any(all(_same(state, stored, *at) for at in write.touched) for state in states) for write in self._unseen)
        self._unseen.clear()
        return seen

    def settle(self, found: State) -> bool | None:
        """Compares what is stored with what must be; says whether the unanswered request was done, None without one.

        Raises AssertionError where an answered write is not there, or of the unanswered one a part.
        """
        pending, done = self.pending, None
        if pending is None:
            assert self.state == found, (
                f"client {self.sign}: what was acknowledged is not there: {_differ(self.state, found)}"
            )
        else:
            done = pending.before != found
            assert not done or pending.after == found, (
                f"client {self.sign}: {pending.method} {pending.path} {pending.body} was not answered, and neither is it "
                f"undone: {_differ(pending.before, found)}\nnor is it done: {_differ(pending.after, found)}"
            )
            assert not (done and pending.held), f"client {self.sign}: the run under way is there: {pending.body}"
        self.state, self.pending = replace(found, runs={}), None
        self.agent_ids |= {agent["id"] for agent in found.agents.values()}
        return done

    def run(self, word: str = "please") -> Write:
        """Runs an agent; the task names some of its tools. It waits for its model where `word` is "hold"."""
        agent = self.choice.choice(list(self.state.agents.values()))
        named = sorted(tool["name"] for tool in agent["tools"] if self.choice.random() < 0.7)
        # its own words begin with another sign than the names of tools
        task = f"r{self.sign}{digits(next(self._numbers))} {word} {' and '.join(named)}".strip()
        ids = {tool["name"]: tool["id"] for tool in agent["tools"]}
        steps = [
            {
                "index": at,
                "type": "tool_call",
                "tool_id": ids[name],
                "tool_name": name,
                "arguments": {"input": task},
                "result": f"{name}: done with {json.dumps(task)}",
            }
            for at, name in enumerate(named)
        ]
        used = ", ".join(named) or "no tools"
        run = {
            **dict.fromkeys(("id", "prompt", "usage", "created_at", "duration_ms"), ANY),
            "agent_id": agent["id"],
            "agent_name": agent["name"],
            "task": task,
            "model": "gpt-4o",
            "status": "completed",
            "response": f"{agent['name']} ({agent['role']}) on gpt-4o, with {used}: {task}",
            "error": None,
            "steps": steps,
        }
        body = {"task": task, "model": "gpt-4o"}
        after = replace(self.state, runs={**self.state.runs, task: run})
        write = self._write("POST", f"/agents/{agent['id']}/run", body, after, ("runs", task))
        return replace(write, held=word == "hold")

    def _create_tool(self) -> Write:
        body = self._tool()
        return self._write("POST", "/tools", body, self._with_tool(None, {**_NEW, **body}), ("tools", body["name"]))

    def _create_agent(self) -> Write:
        body = self._agent()
        return self._write("POST", "/agents", body, self._with_agent(None, {**_NEW, **body}), ("agents", body["name"]))

    def _put_tool(self) -> Write:
        return self._change_tool("PUT", self._tool())

    def _patch_tool(self) -> Write:
        body = self._tool()
        return self._change_tool("PATCH", {name: body[name] for name in self._some(body)})

    def _change_tool(self, method: str, body: Item) -> Write:
        old = self.choice.choice(list(self.state.tools.values()))
        new = {**old, **body, "updated_at": ANY}
        return self._write(method, f"/tools/{old['id']}", body, self._with_tool(old, new), ("tools", new["name"]))

    def _delete_tool(self) -> Write:
        old = self.choice.choice(list(self.state.tools.values()))
        return self._write("DELETE", f"/tools/{old['id']}", None, self._with_tool(old, None))

    def _put_agent(self) -> Write:
        return self._change_agent("PUT", self._agent())

    def _patch_agent(self) -> Write:
        body = self._agent()
        return self._change_agent("PATCH", {name: body[name] for name in self._some(body)})

    def _change_agent(self, method: str, body: Item) -> Write:
        old = self.choice.choice(list(self.state.agents.values()))
        new = {**old, **body, "updated_at": ANY}
        return self._write(method, f"/agents/{old['id']}", body, self._with_agent(old, new), ("agents", new["name"]))

    def _delete_agent(self) -> Write:
        old = self.choice.choice(list(self.state.agents.values()))
        return self._write("DELETE", f"/agents/{old['id']}", None, self._with_agent(old, None))

    def _write(self, method: str, path: str, body: Item | None, after: State, place: tuple[str, str] | None = None) -> Write:
        headers = {"X-API-Key": self.api_key}
        if body is not None:
            headers["Content-Type"] = "application/merge-patch+json" if method == "PATCH" else "application/json"
        if method == "POST" and self.choice.random() < 0.7:
            headers["Idempotency-Key"] = f"{self.sign}-{next(self._numbers)}-{self.choice.getrandbits(64):x}"
        return Write(method, path, body, headers, self.state, after, place)

    def _tool(self) -> Item:
        number = digits(next(self._numbers))
        return {"name": f"q{self.sign}{number}", "description": f"desc{number}"}

    def _agent(self) -> Item:
        number = digits(next(self._numbers))
        ids = sorted(tool["id"] for tool in self.state.tools.values() if self.choice.random() < 0.6)
        return {"name": f"a{self.sign}{number}", "role": f"role {number}", "description": f"about {number}", "tool_ids": ids}

    def _some(self, body: Item) -> list[str]:
        return self.choice.sample(list(body), self.choice.randint(1, len(body)))

    def _with_tool(self, old: Item | None, new: Item | None) -> State:
        tools = {name: tool for name, tool in self.state.tools.items() if tool is not old}
        if new is not None:
            tools[new["name"]] = new
        agents = dict(self.state.agents)
        for name, agent in agents.items():
            if old is None or old["id"] not in agent["tool_ids"]:
                continue
            if new is None:
                ids = [each for each in agent["tool_ids"] if each != old["id"]]
                agents[name] = {**agent, "tool_ids": ids, "tools": _named(ids, tools), "updated_at": ANY}
            else:
                agents[name] = {**agent, "tools": _named(agent["tool_ids"], tools)}
        return replace(self.state, tools=tools, agents=agents)

    def _with_agent(self, old: Item | None, new: Item | None) -> State:
        agents = {name: agent for name, agent in self.state.agents.items() if agent is not old}
        if new is not None:
            agents[new["name"]] = {**new, "tools": _named(new["tool_ids"], self.state.tools)}
        return replace(self.state, agents=agents)


def _same(one: State, other: State, kind: str, name: str) -> bool:
    """Is the thing of this kind and name the same in both, or in neither?"""
    found: bool = getattr(one, kind).get(name) == getattr(other, kind).get(name)
    return found


_NEW = {"id": ANY, "created_at": ANY, "updated_at": ANY}


def _named(ids: list[int], tools: Mapping[str, Item]) -> list[Item]:
    names = {tool["id"]: name for name, tool in tools.items()}
    return [{"id": each, "name": names[each]} for each in ids]


def _differ(expected: State, found: State) -> str:
    """What is expected and not there, and what is there and not expected."""
    lines = []
    for kind in ("tools", "agents", "runs"):
        mine, theirs = getattr(expected, kind), getattr(found, kind)
        for name in sorted({*mine, *theirs}):
            if mine.get(name) != theirs.get(name):
                lines.append(f"{kind} {name!r}: expected {mine.get(name)!s:.600}, found {theirs.get(name)!s:.600}")
    return "\n  ".join(["", *lines[:10]])
