"""What all rules share: two tenants and their model, requests, comparisons, and the look at everything after each step."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant

from tests.attacks.model import JSON, KEY_REUSED, NO_TIME_YET, SINGULAR, Kept, Refusal, Tenant, asked, has_changed, not_found
from tests.attacks.tenants_texts import NAMES, marker
from tests.attacks.tenants_world import REQUEST_ID, World, traces
from tests.support.http import Answer

WHO = st.integers(0, 1)
# one of what is there, counted round
PICK = st.integers(0, 30)
NAME = st.integers(0, NAMES - 1)
TEXT = st.integers(0, 99)

# headers that two answers to the same request share
_PASSING = ("X-Request-ID", "RateLimit", "RateLimit-Policy", "Idempotency-Replayed")


class Base(RuleBasedStateMachine):
    """A sequence: two tenants that there have not been yet, in the database of `world`."""

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0
        self._turn = 0
        # the id of the key of the last call
        self.last_key = 0
        self._watch: dict[str, str] = {}
        self._seen: dict[tuple[str, str], tuple[int, bytes]] = {}
        self.tenants = [self._new_tenant(), self._new_tenant()]

    def _new_tenant(self) -> Tenant:
        mark = marker(self.world.seed, self.world.new_tenant())
        tenant = Tenant(f"tenant-{mark}", mark)
        self.world.create_tenant(tenant.tenant_id)
        # never revoked: the one with which the machine looks at everything
        self._watch[mark] = self.world.create_key(tenant.tenant_id)[1]
        self.new_key(tenant)
        return tenant

    def new_key(self, tenant: Tenant) -> None:
        key_id, key = self.world.create_key(tenant.tenant_id)
        tenant.keys[key_id] = key

    def other(self, tenant: Tenant) -> Tenant:
        return self.tenants[0] if tenant is self.tenants[1] else self.tenants[1]

    def count(self, what: str) -> None:
        self.world.counts[what] += 1

    # what is sent

    def call(
        self,
        tenant: Tenant,
        operation: str,
        thing_id: int | None = None,
        *,
        body: JSON | bytes | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, Any] | Sequence[tuple[str, str]] | None = None,
        head: bool = False,
    ) -> tuple[str, Answer]:
        """Sends a request with one of the tenant's keys, in turn; (path, answer), which holds no trace of anybody else."""
        self._turn += 1
        ids = list(tenant.keys)
        self.last_key = ids[self._turn % len(ids)]
        sent = {"X-API-Key": tenant.keys[self.last_key]}
        if body is not None:
            sent["Content-Type"] = "application/json"
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        path, answer = self.world.send(operation, sent | dict(headers or {}), thing_id, query=query, body=data, head=head)
        self.free_of_traces(answer, tenant.marker)
        return path, answer

    def free_of_traces(self, answer: Answer, own: str | None) -> None:
        """Fails where an answer to the reader whose marker is `own` holds anything of somebody else, or a key."""
        found = traces(answer, own)
        assert not found, f"traces of others, {found}, in {answer}"
        self.count("comparisons")

    def nobodys(self) -> int:
        """An id that nothing has, as long as the others."""
        return 9_999_999

    def some_id(self, tenant: Tenant, kind: str, pick: int) -> int:
        """The id of one of the tenant's things, or now and then of one that is deleted; nobody's where there are none."""
        ids = [*tenant.things(kind), *tenant.gone[kind][-1:]]
        return ids[pick % len(ids)] if ids else self.nobodys()

    # what is compared

    def refused(self, path: str, answer: Answer, refusals: Sequence[Refusal]) -> None:
        """Fails where the answer is none of these problems, whole."""
        said = answer.json()
        if "errors" in said:
            said["errors"].sort(key=lambda place: (place.get("pointer") or place["parameter"], place["detail"]))
        wanted = [refusal.body(path, REQUEST_ID) for refusal in refusals]
        assert said in wanted, f"{path} -> {answer.status} {said}, not one of {wanted}"
        assert answer.status == said["status"]
        assert (answer.status == 401) == ("WWW-Authenticate" in answer.headers)
        assert (answer.status == 429) == ("Retry-After" in answer.headers)
        self.count("comparisons")

    def agree(self, tenant: Tenant, kind: str, thing_id: int, said: JSON) -> None:
        """Fails where `said` is not the thing as the model has it; takes over a time that only the service knows."""
        thing = tenant.things(kind)[thing_id]
        if thing.get("updated_at") == NO_TIME_YET:
            assert said["updated_at"] >= thing["created_at"]
            thing["updated_at"] = said["updated_at"]
        expected = tenant.shown(kind, thing_id)
        assert said == expected, f"{kind} {thing_id} is {said}, not {expected}"
        self.count("comparisons")

    def agree_tag(self, tenant: Tenant, kind: str, thing_id: int, answer: Answer) -> None:
        """Fails where the ETag is another one though nothing has changed, or an old one though something has."""
        tags, etag = tenant.tags[kind, thing_id], answer.headers["ETag"]
        if tags.now is None:
            assert etag not in tags.before, f"{kind} {thing_id} has changed and still the ETag {etag}"
            tags.now = etag
        assert etag == tags.now, f"{kind} {thing_id} has not changed, but its ETag, from {tags.now} to {etag}"
        self.count("comparisons")

    def new_id(self, kind: str, said: JSON) -> int:
        """The id of what was made, which nothing had before."""
        thing_id: int = said["id"]
        assert thing_id not in self.world.given[kind], f"the id {thing_id} of {kind} was given before"
        self.world.given[kind].add(thing_id)
        return thing_id

    def replayed(self, path: str, body: JSON, answer: Answer, kept: Kept) -> None:
        """Fails where the answer is not the kept one again, or for another request under its key, the refusal of that."""
        if kept.asked != asked(path, body):
            self.refused(path, answer, [KEY_REUSED])
            return
        assert answer.headers.get("Idempotency-Replayed") == "true", f"{path} -> {answer}"
        same = [
            (each.status, each.body, {name: value for name, value in each.headers.items() if name not in _PASSING})
            for each in (answer, kept.answer)
        ]
        assert same[0] == same[1], f"{path} was answered with {kept.answer}, and again with {answer}"
        self.count("replays")

    # what several rules do

    def create(self, tenant: Tenant, kind: str, body: JSON, key: str | None = None, **headers: str) -> None:
        """Creates a tool or an agent, under an idempotency key if one is given as it stands in the model."""
        path, answer = self.call(tenant, f"create_{SINGULAR[kind]}", body=body, headers=headers)
        if key is not None and (kept := tenant.kept.get(key)):
            self.replayed(path, body, answer, kept)
            return
        assert "Idempotency-Replayed" not in answer.headers
        if refusals := tenant.faults(kind, body):
            self.refused(path, answer, refusals)
            return
        assert answer.status == 201, f"{path} {body} -> {answer}"
        said = answer.json()
        thing_id, created_at = self.new_id(kind, said), said["created_at"]
        thing = body | {"id": thing_id, "created_at": created_at, "updated_at": created_at}
        if kind == "agents":
            thing["tool_ids"] = sorted(body.get("tool_ids", []))
        tenant.add(kind, thing)
        self.agree(tenant, kind, thing_id, said)
        self.agree_tag(tenant, kind, thing_id, answer)
        assert answer.headers["Location"] == f"{path}/{thing_id}"
        if key is not None:
            tenant.kept[key] = Kept(asked(path, body), answer)

    def change(
        self, tenant: Tenant, kind: str, verb: str, thing_id: int, body: JSON, passes: bool = True, **headers: str
    ) -> None:
        """Replaces (verb `replace`) or changes a tool or an agent; `passes` is what If-Match among the headers means."""
        path, answer = self.call(tenant, f"{verb}_{SINGULAR[kind]}", thing_id, body=body, headers=headers)
        if thing_id not in tenant.things(kind):
            self.refused(path, answer, [not_found(kind)])
            return
        if verb == "replace" and kind == "agents":
            body = {"tool_ids": []} | body
        refusals = tenant.faults(kind, body, thing_id) + ([] if passes else [has_changed(kind)])
        if refusals:
            self.refused(path, answer, refusals)
            return
        assert answer.status == 200, f"{path} {body} -> {answer}"
        if body:
            tenant.change(kind, thing_id, body)
        self.agree(tenant, kind, thing_id, answer.json())
        self.agree_tag(tenant, kind, thing_id, answer)

    def delete(
        self, tenant: Tenant, kind: str, thing_id: int, if_unused: bool | None, passes: bool = True, **headers: str
    ) -> None:
        """Deletes a tool or an agent; `if_unused` None leaves the parameter out."""
        query = None if if_unused is None else {"if_unused": json.dumps(if_unused)}
        path, answer = self.call(tenant, f"delete_{SINGULAR[kind]}", thing_id, headers=headers, query=query)
        refusals = [] if passes else [has_changed(kind)]
        if thing_id not in tenant.things(kind):
            refusals = [not_found(kind)]
        elif if_unused and tenant.is_used(kind, thing_id):
            refusals.append(Refusal("conflict", {"tools": "An agent has this tool.", "agents": "The agent has runs."}[kind]))
        if refusals:
            self.refused(path, answer, refusals)
            return
        assert (answer.status, answer.body) == (204, b""), f"{path} -> {answer}"
        tenant.delete(kind, thing_id)

    def read(self, tenant: Tenant, kind: str, thing_id: int) -> None:
        """Gets one tool, agent or run."""
        path, answer = self.call(tenant, f"get_{SINGULAR[kind]}", thing_id)
        if thing_id not in tenant.things(kind):
            self.refused(path, answer, [not_found(kind)])
            return
        assert answer.status == 200, f"{path} -> {answer}"
        self.agree(tenant, kind, thing_id, answer.json())
        if kind != "runs":
            self.agree_tag(tenant, kind, thing_id, answer)

    # after each step, and at the end

    @invariant()
    def everything_is_as_the_model_has_it(self) -> None:
        self.looks += 1
        lists = [(tenant, kind) for tenant in self.tenants for kind in ("tools", "agents", "runs")]
        answers = self.world.look_at_all([(f"/{kind}?limit=100", self._watch[tenant.marker]) for tenant, kind in lists])
        for (tenant, kind), answer in zip(lists, answers, strict=True):
            self._compare(tenant, kind, answer)

    def _compare(self, tenant: Tenant, kind: str, answer: Answer) -> None:
        """Compares a whole list. Bytes that were compared before with this state of the model need not be parsed again."""
        self.count("comparisons")
        if self._seen.get((tenant.marker, kind)) == (tenant.revision, answer.body):
            return
        self.free_of_traces(answer, tenant.marker)
        said, items = answer.json(), tenant.listing(f"/{kind}", {}) or []
        assert [item["id"] for item in said["items"]] == [item["id"] for item in items], f"{kind} are {said}, not {items}"
        for item in said["items"]:
            self.agree(tenant, kind, item["id"], item)
        frame = {name: value for name, value in said.items() if name != "items"}
        assert frame == {"total": len(items), "limit": 100, "offset": 0, "next": None}, f"{kind}: {frame}"
        self._seen[tenant.marker, kind] = (tenant.revision, answer.body)

    def teardown(self) -> None:
        """Where the sequence has come to its end, looks at each thing by itself, too, and counts the sequence."""
        if (error := sys.exception()) is not None:
            self._note(error)
            return
        try:
            self._read_each()
        except Exception as error:
            self._note(error)
            raise
        # the first look is the one behind the furnishing, which is no step
        steps = self.looks - 1
        self.count(f"sequences of {steps} steps")
        self.world.counts["sequences"] += 1
        self.world.counts["steps"] += steps

    def _read_each(self) -> None:
        for tenant in self.tenants:
            for kind in ("tools", "agents", "runs"):
                for thing_id in [*tenant.things(kind), *tenant.gone[kind]]:
                    self.read(tenant, kind, thing_id)

    def _note(self, error: BaseException) -> None:
        """Keeps the first failure, with the requests before it; Hypothesis ends a sequence by what is no Exception."""
        if isinstance(error, Exception) and not self.world.failure:
            sent = [f"{method} {url} {body!r} -> {answer.status}" for method, url, body, answer in self.world.sent]
            self.world.failure = "\n".join([f"{type(error).__name__}: {error}", "The last requests before it:", *sent])
