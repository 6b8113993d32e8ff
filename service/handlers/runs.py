"""Runs: running an agent, and what happened."""

import time
from dataclasses import replace
from typing import Any

import orjson

from service.errors import GuardrailStopped, OutcomeUnknown, not_found
from service.execution.guardrail import stopped_by
from service.execution.loop import Outcome, run
from service.execution.models import ModelRegistry
from service.execution.prompt import Agent, Tool
from service.execution.tools import ToolExecutor
from service.handlers import Answer
from service.limiter import Quota
from service.metrics import Metrics
from service.paging import LARGEST_ID, Listing, page
from service.storage.scope import Scope
from service.storage.units import Row, Unit, ask, ask_last
from service.times import utc_now


async def run_agent(
    tenant: Scope,
    agent_id: int,
    body: dict[str, Any],
    quota: Quota,
    models: ModelRegistry,
    tool_executor: ToolExecutor,
    metrics: Metrics,
) -> Answer:
    task, model = body["task"], body["model"]
    agent = _agent(await tenant.one("get_agent_to_run", agent_id=agent_id) or not_found("agent"))
    if rule := stopped_by(task):
        metrics.note_guardrail_stop(rule.name)
        raise GuardrailStopped(
            f"The guardrail stopped the task by its rule {rule.name}.",
            errors=[{"pointer": "#/task", "detail": f"Stopped by the rule {rule.name}: {rule.summary}"}],
            rule=rule.name,
        )
    take_back = await quota.admit()
    metrics.limiter_admissions.inc()
    created_at, began = utc_now(), time.monotonic()
    # no transaction is open while the model thinks
    outcome = await run(agent, task, model, models.adapter(model), tool_executor)
    duration_ms = round((time.monotonic() - began) * 1000)
    metrics.note_tool_calls(len(outcome.steps), None if outcome.error is None else outcome.error["code"])
    try:
        stored = await tenant.write(_store(_run(agent, task, model, outcome, created_at, duration_ms)))
    except OutcomeUnknown:
        # it may be stored, and stays counted
        raise
    except Exception:
        # nothing is stored, and the client may try again
        await take_back()
        raise
    metrics.note_run(model, outcome.status)
    return stored


async def get_run(tenant: Scope, run_id: int) -> Answer:
    return await tenant.one("get_run", run_id=run_id) or not_found("run")


async def list_runs(
    tenant: Scope,
    limit: int,
    offset: int | None,
    cursor: str | None,
    agent_id: int | None,
    status: str | None,
    model: str | None,
    created_after: str | None,
    created_before: str | None,
) -> Answer:
    listing = _history("/runs", agent_id, status, model, created_after, created_before)
    return await page(tenant, listing, limit, offset, cursor)


async def list_agent_runs(tenant: Scope, agent_id: int, limit: int, offset: int | None, cursor: str | None) -> Answer:
    owner = ask("agent_exists", agent_id=agent_id)
    listing = replace(_history("/agents/{agent_id}/runs", agent_id), owner=owner)
    return await page(tenant, listing, limit, offset, cursor) or not_found("agent")


def _history(
    route: str,
    agent_id: int | None,
    status: str | None = None,
    model: str | None = None,
    created_after: str | None = None,
    created_before: str | None = None,
) -> Listing:
    """Runs, newest first, by the query whose index fits the filters; the total is read where no time is given."""
    times = {"created_after": created_after, "created_before": created_before}
    kind = {"agent_id": agent_id or 0, "status": status, "model": model}
    filters: dict[str, Any] = {"model": model, **times}
    items = "list_runs"
    if agent_id is not None:
        items, filters = "list_agent_runs", {**filters, "agent_id": agent_id, "status": status}
    elif status is not None:
        items, filters = "list_runs_with_status", {**filters, "status": status}
    timeless = created_after is None and created_before is None
    # a filter that the query's index does not begin with may let one run of a million pass
    is_quick = timeless and model is None and (agent_id is None or status is None)
    return Listing(
        route,
        items,
        "total_runs" if timeless else "count_runs_between",
        filters,
        key="before",
        start=LARGEST_ID + 1,
        total_filters=kind if timeless else kind | times,
        is_quick=is_quick,
    )


def _agent(row: Row) -> Agent:
    tools = sorted((Tool(**tool) for tool in row["tools"]), key=lambda tool: tool.name)
    return Agent(row["id"], row["name"], row["role"], row["description"], tuple(tools))


def _run(agent: Agent, task: str, model: str, outcome: Outcome, created_at: str, duration_ms: int) -> Row:
    """The run as the API shows it; its id comes from the storage."""
    return {
        "id": None,
        "agent_id": agent.id,
        "agent_name": agent.name,
        "task": task,
        "model": model,
        "status": outcome.status,
        "prompt": outcome.prompt,
        "response": outcome.response,
        "error": outcome.error,
        "steps": outcome.steps,
        "usage": {
            "prompt_tokens": outcome.prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
            "total_tokens": outcome.prompt_tokens + outcome.completion_tokens,
        },
        "created_at": created_at,
        "duration_ms": duration_ms,
    }


def _store(done: Row) -> Unit[Answer]:
    done |= yield ask_last("create_run", **_columns(done))
    return done, 200, {"Content-Location": f"/runs/{done['id']}"}


def _columns(done: Row) -> Row:
    """The same run as the table has it: lists and objects as JSON, the token counts in columns of their own."""
    return {
        **{name: value for name, value in done.items() if name not in ("id", "usage")},
        "error": None if done["error"] is None else orjson.dumps(done["error"]).decode(),
        "steps": orjson.dumps(done["steps"]).decode(),
        "prompt_tokens": done["usage"]["prompt_tokens"],
        "completion_tokens": done["usage"]["completion_tokens"],
    }
