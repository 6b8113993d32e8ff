"""The loop of an agent run: ask the model, call the tool it asks for, add the result, ask again."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from service.execution.models import Conversation, ModelAdapter, ToolCall, ToolResult, count_tokens
from service.execution.prompt import Agent, build_prompt
from service.execution.tools import ToolExecutor

STEP_LIMIT = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run went. `response` is None where it failed, `error` (code, message) where it did not."""

    prompt: str
    response: str | None
    error: Mapping[str, str] | None
    steps: list[dict[str, Any]] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def status(self) -> str:
        return "completed" if self.error is None else "failed"


class _Failed(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


async def run(agent: Agent, task: str, model: str, adapter: ModelAdapter, tools: ToolExecutor) -> Outcome:
    """Runs `agent` on `task` and says how it went; it raises for nothing that the adapter or a tool does.

    A failed run has one of the error codes step_limit_exceeded, unknown_tool, model_error and tool_error.
    """
    conversation = Conversation(agent, task, model, build_prompt(agent, task))
    steps: list[dict[str, Any]] = []
    response, error = None, None
    try:
        while response is None:
            answer = await _ask(adapter, conversation)
            if isinstance(answer, ToolCall):
                result = await _call(agent, answer, tools, steps)
                conversation = replace(conversation, results=(*conversation.results, ToolResult(answer, result)))
            else:
                response = answer
    except _Failed as failed:
        error = {"code": failed.code, "message": failed.message}
    results = [step["result"] for step in steps]
    written = [text for step in steps for text in step["arguments"].values()] + [response or ""]
    return Outcome(
        prompt=conversation.prompt,
        response=response,
        error=error,
        steps=steps,
        prompt_tokens=sum(map(count_tokens, [conversation.prompt, *results])),
        completion_tokens=sum(map(count_tokens, written)),
    )


async def _ask(adapter: ModelAdapter, conversation: Conversation) -> str | ToolCall:
    try:
        return _checked(await adapter.answer(conversation))
    except (Exception, asyncio.CancelledError) as error:
        _reraise_if_cancelled(error)
        # what the adapter says may hold the prompt or a secret: its kind goes to the log, nothing of it to the client
        _log.warning("The adapter of the model %s raised %s.", conversation.model, type(error).__name__)
        raise _Failed("model_error", "The model failed to answer.") from error


def _reraise_if_cancelled(error: BaseException) -> None:
    """Lets the end of the request itself through: other people's code may leak a cancellation of its own."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error


def _checked(answer: Any) -> str | ToolCall:
    """The answer, where it is one: adapters are other people's code. Raises TypeError or ValueError."""
    if not isinstance(answer, ToolCall):
        return _text(answer)
    _text(answer.tool_name)
    if answer.arguments.keys() != {"input"}:
        raise ValueError("a tool takes one argument, the input")
    _text(answer.arguments["input"])
    return answer


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"not a text but {type(value).__name__}")
    value.encode()  # half of a surrogate pair can be neither stored nor sent
    return value


async def _call(agent: Agent, call: ToolCall, tools: ToolExecutor, steps: list[dict[str, Any]]) -> str:
    """Executes one requested call and notes it in `steps`."""
    if len(steps) >= STEP_LIMIT:
        raise _Failed("step_limit_exceeded", f"The model asked for more than {STEP_LIMIT} tool calls.")
    tool = next((tool for tool in agent.tools if tool.name == call.tool_name), None)
    if tool is None:
        raise _Failed("unknown_tool", "The model asked for a tool that the agent does not have.")
    try:
        result = _text(await tools.execute(tool, call.arguments))
    except (Exception, asyncio.CancelledError) as error:
        _reraise_if_cancelled(error)
        _log.warning("A tool raised %s.", type(error).__name__)
        raise _Failed("tool_error", f"The tool {tool.name} failed.") from error
    steps.append(
        {
            "index": len(steps),
            "type": "tool_call",
            "tool_id": tool.id,
            "tool_name": tool.name,
            "arguments": call.arguments,
            "result": result,
        }
    )
    return result
