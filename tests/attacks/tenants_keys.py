"""Rules about who may call: keys made and revoked, the stranger, and what is open to everybody."""

import json

from hypothesis import strategies as st
from hypothesis.stateful import rule

from service.auth import new_key
from tests.attacks.model import JSON, UNAUTHORIZED, Refusal, Tenant, invalid
from tests.attacks.tenants_base import PICK, TEXT, WHO, Base
from tests.attacks.tenants_texts import agent_body, task_of, tool_body
from tests.attacks.tenants_things import WITH_ID
from tests.support.http import Answer

# the key of a stranger: none, one that could have been issued, one that could not, a revoked one, both tenants' at once
_STRANGE = st.sampled_from(["none", "unknown", "malformed", "revoked", "the other half", "demo"])
_OPEN = {"get_service": None, "get_health": {"status": "ok"}, "get_readiness": {"status": "ready"}}
_PAGES = ["/docs", "/redoc", "/openapi.json", "/openapi.yaml"]
# the stranger's own marker, in all that it sends
_STRANGER = "zq" + "w" * 20


class Keys(Base):
    @rule(who=WHO)
    def create_key(self, who: int) -> None:
        self.new_key(self.tenants[who])

    @rule(who=WHO, pick=PICK, operation=st.sampled_from(sorted(WITH_ID)), text=TEXT)
    def revoke_key(self, who: int, pick: int, operation: str, text: int) -> None:
        """It opens nothing from the next request on. A tenant that has no other key gets a new one."""
        tenant = self.tenants[who]
        key_id = list(tenant.keys)[pick % len(tenant.keys)]
        self.world.revoke_key(tenant.tenant_id, key_id)
        key = tenant.keys.pop(key_id)
        tenant.revoked.append(key)
        if not tenant.keys:
            self.new_key(tenant)
        self.turned_away(operation, key, pick, text)

    @rule(who=WHO, pick=PICK)
    def manage_keys(self, who: int, pick: int) -> None:
        """A tenant's keys by the API: what is made or rotated opens, what is revoked does not; the other's are not there."""
        tenant, other = self.tenants[who], self.other(self.tenants[who])
        made = self._made(tenant, "create_key", None, {})
        rotated = self._made(tenant, "rotate_key", made, {"overlap": "1h"})
        path, answer = self.call(tenant, "list_keys", query={"limit": 100})
        listed = {each["id"] for each in answer.json()["items"]}
        assert {made, rotated} <= listed, f"{path} -> {answer}"
        assert not listed & other.keys.keys(), f"{path} -> {answer}"
        path, answer = self.call(tenant, "get_key", rotated)
        assert answer.json()["prefix"] == tenant.keys[rotated][:9], f"{path} -> {answer}"
        theirs = list(other.keys)[pick % len(other.keys)]
        for operation in ("get_key", "rotate_key", "delete_key"):
            path, answer = self.call(tenant, operation, theirs)
            self.refused(path, answer, [Refusal("not-found", "There is no such key.")])
        path, answer = self.call(tenant, "delete_key", made)
        assert answer.status == 204, f"{path} -> {answer}"
        revoked = tenant.keys.pop(made)
        tenant.revoked.append(revoked)
        self.turned_away("list_keys", revoked, pick, 0)

    @rule(who=WHO)
    def read_audit(self, who: int) -> None:
        """A tenant's own changes: free of traces of the other's, as every answer is."""
        path, answer = self.call(self.tenants[who], "list_audit", query={"limit": 100})
        assert answer.status == 200, f"{path} -> {answer}"
        ids = [each["id"] for each in answer.json()["items"]]
        assert ids == sorted(ids, reverse=True), f"{path} -> {answer}"

    @rule(who=WHO)
    def read_usage(self, who: int) -> None:
        """As many runs were used as the model has, of all that there have been."""
        tenant = self.tenants[who]
        path, answer = self.call(tenant, "list_usage")
        (used,) = answer.json()["items"]
        failed = sum(run["status"] == "failed" for run in tenant.runs.values())
        assert (used["runs"], used["failures"]) == (len(tenant.runs), failed), f"{path} -> {answer}"

    def _made(self, tenant: Tenant, operation: str, key_id: int | None, body: JSON) -> int:
        """The id of a key that is new, and the tenant's from now on. Its answer alone may hold a key."""
        headers = {"X-API-Key": next(iter(tenant.keys.values())), "Content-Type": "application/json"}
        path, answer = self.world.send(operation, headers, key_id, body=json.dumps(body).encode())
        assert answer.status == 201, f"{path} -> {answer}"
        made = answer.json()
        tenant.keys[made["id"]] = made["key"]
        return int(made["id"])

    @rule(who=WHO, operation=st.data(), strange=_STRANGE, pick=PICK, text=TEXT)
    def call_as_a_stranger(self, who: int, operation: st.DataObject, strange: str, pick: int, text: int) -> None:
        tenant = self.tenants[who]
        name = operation.draw(st.sampled_from(sorted(self.world.operations)))
        live = next(iter(tenant.keys.values()))
        key = {
            "none": None,
            "unknown": new_key(),
            "malformed": live[:-1],
            "revoked": tenant.revoked[pick % len(tenant.revoked)] if tenant.revoked else None,
            "the other half": live[:20] + next(iter(self.other(tenant).keys.values()))[20:],
            "demo": "key_tenant_a",
        }[strange]
        self.turned_away(name, key, pick, text)

    def turned_away(self, operation: str, key: str | None, pick: int, text: int) -> None:
        """Sends a whole request with a key that opens nothing, on one of the tenants' ids."""
        _, template, protected = self.world.operations[operation]
        kind = WITH_ID.get(operation)
        thing_id = None if kind is None else self.some_id(self.tenants[pick % 2], kind, pick)
        if "{key_id}" in template:
            thing_id = 1 + pick % 9
        headers = {} if key is None else {"X-API-Key": key}
        body = _body_of(operation, pick % 13, text)
        if body is not None:
            headers |= {"Content-Type": "application/json", "Idempotency-Key": f"again-{text % 2}"}
        path, answer = self.world.send(operation, headers, thing_id, body=body)
        self.free_of_traces(answer, None)
        if protected:
            self.refused(path, answer, [UNAUTHORIZED])
            assert "RateLimit" not in answer.headers, f"{path} -> {answer}"
            self.count("strangers turned away")
        else:
            self.open_to_all(operation, answer)

    def open_to_all(self, operation: str, answer: Answer) -> None:
        """The answer to everybody, with a key or without."""
        assert answer.status == 200, f"{operation} -> {answer}"
        if expected := _OPEN[operation]:
            assert answer.json() == expected
        else:
            first = self.world.first_answers.setdefault(operation, answer)
            assert answer == first, f"{operation} is {answer}, and was {first}"
        self.count("comparisons")

    @rule(who=WHO, operation=st.sampled_from([*_OPEN, "get_identity", "list_models"]))
    def ask_the_service(self, who: int, operation: str) -> None:
        tenant = self.tenants[who]
        path, answer = self.call(tenant, operation)
        if operation in _OPEN:
            self.open_to_all(operation, answer)
            return
        assert answer.status == 200, f"{path} -> {answer}"
        said = answer.json()
        if operation == "get_identity":
            assert said == {"tenant_id": tenant.tenant_id, "key_id": self.last_key}, f"{path} -> {said}"
        else:
            assert said == {"items": [{"id": "gpt-4o"}]}
        self.count("comparisons")

    @rule(who=WHO, operation=st.sampled_from(["get_identity", "list_models", *_OPEN, "list_tools", "list_agents"]))
    def ask_with_a_parameter_that_is_not_known(self, who: int, operation: str) -> None:
        path, answer = self.call(self.tenants[who], operation, query={"colour": "red"})
        self.refused(path, answer, [invalid(("colour", "This parameter is not known."))])

    @rule(
        who=WHO, operation=st.sampled_from(["get_tool", "get_agent", "get_run", "list_agent_runs", "list_runs"]), pick=PICK
    )
    def ask_for_the_head(self, who: int, operation: str, pick: int) -> None:
        """HEAD answers like GET, without a body; nobody learns of another tenant's things by it."""
        tenant, kind = self.tenants[who], WITH_ID.get(operation)
        owner = self.tenants[pick % 2]
        thing_id = None if kind is None else self.some_id(owner, kind, pick)
        path, answer = self.call(tenant, operation, thing_id, head=True)
        there = kind is None or thing_id in tenant.things(kind)
        assert (answer.status, answer.body) == (200 if there else 404, b""), f"HEAD {path} -> {answer}"
        whole = self.call(tenant, operation, thing_id)[1]
        assert answer.headers == whole.headers, f"HEAD {path} -> {answer.headers}, GET -> {whole.headers}"
        self.count("comparisons")

    @rule(who=WHO, page=st.sampled_from(_PAGES), known=st.booleans())
    def look_at_a_page(self, who: int, page: str, known: bool) -> None:
        """The documentation and the spec are the same bytes for everybody."""
        key = next(iter(self.tenants[who].keys.values())) if known else ""
        answer = self.world.look(page, key)
        self.free_of_traces(answer, None)
        first = self.world.first_answers.setdefault(page, answer)
        assert answer.status == 200, f"{page} -> {answer}"
        assert answer == first, f"{page} is {answer}, and was {first}"
        self.count("comparisons")

    @rule(who=WHO, pick=PICK)
    def use_a_method_that_is_not_there(self, who: int, pick: int) -> None:
        tenant = self.tenants[who]
        tool_id = self.some_id(self.tenants[pick % 2], "tools", pick)
        path = f"/tools/{tool_id}"
        answer = self.world.look(path, next(iter(tenant.keys.values())), "POST")
        self.free_of_traces(answer, tenant.marker)
        allowed = "DELETE, GET, HEAD, PATCH, PUT"
        assert answer.headers["Allow"] == allowed
        self.refused(path, answer, [Refusal("method-not-allowed", f"This path takes {allowed}.")])


def _body_of(operation: str, name: int, text: int) -> bytes | None:
    """A whole body for an operation that takes one, in which all is the stranger's."""
    if operation == "run_agent":
        return json.dumps({"task": task_of((), text, _STRANGER), "model": "gpt-4o"}).encode()
    verb, _, thing = operation.partition("_")
    if verb not in ("create", "replace", "change"):
        return None
    return json.dumps((tool_body if thing == "tool" else agent_body)(name, text, _STRANGER)).encode()
