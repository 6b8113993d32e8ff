"""Rules about retries and versions: Idempotency-Key, ETag, If-Match and If-None-Match."""

import json

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.attacks.model import JSON, SINGULAR, Tenant, not_found
from tests.attacks.tenants_base import NAME, PICK, TEXT, WHO
from tests.attacks.tenants_history import History
from tests.attacks.tenants_texts import task_of
from tests.attacks.tenants_things import KIND, STRAY, TOOLS, Things

# 0 and 1 are keys of both tenants, the others hold the sender's marker
_KEY = st.integers(0, 4)
_QUOTED = st.booleans()
_CONDITION = st.sampled_from(["now", "before", "weak", "any", "before and now", "weak and before", "never given"])


class Retries(Things, History):
    def key(self, tenant: Tenant, number: int, quoted: bool) -> tuple[str, dict[str, str]]:
        """An idempotency key and the header that says it, plain or in quotes: both say the same."""
        key = f"again-{number}" if number < 2 else f"{number}\\{tenant.marker}"
        escaped = key.replace("\\", "\\\\")
        return key, {"Idempotency-Key": f'"{escaped}"' if quoted else key}

    @rule(who=WHO, number=_KEY, quoted=_QUOTED, kind=KIND, name=NAME, text=st.integers(0, 1), tools=TOOLS, stray=STRAY)
    def create_under_a_key(
        self, who: int, number: int, quoted: bool, kind: str, name: int, text: int, tools: list[int] | None, stray: str
    ) -> None:
        tenant = self.tenants[who]
        key, headers = self.key(tenant, number, quoted)
        self.create(tenant, kind, self.body_of(tenant, kind, name, text, tools, stray), key, **headers)

    @rule(who=WHO, number=_KEY, quoted=_QUOTED, pick=PICK, text=st.integers(0, 1))
    def run_under_a_key(self, who: int, number: int, quoted: bool, pick: int, text: int) -> None:
        tenant = self.tenants[who]
        key, headers = self.key(tenant, number, quoted)
        task = task_of((), text, tenant.marker)
        self.run_agent(tenant, self.some_id(tenant, "agents", pick), task, [], key, **headers)

    @rule(who=WHO, pick=PICK, quoted=_QUOTED, times=st.integers(1, 3))
    def say_again(self, who: int, pick: int, quoted: bool, times: int) -> None:
        """Repeats a request that has succeeded, its fields in another order, over the limit and without the agent, too."""
        tenant = self.tenants[who]
        if not tenant.kept:
            self.count("idle steps")
            return
        for _ in range(times):
            key = sorted(tenant.kept)[pick % len(tenant.kept)]
            path, body = json_of(tenant.kept[key].asked)
            body = dict(sorted(body.items(), reverse=True))
            headers = {"Idempotency-Key": '"' + key.replace("\\", "\\\\") + '"' if quoted else key}
            if path.endswith("/run"):
                self.run_agent(tenant, int(path.split("/")[2]), body["task"], [], key, **headers)
            else:
                self.create(tenant, path.removeprefix("/"), body, key, **headers)

    @rule(who=WHO, pick=PICK, text=TEXT)
    def use_a_key_of_the_other(self, who: int, pick: int, text: int) -> None:
        """Another tenant's key, with the very request that it came with, is new: keys of two tenants never meet."""
        tenant, other = self.tenants[who], self.other(self.tenants[who])
        common = sorted(key for key in other.kept if key.startswith("again-"))
        if not common:
            self.count("idle steps")
            return
        key = common[pick % len(common)]
        path, _ = json_of(other.kept[key].asked)
        if path.endswith("/run"):
            task = task_of((), text, tenant.marker)
            self.run_agent(tenant, int(path.split("/")[2]), task, [], key, **{"Idempotency-Key": key})
            return
        kind = path.removeprefix("/")
        body = self.body_of(tenant, kind, 10 + pick % 3, text, None, "none")
        self.create(tenant, kind, body, key, **{"Idempotency-Key": key})

    def tag_of(self, tenant: Tenant, kind: str, thing_id: int, how: str) -> tuple[str, bool, bool]:
        """A condition as a header has it, and whether it holds for the thing as it is: compared strongly, and weakly."""
        if thing_id in tenant.things(kind) and tenant.tags[kind, thing_id].now is None:
            self.read(tenant, kind, thing_id)
        tags = tenant.tags.get((kind, thing_id))
        now, before = (tags and tags.now) or '"1"', tags.before if tags else []
        old = before[-1] if before else '"0"'
        return {
            "now": (now, True, True),
            "before": (", ".join(before[-20:] or [old]), False, False),
            "weak": (f"W/{now}", False, True),
            "any": ("*", True, True),
            "before and now": (f"{old}, {now}", True, True),
            "weak and before": (f"W/{now},{old}", False, True),
            "never given": (
                '"no-such-version", "99999999"',
                False,
                False,
            ),
        }[how]

    @rule(who=WHO, kind=KIND, pick=PICK, how=_CONDITION)
    def get_if_changed(self, who: int, kind: str, pick: int, how: str) -> None:
        tenant = self.tenants[who]
        thing_id = self.some_id(tenant, kind, pick)
        header, _, known = self.tag_of(tenant, kind, thing_id, how)
        path, answer = self.call(tenant, f"get_{SINGULAR[kind]}", thing_id, headers={"If-None-Match": header})
        if thing_id not in tenant.things(kind):
            self.refused(path, answer, [not_found(kind)])
            return
        self.agree_tag(tenant, kind, thing_id, answer)
        if known:
            assert (answer.status, answer.body) == (304, b""), f"{path} If-None-Match {header} -> {answer}"
            return
        assert answer.status == 200, f"{path} If-None-Match {header} -> {answer}"
        self.agree(tenant, kind, thing_id, answer.json())

    @rule(
        who=WHO,
        kind=KIND,
        verb=st.sampled_from(["replace", "change", "change nothing"]),
        pick=PICK,
        name=NAME,
        text=TEXT,
        tools=TOOLS,
        stray=STRAY,
        how=_CONDITION,
    )
    def change_if_unchanged(
        self, who: int, kind: str, verb: str, pick: int, name: int, text: int, tools: list[int] | None, stray: str, how: str
    ) -> None:
        tenant = self.tenants[who]
        thing_id = self.some_id(tenant, kind, pick)
        header, passes, _ = self.tag_of(tenant, kind, thing_id, how)
        body = {} if verb == "change nothing" else self.body_of(tenant, kind, name, text, tools, stray)
        self.change(tenant, kind, verb.split()[0], thing_id, body, passes, **{"If-Match": header})

    @rule(who=WHO, kind=KIND, pick=PICK, if_unused=st.sampled_from([None, True]), how=_CONDITION)
    def delete_if_unchanged(self, who: int, kind: str, pick: int, if_unused: bool | None, how: str) -> None:
        tenant = self.tenants[who]
        thing_id = self.some_id(tenant, kind, pick)
        header, passes, _ = self.tag_of(tenant, kind, thing_id, how)
        self.delete(tenant, kind, thing_id, if_unused, passes, **{"If-Match": header})

    @rule(who=WHO, pick=PICK, name=NAME, text=TEXT, deletes=st.booleans())
    def change_a_tool_of_an_agent(self, who: int, pick: int, name: int, text: int, deletes: bool) -> None:
        """Its agents' ETags change with its name and with its end, and with nothing else of it."""
        tenant = self.tenants[who]
        used = [tool_id for tool_id in tenant.tools if tenant.agents_with(tool_id)]
        if not used:
            self.count("idle steps")
            return
        tool_id = used[pick % len(used)]
        agents = tenant.agents_with(tool_id)
        for agent_id in agents:
            self.read(tenant, "agents", agent_id)
        if deletes:
            self.delete(tenant, "tools", tool_id, None)
        else:
            self.change(tenant, "tools", "change", tool_id, self.body_of(tenant, "tools", name, text, None, "none"))
        for agent_id in agents:
            self.read(tenant, "agents", agent_id)

    @rule(who=WHO, kind=KIND, pick=PICK, name=NAME, text=TEXT, creates=st.booleans(), how=st.sampled_from(["any", "now"]))
    def write_with_if_none_match(
        self, who: int, kind: str, pick: int, name: int, text: int, creates: bool, how: str
    ) -> None:
        """A header that says nothing to a write, as the spec has it: the write is done, and answered as without it."""
        tenant = self.tenants[who]
        body = self.body_of(tenant, kind, name, text, None, "none")
        if creates:
            self.create(tenant, kind, body, **{"If-None-Match": "*" if how == "any" else '"1"'})
            return
        thing_id = self.some_id(tenant, kind, pick)
        header, _, _ = self.tag_of(tenant, kind, thing_id, how)
        self.change(tenant, kind, "replace", thing_id, body, **{"If-None-Match": header})


def json_of(asked: str) -> tuple[str, JSON]:
    """The path and the body that model.asked was made from."""
    path, body = json.loads(asked)
    return path, body
