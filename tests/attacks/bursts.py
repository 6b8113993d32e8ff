"""Fifty requests at once that must have one effect, in the ways in which clients repeat themselves.

Each burst has tenants of its own, so that all they own is what the burst did. In those of BETWEEN_SERVERS both are one
tenant, the second one through another server of the same database.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientError, ClientSession

from tests.attacks.stored import together

# how many runs a tenant of a burst has
LIMIT = 5

_AT_ONCE = 50
_KINDS = ("tools", "agents", "runs")
_TEXTS = {"role": "Assistant", "description": "Runs errands"}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def replayed(self) -> bool:
        return self.headers.get("Idempotency-Replayed") == "true"

    @property
    def problem(self) -> str:
        """The kind of a problem, the end of its type."""
        return str(json.loads(self.body)["type"]).rpartition(":")[2] if self.status >= 400 else ""

    @property
    def left(self) -> int:
        """How many runs the tenant has left, as the answer says."""
        return int(self.headers["RateLimit"].partition("r=")[2].partition(";")[0])


class Tenant:
    """One tenant's requests."""

    def __init__(self, session: ClientSession, origin: str, key: str, counts: Counter[str], *, cancels: bool) -> None:
        # does the server cancel what it does for a client that is gone? The shipped one does not
        self.cancels = cancels
        self._session = session
        self._origin = origin
        self._key = key
        self.counts = counts
        self._agent = 0

    async def send(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Sends a request; the headers' names are given with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.counts["requests"] += 1
        async with self._session.request(
            method, self._origin + path, json=body, headers={"X-API-Key": self._key, **named}
        ) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def ask(self, kind: str, name: str, key: str | None = None) -> Answer:
        """The POST that makes a thing of this kind: the same one for the same name."""
        headers = {} if key is None else {"Idempotency_Key": key}
        if kind == "runs":
            body = {"task": f"do {name}", "model": "gpt-4o"}
            return await self.send("POST", f"/agents/{await self.agent()}/run", body, **headers)
        body = {"name": name, "description": "Works"} if kind == "tools" else {"name": name, **_TEXTS}
        return await self.send("POST", f"/{kind}", body, **headers)

    async def agent(self) -> int:
        """The agent whose runs are made, made before them."""
        if not self._agent:
            made = await self.send("POST", "/agents", {"name": "runner", **_TEXTS})
            assert made.status == 201, made
            self._agent = json.loads(made.body)["id"]
        return self._agent

    async def share(self, other: "Tenant") -> None:
        """Lets `other`, the same tenant elsewhere, run the same agent."""
        other._agent = await self.agent()

    async def made(self, kind: str) -> list[dict[str, Any]]:
        """What there is of this kind, but for the agent whose runs are made."""
        page = json.loads((await self.send("GET", f"/{kind}?limit=100")).body)
        assert page["total"] == len(page["items"]), page
        return [item for item in page["items"] if kind != "agents" or item["id"] != self._agent]

    async def check_one_effect(self, kind: str, first: Answer) -> None:
        """One thing was made, the one that `first` shows; raises AssertionError."""
        made = await self.made(kind)
        assert made == [json.loads(first.body)], f"{kind}: made {made}, answered {first}"
        self.counts["effects"] += 1

    async def check_replay(self, kind: str, name: str, key: str, first: Answer) -> Answer:
        again = await self.ask(kind, name, key)
        assert again.replayed, f"{again}, first {first}"
        _same(again, first)
        self.counts["replays"] += 1
        return again


def _same(answer: Answer, first: Answer) -> None:
    """The answers are the same, byte for byte, and so are the headers that say what was made."""
    assert (answer.status, answer.body) == (first.status, first.body), f"{answer}, first {first}"
    for name in ("Location", "Content-Location", "ETag", "Content-Type"):
        assert answer.headers.get(name) == first.headers.get(name), f"{name}: {answer}, first {first}"


def _first(answers: list[Answer]) -> Answer:
    """The one answer that something was done for."""
    done = [answer for answer in answers if answer.status < 300 and not answer.replayed]
    assert len(done) == 1, (
        f"{len(done)} of {len(answers)} requests were done: {done[:3]} among {Counter(a.status for a in answers)}"
    )
    return done[0]


def _take(counts: Counter[str], answers: list[Answer], first: Answer) -> None:
    """Whatever is not `first` is its replay, or refused since it is under way, or for another request's key."""
    for answer in answers:
        if answer is first:
            continue
        if answer.status < 300:
            _same(answer, first)
            counts["replays"] += 1
        else:
            counted = {(409, "request-under-way"): "under_way", (422, "idempotency-key-reused"): "reused"}
            assert (answer.status, answer.problem) in counted, answer
            counts[counted[answer.status, answer.problem]] += 1


async def _identical(tenants: list[Tenant], choice: random.Random) -> None:
    """The same request fifty times under one key, and again when the tenant is over its limit."""
    tenant, kind = tenants[0], choice.choice(_KINDS)
    await tenant.agent()
    answers = await together(*(tenant.ask(kind, "one", "key") for _ in range(_AT_ONCE)))
    first = _first(answers)
    _take(tenant.counts, answers, first)
    assert not any(answer.problem == "idempotency-key-reused" for answer in answers), Counter(a.problem for a in answers)
    await tenant.check_one_effect(kind, first)
    await tenant.check_replay(kind, "one", "key", first)
    left = (await tenant.ask("runs", "another")).left
    assert left == LIMIT - 1 - (kind == "runs"), f"{kind}: {left} runs are left after one more"
    # one more run is counted once, too, and all replays are still given when none is left
    for at in range(left):
        assert (await tenant.ask("runs", f"another {at}")).status == 200
    refused = await tenant.ask("runs", "too much", "unused")
    assert refused.status == 429, refused
    again = await together(*(tenant.check_replay(kind, "one", "key", first) for _ in range(_AT_ONCE)))
    tenant.counts["over_limit"] += len(again)
    runs = await tenant.made("runs")
    assert len(runs) == LIMIT, f"{len(runs)} runs at a limit of {LIMIT}"


async def _different(tenants: list[Tenant], choice: random.Random) -> None:
    """Fifty different requests under one key: one is done, and the others never are."""
    tenant, kind = tenants[0], choice.choice(_KINDS)
    await tenant.agent()
    names = [f"number {at}" for at in range(_AT_ONCE)]
    answers = await together(*(tenant.ask(kind, name, "key") for name in names))
    first = _first(answers)
    _take(tenant.counts, answers, first)
    await tenant.check_one_effect(kind, first)
    for name, answer in zip(names, answers, strict=True):
        if answer is first:
            await tenant.check_replay(kind, name, "key", first)
        elif choice.random() < 0.2:
            again = await tenant.ask(kind, name, "key")
            assert (again.status, again.problem) == (422, "idempotency-key-reused"), again
            tenant.counts["reused"] += 1
    await tenant.check_one_effect(kind, first)
    tenant.counts["effects"] -= 1


async def _two_tenants(tenants: list[Tenant], choice: random.Random) -> None:
    """Two tenants with one key and one request: each has one of its own, and neither sees the other's."""
    kind = choice.choice(_KINDS)
    for tenant in tenants:
        await tenant.agent()
    answers = await together(*(tenants[at % 2].ask(kind, "one", "key") for at in range(_AT_ONCE)))
    firsts = [_first(answers[at::2]) for at in range(2)]
    assert json.loads(firsts[0].body)["id"] != json.loads(firsts[1].body)["id"], firsts
    for at, tenant in enumerate(tenants):
        _take(tenant.counts, answers[at::2], firsts[at])
        await tenant.check_one_effect(kind, firsts[at])
        await tenant.check_replay(kind, "one", "key", firsts[at])


async def _hung_up(tenants: list[Tenant], choice: random.Random) -> None:
    """Fifty clients send one request, and most hang up in the middle of it; all try until they have an answer."""
    tenant = tenants[0]
    # a run that is cancelled has been counted: clients that are gone could use up the limit
    kind = choice.choice(_KINDS[:2] if tenant.cancels else _KINDS)
    await tenant.agent()
    moments = [choice.choice((None, choice.uniform(0, 0.002), choice.uniform(0, 0.02))) for _ in range(_AT_ONCE)]

    async def insist(moment: float | None) -> Answer:
        if moment is not None:
            try:
                # what is cancelled in the client closes its connection
                await asyncio.wait_for(tenant.ask(kind, "one", "key"), moment)
            except (TimeoutError, ClientError):
                tenant.counts["hung_up"] += 1
        async with asyncio.timeout(10):
            while (answer := await tenant.ask(kind, "one", "key")).status == 409:
                tenant.counts["under_way"] += 1
                await asyncio.sleep(0.002)
        return answer

    answers = await together(*map(insist, moments))
    for answer in answers:
        assert answer.status < 300, answer
        _same(answer, answers[0])
        tenant.counts["replays"] += answer.replayed
    await tenant.check_one_effect(kind, answers[0])
    assert sum(not answer.replayed for answer in answers) <= 1, answers[:3]
    if kind == "runs":
        again = await tenant.check_replay(kind, "one", "key", answers[0])
        assert again.left == LIMIT - 1, f"one run, and {again.left} of {LIMIT} are left"


async def _lost_updates(tenants: list[Tenant], choice: random.Random) -> None:
    """Fifty clients change, replace or delete what they have all read: one of them does, the others are told."""
    await _one_of_all_changes(tenants[:1], choice)


async def _one_of_all_changes(tenants: list[Tenant], choice: random.Random) -> None:
    tenant, kind = tenants[0], choice.choice(("tools", "agents"))
    made = await tenant.ask(kind, "one")
    path, tag = made.headers["Location"], made.headers["ETag"]
    deletes = choice.random() < 0.3
    methods = [choice.choice(("PATCH", "PUT", *(["DELETE"] if deletes else []))) for _ in range(_AT_ONCE)]

    async def change(at: int, method: str) -> Answer:
        body = None
        if method != "DELETE":
            body = {"name": f"number {at}", "description": "Works"} | (_TEXTS if kind == "agents" else {})
        return await tenants[at % len(tenants)].send(method, path, body, If_Match=choice.choice((tag, f'"0", {tag}')))

    answers = await together(*(change(at, method) for at, method in enumerate(methods)))
    first = _first(answers)
    rest = Counter((answer.status, answer.problem) for answer in answers if answer is not first)
    now = await tenants[-1].send("GET", path)
    if first.status == 204:
        assert now.status == 404, now
        assert rest.keys() <= {(404, "not-found")}, rest
    else:
        assert rest.keys() == {(412, "precondition-failed")}, rest
        assert (now.body, now.headers["ETag"]) == (first.body, first.headers["ETag"]), f"{now}, written {first}"
        assert now.headers["ETag"] != tag, now
    tenant.counts["effects"] += 1
    tenant.counts["changed"] += rest[412, "precondition-failed"]


async def _identical_elsewhere(tenants: list[Tenant], choice: random.Random) -> None:
    """One request fifty times under one key, to two servers in turn: one of them does it, both have its answer."""
    kind = choice.choice(_KINDS)
    await tenants[0].share(tenants[1])
    answers = await together(*(tenants[at % 2].ask(kind, "one", "key") for at in range(_AT_ONCE)))
    first = _first(answers)
    _take(tenants[0].counts, answers, first)
    await tenants[1].check_one_effect(kind, first)
    for tenant in tenants:
        await tenant.check_replay(kind, "one", "key", first)


async def _different_elsewhere(tenants: list[Tenant], choice: random.Random) -> None:
    """Fifty different requests under one key, to two servers in turn: one is done, and the others never are."""
    kind = choice.choice(_KINDS)
    await tenants[0].share(tenants[1])
    answers = await together(*(tenants[at % 2].ask(kind, f"number {at}", "key") for at in range(_AT_ONCE)))
    first = _first(answers)
    _take(tenants[0].counts, answers, first)
    await tenants[1].check_one_effect(kind, first)
    done = answers.index(first)
    for at, tenant in enumerate(tenants):
        await tenant.check_replay(kind, f"number {done}", "key", first)
        again = await tenant.ask(kind, f"number {(done + 1 + at) % _AT_ONCE}", "key")
        assert (again.status, again.problem) == (422, "idempotency-key-reused"), again


async def _lost_updates_elsewhere(tenants: list[Tenant], choice: random.Random) -> None:
    """Fifty clients of two servers change what they have all read: one of them does, the others are told."""
    await _one_of_all_changes(tenants, choice)


BURSTS = (_identical, _hung_up, _lost_updates, _different, _identical, _two_tenants)
# for two servers of one database
BETWEEN_SERVERS = (_identical_elsewhere, _different_elsewhere, _lost_updates_elsewhere)
