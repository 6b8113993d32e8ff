"""Rules about runs and their limit: admitted and refused, failed and stopped, said again, and kept when the agent goes."""

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.attacks.model import JSON, RATE_WINDOW, Kept, Refusal, Tenant, asked, not_found
from tests.attacks.tenants_base import NAME, PICK, TEXT, WHO, Base
from tests.attacks.tenants_oracle import check_run
from tests.attacks.tenants_texts import STOPPED, name_of, task_of


class History(Base):
    def run_agent(
        self, tenant: Tenant, agent_id: int, task: str, named: list[str], key: str | None = None, **headers: str
    ) -> None:
        """Runs an agent, under an idempotency key if one is given; the limit's headers stand on every answer."""
        body: JSON = {"task": task, "model": "gpt-4o"}
        now, agent = self.world.clock.now, tenant.agents.get(agent_id)
        path, answer = self.call(tenant, "run_agent", agent_id, body=body, headers=headers)
        stopped = next((why for begin, why in STOPPED.items() if task == begin.format(tenant.marker)), None)
        refusal = None
        if key is not None and (kept := tenant.kept.get(key)):
            self.replayed(path, body, answer, kept)
        elif refusal := tenant.over_limit(now) or (None if agent else not_found("agents")):
            pass
        elif stopped:
            rule_name, why = stopped
            errors = [("#/task", f"Stopped by the rule {rule_name}: {why}")]
            refusal = Refusal("guardrail", f"The guardrail stopped the task by its rule {rule_name}.", errors, rule_name)
        elif agent:
            assert answer.status == 200, f"{path} {body} -> {answer}"
            assert "Idempotency-Replayed" not in answer.headers
            said = answer.json()
            check_run(said, agent, [tenant.tools[each] for each in agent["tool_ids"]], task, named)
            run_id = self.new_id("runs", said)
            assert answer.headers["Content-Location"] == f"/runs/{run_id}"
            assert said["created_at"] >= max((run["created_at"] for run in tenant.runs.values()), default="")
            tenant.add("runs", said)
            tenant.count_run(now)
            self.count(f"runs {said['status']}")
            if key is not None:
                tenant.kept[key] = Kept(asked(path, body), answer)
        if refusal is not None:
            self.refused(path, answer, [refusal])
        expected = tenant.rate_headers(now)
        assert {name: answer.headers.get(name) for name in expected} == expected, f"{path} -> {answer}, not {expected}"
        if answer.status == 429:
            assert answer.headers["Retry-After"] == expected["RateLimit"].rpartition("=")[2]
        self.count("comparisons")

    @rule(who=WHO, pick=PICK, names=st.lists(NAME, max_size=3), text=TEXT)
    def run(self, who: int, pick: int, names: list[int], text: int) -> None:
        tenant = self.tenants[who]
        named = [name_of("tools", name, tenant.marker) for name in names]
        self.run_agent(tenant, self.some_id(tenant, "agents", pick), task_of(named, text, tenant.marker), named)

    @rule(who=WHO, pick=PICK, text=TEXT)
    def run_naming_all_tools(self, who: int, pick: int, text: int) -> None:
        """Fails where the agent has more than eight."""
        tenant = self.tenants[who]
        most = sorted(tenant.agents, key=lambda each: len(tenant.agents[each]["tool_ids"]))[-2:]
        agent_id = most[pick % len(most)] if most else self.nobodys()
        named = [tool["name"] for tool in tenant.tools.values()]
        self.run_agent(tenant, agent_id, task_of(named, text, tenant.marker), named)

    @rule(who=WHO, pick=PICK, task=st.sampled_from(sorted(STOPPED)))
    def run_what_the_guardrail_stops(self, who: int, pick: int, task: str) -> None:
        tenant = self.tenants[who]
        self.run_agent(tenant, self.some_id(tenant, "agents", pick), task.format(tenant.marker), [])

    @rule(who=WHO, pick=PICK, text=TEXT)
    def delete_an_agent_that_has_run(self, who: int, pick: int, text: int) -> None:
        """Its runs stay, and are read again at the end of each step; its own list of them is gone."""
        tenant = self.tenants[who]
        ran = [agent_id for agent_id in tenant.agents if tenant.is_used("agents", agent_id)]
        if not ran:
            self.count("idle steps")
            return
        agent_id = ran[pick % len(ran)]
        self.delete(tenant, "agents", agent_id, True)
        self.delete(tenant, "agents", agent_id, None)
        path, answer = self.call(tenant, "list_agent_runs", agent_id)
        self.refused(path, answer, [not_found("agents")])

    @rule(seconds=st.sampled_from([0.5, 20.0, 59.5, float(RATE_WINDOW), 61.0]))
    def wait(self, seconds: float) -> None:
        """Turns the limiter's clock, up to a window's very end among others."""
        self.world.clock.now += seconds
