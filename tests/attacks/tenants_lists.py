"""Rules about lists: pages by limit, offset and cursor, and every filter, with the tenant's own values and the other's."""

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.attacks.model import JSON, Cursor, Filters, Tenant, invalid, not_found
from tests.attacks.tenants_base import NAME, PICK, WHO, Base
from tests.attacks.tenants_texts import name_of

_ROUTES = {"list_tools": "/tools", "list_agents": "/agents", "list_runs": "/runs"}
_NO_CURSOR = "This is no cursor of this list: use `next` of a page with the same filters."
_NO_OFFSET = "A cursor says where the page begins: leave out the offset."
_BROKEN: list[tuple[str, list[tuple[str, str]]]] = [
    ("limit=0", [("limit", "Must be at least 1.")]),
    ("limit=101&offset=-1", [("limit", "Must be at most 100."), ("offset", "Must be at least 0.")]),
    ("colour=red&limit=", [("colour", "This parameter is not known."), ("limit", "This parameter is empty.")]),
    ("limit=1&limit=2", [("limit", "This parameter is given more than once.")]),
    ("cursor=QUJD", [("cursor", _NO_CURSOR)]),
]


class Lists(Base):
    def page(
        self,
        tenant: Tenant,
        operation: str,
        agent_id: int | None,
        filters: Filters,
        limit: int | None,
        place: Mapping[str, Any],
    ) -> Cursor | None:
        """Compares one page, from an `offset` or behind a `cursor` of the model; gives the cursor of the next one."""
        route = _ROUTES.get(operation, f"/agents/{agent_id}/runs")
        cursor: Cursor | None = place.get("cursor")
        query: JSON = {**filters, **({} if limit is None else {"limit": limit})}
        query |= {"cursor": cursor.text} if cursor else place
        path, answer = self.call(tenant, operation, agent_id, query=query)
        items = tenant.listing(route, filters)
        if items is None:
            self.refused(path, answer, [not_found("agents")])
            return None
        assert answer.status == 200, f"{path} {query} -> {answer}"
        passed = cursor.passed if cursor else place.get("offset", 0)
        if cursor:
            newest_first = route.endswith("runs")
            rest = [item for item in items if (item["id"] < cursor.last if newest_first else item["id"] > cursor.last)]
        else:
            rest = items[passed:]
        size = 20 if limit is None else limit
        said = answer.json()
        following = said.pop("next")
        expected = {"items": rest[:size], "total": len(items), "limit": size, "offset": passed}
        assert said == expected, f"{path} {query} is {said}, not {expected}"
        assert (following is not None) == (len(rest) > size), f"{path} {query} goes on with {following}"
        self.count("comparisons")
        if following is None:
            return None
        found = Cursor(route, filters, following, rest[size - 1]["id"], passed + size)
        tenant.cursors = [*tenant.cursors[-9:], found]
        return found

    def walk(self, tenant: Tenant, operation: str, agent_id: int | None, filters: Filters, limit: int) -> None:
        """Follows a list from its first page to its last."""
        following = self.page(tenant, operation, agent_id, filters, limit, {})
        while following:
            following = self.page(tenant, operation, agent_id, filters, limit, {"cursor": following})

    @rule(
        who=WHO,
        kind=st.sampled_from(["tools", "agents"]),
        whose=WHO,
        name=st.none() | NAME,
        via=st.none() | NAME,
        limit=st.integers(1, 4),
        offset=st.none() | st.integers(0, 4),
    )
    def list_things(
        self, who: int, kind: str, whose: int, name: int | None, via: int | None, limit: int, offset: int | None
    ) -> None:
        """By name, and by the name of what has it or what it has; `whose` says with whose marker."""
        tenant, mark = self.tenants[who], self.tenants[whose].marker
        other_kind = {"tools": "agents", "agents": "tools"}[kind]
        filters: JSON = {} if name is None else {"name": name_of(kind, name, mark)}
        if via is not None:
            filters[f"{other_kind.removesuffix('s')}_name"] = name_of(other_kind, via, mark)
        if offset is None:
            self.walk(tenant, f"list_{kind}", None, filters, limit)
        else:
            self.page(tenant, f"list_{kind}", None, filters, limit, {"offset": offset})

    @rule(who=WHO, kind=st.sampled_from(["tools", "agents"]), pick=PICK)
    def list_by_a_name_in_use(self, who: int, kind: str, pick: int) -> None:
        """The agents that have one tool, or the tools that one agent has."""
        tenant = self.tenants[who]
        via = list(tenant.agents.values() if kind == "tools" else tenant.tools.values())
        if not via:
            self.count("idle steps")
            return
        field = "agent_name" if kind == "tools" else "tool_name"
        self.walk(tenant, f"list_{kind}", None, {field: via[pick % len(via)]["name"]}, 2)

    @rule(
        who=WHO,
        whose=WHO,
        agent=st.none() | PICK,
        status=st.sampled_from([None, None, "completed", "failed", "running"]),
        model=st.sampled_from([None, None, "gpt-4o", "gpt-5"]),
        after=st.none() | PICK,
        before=st.none() | PICK,
        limit=st.none() | st.integers(1, 4),
        offset=st.none() | st.integers(0, 4),
    )
    def list_runs(
        self,
        who: int,
        whose: int,
        agent: int | None,
        status: str | None,
        model: str | None,
        after: int | None,
        before: int | None,
        limit: int | None,
        offset: int | None,
    ) -> None:
        """`after` and `before` pick runs, of whomever, whose very times are the bounds."""
        tenant, owner = self.tenants[who], self.tenants[whose]
        filters: JSON = {name: value for name, value in (("status", status), ("model", model)) if value is not None}
        if agent is not None:
            filters["agent_id"] = self.some_id(owner, "agents", agent)
        times = [run["created_at"] for run in owner.runs.values()] or ["2026-01-01T00:00:00.000000Z"]
        for name, pick in (("created_after", after), ("created_before", before)):
            if pick is not None:
                filters[name] = times[pick % len(times)]
        if offset is None:
            self.walk(tenant, "list_runs", None, filters, limit or 20)
        else:
            self.page(tenant, "list_runs", None, filters, limit, {"offset": offset})

    @rule(who=WHO, pick=PICK, limit=st.integers(1, 3))
    def list_an_agents_runs(self, who: int, pick: int, limit: int) -> None:
        tenant = self.tenants[who]
        self.walk(tenant, "list_agent_runs", self.some_id(tenant, "agents", pick), {}, limit)

    @rule(who=WHO, pick=PICK, limit=st.integers(1, 4))
    def follow_an_old_cursor(self, who: int, pick: int, limit: int) -> None:
        """It goes on behind its place, whatever was made and deleted since."""
        tenant = self.tenants[who]
        if not tenant.cursors:
            self.count("idle steps")
            return
        cursor = tenant.cursors[pick % len(tenant.cursors)]
        operation, agent_id = _operation_of(cursor.route)
        self.page(tenant, operation, agent_id, cursor.filters, limit, {"cursor": cursor})

    @rule(who=WHO, pick=PICK, how=st.sampled_from(["the other's", "another list", "another filter", "an offset"]))
    def follow_a_cursor_wrongly(self, who: int, pick: int, how: str) -> None:
        tenant = self.tenants[who]
        cursors = (self.other(tenant) if how == "the other's" else tenant).cursors
        if not cursors:
            self.count("idle steps")
            return
        cursor = cursors[pick % len(cursors)]
        operation, agent_id = _operation_of(cursor.route)
        query: JSON = {**cursor.filters, "cursor": cursor.text}
        refusal = ("cursor", _NO_CURSOR)
        if how == "another list":
            operation, agent_id = ("list_agents" if cursor.route == "/tools" else "list_tools"), None
            query = {"cursor": cursor.text}
        elif how == "another filter" and agent_id is None:
            field = "model" if cursor.route == "/runs" else "name"
            query[field] = "nobody-is-called-so"
        else:
            query |= {"offset": 0} if how != "the other's" else {}
            refusal = refusal if how == "the other's" else ("offset", _NO_OFFSET)
        path, answer = self.call(tenant, operation, agent_id, query=query)
        wanted = invalid(refusal)
        assert answer.status == 400, f"{path} {query} -> {answer}"
        self.refused(path, answer, [type(wanted)(wanted.kind, refusal[1], [refusal])])

    @rule(who=WHO, operation=st.sampled_from([*_ROUTES, "list_agent_runs"]), broken=st.sampled_from(_BROKEN), pick=PICK)
    def list_with_a_broken_query(
        self, who: int, operation: str, broken: tuple[str, list[tuple[str, str]]], pick: int
    ) -> None:
        """Refused with every parameter that is wrong, whosever the agent is."""
        tenant, (query, errors) = self.tenants[who], broken
        agent_id = self.some_id(self.tenants[pick % 2], "agents", pick) if operation == "list_agent_runs" else None
        pairs = [tuple(pair.split("=")) for pair in query.split("&")]
        path, answer = self.call(tenant, operation, agent_id, query=pairs)
        wanted = invalid(*errors)
        if errors[0][1] == _NO_CURSOR:
            wanted = type(wanted)(wanted.kind, _NO_CURSOR, errors)
        self.refused(path, answer, [wanted])


def _operation_of(route: str) -> tuple[str, int | None]:
    """The operation of a list's route, and the id of the agent in it."""
    for operation, path in _ROUTES.items():
        if route == path:
            return operation, None
    return "list_agent_runs", int(route.split("/")[2])
