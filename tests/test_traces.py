"""The caller's trace (W3C Trace Context) stands in the log and reaches models and tools; what a line of the log says."""

import io
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

import pytest

from service.app import make_app
from service.config import Config
from service.execution.models import Conversation, ModelRegistry, ToolCall
from service.execution.prompt import Tool
from service.logs import AccessLog
from service.problems import ACCESS_LOG
from service.records import Formatter
from service.trace import outgoing_headers
from tests.conftest import KEY_A, Client, Serve
from tests.support.http import make_agent, make_tool

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
TASK = {"task": "Say hello", "model": "gpt-4o"}


class Asking:
    """A model and a tool that note what they would send to elsewhere."""

    def __init__(self) -> None:
        self.sent: list[Mapping[str, str]] = []

    async def answer(self, conversation: Conversation) -> str | ToolCall:
        self.sent.append(outgoing_headers())
        return "done" if conversation.results else ToolCall("search", {"input": "x"})

    async def execute(self, tool: Tool, arguments: Mapping[str, str]) -> str:
        self.sent.append(outgoing_headers())
        return "found"


@pytest.fixture
def asking() -> Asking:
    return Asking()


@pytest.fixture
async def client(serve: Serve, config: Config, asking: Asking) -> Client:
    """With an agent that has a tool."""
    client = await serve(models=ModelRegistry({"gpt-4o": asking}), tool_executor=asking)
    await make_agent(client, tool_ids=[(await make_tool(client))["id"]])
    return client


async def run(client: Client, *headers: tuple[str, str]) -> Any:
    """Runs the agent. The trace is no header of the answer."""
    response = await client.post("/agents/1/run", headers=[*KEY_A.items(), *headers], json=TASK)
    assert response.status == 200
    assert not {"traceparent", "tracestate", "traceresponse"} & {name.lower() for name in response.headers}
    return response


async def test_a_trace_reaches_models_and_tools_and_no_other_request(client: Client, asking: Asking) -> None:
    state = ("tracestate", "congo=t61rcWkgMzE"), ("tracestate", "rojo=00f067aa0ba902b7")
    await run(client, ("traceparent", PARENT), *state)
    # on the same connection
    await run(client)
    passed_on = {"traceparent": PARENT, "tracestate": "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"}
    assert asking.sent == [passed_on] * 3 + [{}] * 3


@pytest.mark.embedded
async def test_what_is_passed_on_is_of_the_version_that_we_know(client: Client, asking: Asking) -> None:
    later = f"cc-{TRACE_ID}-{PARENT_ID}-ff-more"
    for headers in (
        [("traceparent", later), ("tracestate", f"a={'x' * 511}")],
        [("traceparent", f"cc-{TRACE_ID}-{PARENT_ID}-00"), ("tracestate", "a=\x80")],
    ):
        await run(client, *headers)
    versions = [f"00-{TRACE_ID}-{PARENT_ID}-{flags}" for flags in ("03", "00")]
    assert asking.sent == [{"traceparent": versions[0]}] * 3 + [{"traceparent": versions[1]}] * 3


INVALID = {
    "empty": "",
    "no trace": "none",
    "another alphabet": PARENT.upper(),
    "too short": PARENT[:-1],
    "too long for its version": f"{PARENT}-more",
    "a version that can't be": f"ff{PARENT[2:]}",
    "a later version that goes on without a dash": f"cc{PARENT[2:]}x",
    "a trace of zeros": f"00-{'0' * 32}-{PARENT_ID}-01",
    "a parent of zeros": f"00-{TRACE_ID}-{'0' * 16}-01",
    "something before it": f"x{PARENT}",
}


@pytest.mark.embedded
@pytest.mark.parametrize("given", INVALID.values(), ids=INVALID)
async def test_a_trace_that_is_not_valid_is_ignored(client: Client, asking: Asking, given: str) -> None:
    await run(client, ("traceparent", given), ("tracestate", "congo=t61rcWkgMzE"))
    assert asking.sent == [{}] * 3


@pytest.mark.embedded
async def test_two_traces_are_none(client: Client, asking: Asking) -> None:
    await run(client, ("traceparent", PARENT), ("traceparent", PARENT))
    assert asking.sent == [{}] * 3


@pytest.mark.embedded
async def test_each_request_is_one_line_of_json_that_says_whose_it_was(serve: Serve, config: Config) -> None:
    app, written = make_app(config), io.StringIO()
    app[ACCESS_LOG] = log = AccessLog(written, as_json=True)
    client = await serve(app=app)
    answer = await client.get("/models", headers=KEY_A | {"traceparent": PARENT, "X-Request-ID": "mine"})
    await client.head("/models", headers=KEY_A)
    await client.get("/models", headers={"traceparent": "none"})
    log.flush()
    first, head, nobodys = map(json.loads, written.getvalue().splitlines())
    assert first == {
        "timestamp": first["timestamp"],
        "level": "info",
        "event": "request",
        "method": "GET",
        "route": "/models",
        "status": 200,
        "duration_ms": first["duration_ms"],
        "bytes": len(await answer.read()),
        "tenant": "tenant_a",
        "request_id": "mine",
        "trace_id": TRACE_ID,
    }
    assert 0 < first["duration_ms"] < 60_000
    assert (head["method"], head["bytes"], head["trace_id"]) == ("HEAD", 0, None)
    assert (nobodys["status"], nobodys["tenant"], nobodys["trace_id"]) == (401, None, None)
    assert first["timestamp"] <= head["timestamp"] <= nobodys["timestamp"]


@pytest.mark.embedded
async def test_each_request_is_one_line_to_read(serve: Serve, config: Config) -> None:
    app, written = make_app(config), io.StringIO()
    app[ACCESS_LOG] = log = AccessLog(written, as_json=False)
    client = await serve(app=app)
    await client.get("/models", headers=KEY_A | {"traceparent": PARENT, "X-Request-ID": "mine"})
    await client.get("/models", headers={"X-Request-ID": "other"})
    log.flush()
    at = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \[info     \]"
    whole, bare = written.getvalue().splitlines()
    assert re.fullmatch(rf"{at} GET /models 200 [\d.]+ms \d+B tenant=tenant_a request_id=mine trace_id={TRACE_ID}", whole)
    assert re.fullmatch(rf"{at} GET /models 401 [\d.]+ms \d+B request_id=other", bare)


@pytest.mark.embedded
async def test_a_record_says_in_which_request_it_came_to_be(serve: Serve) -> None:
    class Raising:
        async def answer(self, conversation: Conversation) -> str:
            raise RuntimeError

    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(Formatter(as_json=True))
    logger = logging.getLogger("service.execution.loop")
    logger.addHandler(handler)
    try:
        client = await serve(models=ModelRegistry({"gpt-4o": Raising()}))
        await make_agent(client)
        await run(client, ("traceparent", PARENT), ("X-Request-ID", "mine"))
        logger.warning("of no request")
    finally:
        logger.removeHandler(handler)
    theirs, nobodys = map(json.loads, written.getvalue().splitlines())
    assert (theirs["request_id"], theirs["trace_id"]) == ("mine", TRACE_ID)
    assert theirs["event"] == "The adapter of the model gpt-4o raised RuntimeError."
    assert nobodys.keys() == {"event", "level", "logger", "timestamp"}
