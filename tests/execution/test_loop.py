"""The loop of a run, with scripted models and tools: what they may do, what fails the run, and what is kept of it."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import pytest

from service.execution.loop import STEP_LIMIT, Outcome, run
from service.execution.models import Conversation, ModelAdapter, ToolCall, ToolResult, count_tokens
from service.execution.prompt import Agent, Tool, build_prompt
from service.execution.tools import MockTools, ToolExecutor

SEARCH = Tool(11, "search", "Searches the web.")
WEATHER = Tool(12, "weather", "Tells the weather.")
ANN = Agent(7, "Ann", "assistant", "Helps travellers.", (SEARCH, WEATHER))
TASK = "Will it rain in Oslo?"
SECRET = "sk-do-not-show-this"


class Script:
    """A model that says what it was given, one thing a question, and raises what is an exception."""

    def __init__(self, *lines: Any) -> None:
        self._lines = list(lines)
        self.asked: list[Conversation] = []

    async def answer(self, conversation: Conversation) -> Any:
        self.asked.append(conversation)
        line = self._lines.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line


class Tools:
    """Tools that note their calls and give the results they were given, raising what is an exception."""

    def __init__(self, *results: Any) -> None:
        self._results = list(results)
        self.calls: list[tuple[Tool, Mapping[str, str]]] = []

    async def execute(self, tool: Tool, arguments: Mapping[str, str]) -> Any:
        self.calls.append((tool, arguments))
        result = self._results.pop(0)
        if isinstance(result, BaseException):
            raise result
        return result


def call(name: str = "search", text: str = "rain Oslo") -> ToolCall:
    return ToolCall(name, {"input": text})


async def go(adapter: ModelAdapter, tools: ToolExecutor | None = None) -> Outcome:
    return await run(ANN, TASK, "gpt-4o", adapter, tools or Tools())


def failure(outcome: Outcome) -> str:
    """The code of a run that failed as a failed run does: with a sentence, and without a response."""
    assert outcome.status == "failed"
    assert outcome.response is None
    assert outcome.error is not None
    assert outcome.error.keys() == {"code", "message"}
    assert outcome.error["message"].endswith(".")
    return outcome.error["code"]


async def test_a_text_is_the_answer() -> None:
    model = Script("Yes, it will.")
    assert await go(model) == Outcome(
        prompt=build_prompt(ANN, TASK),
        response="Yes, it will.",
        error=None,
        steps=[],
        prompt_tokens=count_tokens(build_prompt(ANN, TASK)),
        completion_tokens=5,
    )
    assert model.asked == [Conversation(ANN, TASK, "gpt-4o", build_prompt(ANN, TASK))]


async def test_an_empty_text_is_an_answer() -> None:
    outcome = await go(Script(""))
    assert (outcome.status, outcome.response, outcome.completion_tokens) == ("completed", "", 0)


async def test_a_tool_is_called_and_its_result_added_to_the_messages() -> None:
    model, tools = Script(call(), call("weather", "Oslo"), "Yes."), Tools("Rain likely.", "Wet.")
    outcome = await go(model, tools)
    assert (outcome.status, outcome.response, outcome.error) == ("completed", "Yes.", None)
    assert tools.calls == [(SEARCH, {"input": "rain Oslo"}), (WEATHER, {"input": "Oslo"})]
    assert [asked.results for asked in model.asked] == [
        (),
        (ToolResult(call(), "Rain likely."),),
        (ToolResult(call(), "Rain likely."), ToolResult(call("weather", "Oslo"), "Wet.")),
    ]
    assert {asked.prompt for asked in model.asked} == {outcome.prompt}


async def test_each_step_says_what_was_called_with_what_and_what_it_gave() -> None:
    outcome = await go(Script(call(), call("weather", "Oslo"), "Yes."), Tools("Rain likely.", "Wet."))
    assert outcome.steps == [
        {
            "index": 0,
            "type": "tool_call",
            "tool_id": 11,
            "tool_name": "search",
            "arguments": {"input": "rain Oslo"},
            "result": "Rain likely.",
        },
        {
            "index": 1,
            "type": "tool_call",
            "tool_id": 12,
            "tool_name": "weather",
            "arguments": {"input": "Oslo"},
            "result": "Wet.",
        },
    ]


async def test_the_mock_tools_answer_with_their_name_and_what_they_were_given() -> None:
    outcome = await go(Script(call(), ToolCall("weather", {"input": ""}), "Yes."), MockTools())
    assert [step["result"] for step in outcome.steps] == ['search: done with "rain Oslo"', 'weather: done with ""']


@pytest.mark.parametrize("name", ["delete_all", "Search", "search ", "", "search: Searches the web."])
async def test_a_tool_that_is_not_the_agents_fails_the_run_and_is_not_called(name: str) -> None:
    model, tools = Script(call(), call(name), "Never said."), Tools("Rain likely.")
    outcome = await go(model, tools)
    assert failure(outcome) == "unknown_tool"
    assert [step["tool_name"] for step in outcome.steps] == ["search"]
    assert len(tools.calls) == 1
    assert len(model.asked) == 2


class Refused(Exception):
    def __str__(self) -> str:
        return SECRET

    __repr__ = __str__


RAISED = [Refused(SECRET), ValueError(SECRET), TimeoutError(SECRET), KeyError(SECRET), StopAsyncIteration(SECRET)]


@pytest.mark.parametrize("raised", RAISED, ids=lambda raised: type(raised).__name__)
async def test_a_model_that_raises_fails_the_run_and_nothing_of_what_it_says_gets_out(
    raised: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    outcome = await go(Script(call(), raised), Tools("Rain likely."))
    assert failure(outcome) == "model_error"
    assert len(outcome.steps) == 1
    assert type(raised).__name__ in caplog.text
    assert SECRET not in f"{outcome}{caplog.text}{[vars(record) for record in caplog.records]}"


@pytest.mark.parametrize("raised", RAISED, ids=lambda raised: type(raised).__name__)
async def test_a_tool_that_raises_fails_the_run_and_nothing_of_what_it_says_gets_out(
    raised: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    model = Script(call(), call("weather"), "Never said.")
    outcome = await go(model, Tools("Rain likely.", raised))
    assert failure(outcome) == "tool_error"
    assert "weather" in (outcome.error or {})["message"]
    assert [step["tool_name"] for step in outcome.steps] == ["search"]
    assert len(model.asked) == 2
    assert type(raised).__name__ in caplog.text
    assert SECRET not in f"{outcome}{caplog.text}{[vars(record) for record in caplog.records]}"


@pytest.mark.parametrize(
    "said",
    [
        None,
        42,
        b"Yes.",
        "half a character: \ud83d",
        ToolCall("search", {"input": 5}),  # type: ignore[dict-item]  # what an adapter must not say
        ToolCall("search", None),  # type: ignore[arg-type]  # what an adapter must not say
        ToolCall("search", {}),
        ToolCall("search", {"a": "b"}),
    ],
    ids=repr,
)
async def test_a_model_that_says_what_is_no_answer_fails_the_run(said: Any) -> None:
    model = Script(said)
    assert failure(await go(model, Tools("Rain likely."))) == "model_error"
    assert len(model.asked) == 1


@pytest.mark.parametrize("result", [None, 42, b"Rain.", "half a character: \ud83d"], ids=repr)
async def test_a_tool_that_gives_no_text_fails_the_run(result: Any) -> None:
    outcome = await go(Script(call(), "Yes."), Tools(result))
    assert failure(outcome) == "tool_error"
    assert outcome.steps == []


async def test_eight_calls_are_within_the_limit() -> None:
    assert STEP_LIMIT == 8
    outcome = await go(Script(*[call()] * 8, "Yes."), Tools(*["Rain likely."] * 8))
    assert (outcome.status, outcome.response) == ("completed", "Yes.")
    assert [step["index"] for step in outcome.steps] == list(range(8))


@pytest.mark.parametrize("ninth", ["search", "delete_all"])
async def test_a_ninth_call_fails_the_run_and_is_not_made(ninth: str) -> None:
    model, tools = Script(*[call()] * 8, call(ninth), "Never said."), Tools(*["Rain likely."] * 9)
    outcome = await go(model, tools)
    assert failure(outcome) == "step_limit_exceeded"
    assert [step["index"] for step in outcome.steps] == list(range(8))
    assert len(tools.calls) == 8
    assert len(model.asked) == 9


async def test_a_cancellation_that_leaks_from_an_adapter_or_a_tool_fails_the_run() -> None:
    assert failure(await go(Script(asyncio.CancelledError()))) == "model_error"
    assert failure(await go(Script(call()), Tools(asyncio.CancelledError()))) == "tool_error"


async def test_a_run_whose_caller_goes_stops_waiting_for_the_model() -> None:
    class Slow:
        async def answer(self, conversation: Conversation) -> str:
            await asyncio.sleep(60)
            raise AssertionError("It was waited for.")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await go(Slow())


async def test_usage_counts_what_the_model_read_and_what_it_wrote() -> None:
    outcome = await go(Script(call(text="one two"), call(text="three"), "four five six."), Tools("a b c d", "e!"))
    assert outcome.prompt_tokens == count_tokens(build_prompt(ANN, TASK)) + 4 + 2
    assert outcome.completion_tokens == 2 + 1 + 4


async def test_usage_of_a_failed_run_counts_what_happened_before() -> None:
    outcome = await go(Script(call(text="one two"), ValueError()), Tools("a b c d"))
    assert outcome.prompt_tokens == count_tokens(build_prompt(ANN, TASK)) + 4
    assert outcome.completion_tokens == 2
