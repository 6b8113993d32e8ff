"""Rules about tools and agents: made, changed, deleted, refused, and asked for by whom they don't belong to."""

from collections.abc import Sequence

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from tests.attacks.model import JSON, Refusal, Tenant, invalid, not_found
from tests.attacks.tenants_base import NAME, PICK, TEXT, WHO, Base
from tests.attacks.tenants_texts import agent_body, task_of, tool_body

KIND = st.sampled_from(["tools", "agents"])
TOOLS = st.none() | st.lists(PICK, max_size=4)
# a tool id that is none of the tenant's
STRAY = st.sampled_from(["none", "none", "none", "the other's", "deleted", "nobody's"])

_BLANK = "Must not be blank, and must not hold a NUL."
_NEEDED, _NOT_KNOWN, _TWICE = "This field is required.", "This field is not known.", "Must not hold the same item twice."
# what is wrong with a body, and with which pointers and sentences it is refused; {} stands for a text with the marker
_BROKEN: dict[str, dict[str, list[tuple[JSON, list[tuple[str, str]]]]]] = {
    "text": {
        "tools": [({"name": " ", "description": "{}"}, [("#/name", _BLANK)])],
        "agents": [
            ({"name": "{}", "role": "\u3000", "description": "a\0"}, [("#/role", _BLANK), ("#/description", _BLANK)])
        ],
        "run": [({"task": "\t", "model": "gpt-4o"}, [("#/task", _BLANK)])],
    },
    "fields": {
        "tools": [({"name": "{}", "description": "{}", "colour": "{}"}, [("#/colour", _NOT_KNOWN)])],
        "agents": [
            (
                {"name": "{}", "role": "{}", "description": "{}", "tool_ids": [1, 1]},
                [("#/tool_ids", _TWICE)],
            )
        ],
        "run": [({"task": "{}", "model": "gpt-5"}, [("#/model", "Must be one of: gpt-4o.")])],
    },
    "missing": {
        "tools": [({"name": "{}"}, [("#/description", _NEEDED)])],
        "agents": [({"description": "{}"}, [("#/name", _NEEDED), ("#/role", _NEEDED)])],
        "run": [({}, [("#/model", _NEEDED), ("#/task", _NEEDED)])],
    },
}
_OPERATIONS = {
    "create_tool": "tools",
    "replace_tool": "tools",
    "change_tool": "tools",
    "create_agent": "agents",
    "replace_agent": "agents",
    "change_agent": "agents",
    "run_agent": "run",
}
# every operation that names a thing by its id, with the kind of the thing
WITH_ID = {
    "get_tool": "tools",
    "replace_tool": "tools",
    "change_tool": "tools",
    "delete_tool": "tools",
    "get_agent": "agents",
    "replace_agent": "agents",
    "change_agent": "agents",
    "delete_agent": "agents",
    "run_agent": "agents",
    "list_agent_runs": "agents",
    "get_run": "runs",
}


class Things(Base):
    def tool_ids(self, tenant: Tenant, picks: Sequence[int], stray: str) -> list[int]:
        """Ids of some of the tenant's tools, each once, and one that is none of theirs unless `stray` is none."""
        own, others = list(tenant.tools), list(self.other(tenant).tools)
        ids = list(dict.fromkeys(own[pick % len(own)] for pick in picks if own))
        if stray == "the other's":
            ids += others[-1:]
        elif stray == "deleted":
            ids += tenant.gone["tools"][-1:]
        elif stray == "nobody's":
            ids.insert(0, self.nobodys())
        return ids

    def body_of(self, tenant: Tenant, kind: str, name: int, text: int, tools: Sequence[int] | None, stray: str) -> JSON:
        """A body that keeps to the schema; an agent without `tool_ids` where neither tools nor a stray one are asked for."""
        if kind == "tools":
            return dict(tool_body(name, text, tenant.marker))
        body: JSON = dict(agent_body(name, text, tenant.marker))
        if tools is not None or stray != "none":
            body["tool_ids"] = self.tool_ids(tenant, tools or (), stray)
        return body

    @initialize(names=st.lists(NAME, min_size=2, max_size=6, unique=True), tools=st.lists(PICK, min_size=1, max_size=4))
    def furnish(self, names: list[int], tools: list[int]) -> None:
        """Gives both tenants tools and agents of the same names, so that no sequence spends its steps on empty rooms."""
        for tenant in self.tenants:
            for name in names:
                self.create(tenant, "tools", self.body_of(tenant, "tools", name, name, None, "none"))
            for place, name in enumerate(names[:3]):
                self.create(tenant, "agents", self.body_of(tenant, "agents", name, name, tools[place:], "none"))

    @rule(who=WHO, name=NAME, text=TEXT)
    def create_tool(self, who: int, name: int, text: int) -> None:
        tenant = self.tenants[who]
        self.create(tenant, "tools", self.body_of(tenant, "tools", name, text, None, "none"))

    @rule(who=WHO, name=NAME, text=TEXT, tools=TOOLS, stray=STRAY)
    def create_agent(self, who: int, name: int, text: int, tools: list[int] | None, stray: str) -> None:
        tenant = self.tenants[who]
        self.create(tenant, "agents", self.body_of(tenant, "agents", name, text, tools, stray))

    @rule(who=WHO, name=NAME, text=TEXT)
    def give_an_agent_nine_tools(self, who: int, name: int, text: int) -> None:
        """So that a run can ask for more than it may: a task that names them all fails."""
        tenant = self.tenants[who]
        for number in range(13):
            if len(tenant.tools) < 9:
                self.create(tenant, "tools", self.body_of(tenant, "tools", number, text, None, "none"))
        body = self.body_of(tenant, "agents", name, text, range(9), "none")
        free = not tenant.faults("agents", body)
        self.create(tenant, "agents", body)
        if free:
            self.read(tenant, "agents", max(tenant.agents))

    @rule(who=WHO, kind=KIND, pick=PICK, name=NAME, text=TEXT, tools=TOOLS, stray=STRAY)
    def replace(self, who: int, kind: str, pick: int, name: int, text: int, tools: list[int] | None, stray: str) -> None:
        tenant = self.tenants[who]
        body = self.body_of(tenant, kind, name, text, tools, stray)
        self.change(tenant, kind, "replace", self.some_id(tenant, kind, pick), body)

    @rule(who=WHO, kind=KIND, pick=PICK, name=NAME, text=TEXT, tools=TOOLS, stray=STRAY, kept=st.sets(st.integers(0, 3)))
    def change_some_fields(
        self, who: int, kind: str, pick: int, name: int, text: int, tools: list[int] | None, stray: str, kept: set[int]
    ) -> None:
        """`kept` says which fields the change holds, none and all included."""
        tenant = self.tenants[who]
        body = self.body_of(tenant, kind, name, text, tools, stray)
        changes = {field: value for place, (field, value) in enumerate(body.items()) if place in kept}
        if changes.get("tool_ids") == []:
            changes["tool_ids"] = None
        self.change(tenant, kind, "change", self.some_id(tenant, kind, pick), changes)

    @rule(who=WHO, kind=KIND, pick=PICK, if_unused=st.sampled_from([None, False, True]))
    def delete_one(self, who: int, kind: str, pick: int, if_unused: bool | None) -> None:
        tenant = self.tenants[who]
        self.delete(tenant, kind, self.some_id(tenant, kind, pick), if_unused)

    @rule(who=WHO, kind=KIND, pick=PICK, text=TEXT)
    def take_a_freed_name(self, who: int, kind: str, pick: int, text: int) -> None:
        """Deletes a thing and makes another one under its name, which has another id."""
        tenant = self.tenants[who]
        thing = tenant.things(kind).get(self.some_id(tenant, kind, pick))
        if thing is None:
            self.count("idle steps")
            return
        self.delete(tenant, kind, thing["id"], None)
        self.create(tenant, kind, self.body_of(tenant, kind, 0, text, None, "none") | {"name": thing["name"]})

    @rule(who=WHO, kind=KIND | st.just("runs"), pick=PICK)
    def get(self, who: int, kind: str, pick: int) -> None:
        tenant = self.tenants[who]
        self.read(tenant, kind, self.some_id(tenant, kind, pick))

    @rule(who=WHO, operation=st.sampled_from(sorted(_OPERATIONS)), fault=st.sampled_from(sorted(_BROKEN)), pick=PICK)
    def send_a_broken_body(self, who: int, operation: str, fault: str, pick: int) -> None:
        """Refused with every place that is wrong, whatever the id: that is looked at before anything is looked up."""
        tenant, kind = self.tenants[who], _OPERATIONS[operation]
        ((body, errors),) = _BROKEN[fault][kind]
        if fault == "missing" and operation.startswith("change"):
            body, errors = {"name": None}, [("#/name", "Must be of the type string.")]
        filled = {
            field: value.replace("{}", tenant.marker) if isinstance(value, str) else value for field, value in body.items()
        }
        self.refused_body(tenant, operation, pick, filled, invalid(*errors), {})

    @rule(who=WHO, operation=st.sampled_from(sorted(_OPERATIONS)), pick=PICK, media=st.booleans())
    def send_what_is_no_json(self, who: int, operation: str, pick: int, media: bool) -> None:
        tenant = self.tenants[who]
        if media:
            wanted = "application/merge-patch+json or " if operation.startswith("change") else ""
            refusal = Refusal("unsupported-media-type", f"Send the body as {wanted}application/json, in UTF-8.")
            headers = {"Content-Type": "text/plain"}
        else:
            detail = "The body is not JSON: line 1, column 2."
            refusal, headers = Refusal("malformed-request", detail, (("#", detail),)), {}
        self.refused_body(tenant, operation, pick, f"{{{tenant.marker}".encode(), refusal, headers)

    def refused_body(
        self, tenant: Tenant, operation: str, pick: int, body: JSON | bytes, refusal: Refusal, headers: dict[str, str]
    ) -> None:
        kind = WITH_ID.get(operation)
        thing_id = None if kind is None else self.some_id(self.tenants[pick % 2], kind, pick)
        path, answer = self.call(tenant, operation, thing_id, body=body, headers=headers)
        over = tenant.over_limit(self.world.clock.now) if operation == "run_agent" else None
        self.refused(path, answer, [over or refusal])

    @rule(who=WHO, kind=KIND | st.just("runs"), pick=PICK, text=TEXT, condition=st.booleans())
    def use_the_others_id(self, who: int, kind: str, pick: int, text: int, condition: bool) -> None:
        """In every operation that takes one: it gets the same 404 as an id that nobody has, byte for byte but for the id."""
        tenant, other = self.tenants[who], self.other(self.tenants[who])
        ids = [*other.things(kind), *other.gone[kind][-1:]]
        theirs = ids[pick % len(ids)] if ids else self.nobodys()
        tags = other.tags.get((kind, theirs))
        etag = (tags and tags.now) or '"1"'
        for operation in [each for each, its_kind in WITH_ID.items() if its_kind == kind]:
            body: JSON | None = None
            if operation == "run_agent":
                body = {"task": task_of((), text, tenant.marker), "model": "gpt-4o"}
            elif operation.startswith(("replace", "change")):
                body = self.body_of(tenant, kind, pick % 13, text, None, "nobody's" if pick % 2 else "none")
            headers = {"If-None-Match" if operation.startswith("get") else "If-Match": etag} if condition else {}
            sent = [self.call(tenant, operation, each, body=body, headers=headers) for each in (theirs, self.nobodys())]
            (there, answer), (nowhere, nobodys) = sent
            over = tenant.over_limit(self.world.clock.now) if operation == "run_agent" else None
            self.refused(there, answer, [over or not_found(kind)])
            assert answer.headers == nobodys.headers, f"{answer} and {nobodys} differ"
            replaced = answer.body.replace(there.encode(), nowhere.encode())
            assert replaced == nobodys.body, f"{answer} and {nobodys} differ in more than the id"
            self.count("comparisons")
