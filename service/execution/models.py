"""Model adapters and their registry. The default one is a deterministic mock, worth using as a test double."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from service.execution.prompt import Agent, Tool


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model's request to call a tool by name; `arguments` is `{"input": text}`, for tools say nothing of others."""

    tool_name: str
    arguments: dict[str, str]


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool answered to a call."""

    call: ToolCall
    result: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages so far: the prompt that opened them, and each tool call with its result."""

    agent: Agent
    task: str
    model: str
    prompt: str
    results: tuple[ToolResult, ...] = ()


class ModelAdapter(Protocol):
    """Answers a conversation with a final text or a request to call a tool; whatever it raises fails the run."""

    async def answer(self, conversation: Conversation) -> str | ToolCall: ...


class ModelRegistry:
    """The supported models by name, in the order in which they were given."""

    def __init__(self, adapters: Mapping[str, ModelAdapter]) -> None:
        self._adapters = dict(adapters)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._adapters)

    def adapter(self, name: str) -> ModelAdapter:
        """Raises KeyError for an unsupported model; the spec's enum lets none through."""
        return self._adapters[name]


class MockModel:
    """Same agent, tools, task and model, same answer, on any machine, in any process.

    It asks once, in the order of their names, for each assigned tool that the task names or whose work it speaks of
    (`wanted_tools`), with the task as input, cut at 200 characters; then it says who answered, with which model
    and tools, and what the task was.
    """

    async def answer(self, conversation: Conversation) -> str | ToolCall:
        agent, called = conversation.agent, len(conversation.results)
        wanted = wanted_tools(conversation.task, agent.tools)
        if called < len(wanted):
            return ToolCall(wanted[called], {"input": conversation.task[:200]})
        used = ", ".join(wanted) or "no tools"
        return f"{agent.name} ({agent.role}) on {conversation.model}, with {used}: {conversation.task[:200]}"


def default_registry() -> ModelRegistry:
    """The models that the shipped openapi.yaml names."""
    return ModelRegistry({"gpt-4o": MockModel()})


@lru_cache(maxsize=64)
def wanted_tools(task: str, tools: tuple[Tool, ...]) -> tuple[str, ...]:
    """The names of those of `tools`, in their order, that the task names or of whose work it speaks.

    It names a tool by the words of its name, one after the other; it speaks of its work with at least half of the telling
    words of its description. Kept for the next step of the same run, which asks again.
    """
    words = list(_words(task))
    said, vocabulary = f" {' '.join(words)} ", set(words)

    def wants(tool: Tool) -> bool:
        name = " ".join(_words(tool.name))
        if name and f" {name} " in said:
            return True
        work = {word for word in _words(tool.description) if len(word) >= _SHORTEST_TELLING and word not in _FILLERS}
        return bool(work) and 2 * len(work & vocabulary) >= len(work)

    return tuple(tool.name for tool in tools if wants(tool))


_WORD = re.compile(r"[^\W_]+")
_SHORTEST_TELLING = 3


def _words(text: str) -> Iterator[str]:
    """Words in lower case, without a final s, cut at six letters, so that forms of one word are mostly equal."""
    for word in _WORD.findall(text.casefold()):
        yield (word.removesuffix("s") if len(word) > _SHORTEST_TELLING else word)[:6]


_FILLERS = frozenset(
    _words(
        "the and for with from into onto that this these those its their your our you any all are can has have use used "
        "using useful tool when where which who what whether not but per via other some such also may new get one"
    )
)


def count_tokens(text: str) -> int:
    """How many tokens a text counts: words, and signs one by one. A stand-in for a model's own tokenizer."""
    return len(_TOKEN.findall(text))


_TOKEN = re.compile(r"\w+|[^\w\s]")
