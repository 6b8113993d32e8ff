"""The models: the mock's rules, the registry, and how tokens are counted."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from service.execution.models import (
    Conversation,
    MockModel,
    ModelRegistry,
    ToolCall,
    ToolResult,
    count_tokens,
    default_registry,
)
from service.execution.prompt import Agent, Tool
from tests.support.contract import Contract

ROOT = Path(__file__).parents[2]


def agent(*tools: Tool) -> Agent:
    return Agent(1, "Ann", "assistant", "Helps.", tools)


def conversation(task: str, *tools: Tool) -> Conversation:
    return Conversation(agent(*tools), task, "gpt-4o", "the prompt")


def talk(task: str, tools: Iterable[Tool]) -> list[str | ToolCall]:
    """What the mock says until it has answered, each of its calls being served; at most 20 things."""

    async def until_answered() -> list[str | ToolCall]:
        said, asked = conversation(task, *tools), list[str | ToolCall]()
        while len(asked) < 20 and (not asked or isinstance(asked[-1], ToolCall)):
            asked.append(await MockModel().answer(said))
            if isinstance(asked[-1], ToolCall):
                said = replace(said, results=(*said.results, ToolResult(asked[-1], "done")))
        return asked

    return asyncio.run(until_answered())


def asked_for(task: str, *tools: Tool) -> list[str]:
    return [said.tool_name for said in talk(task, tools) if isinstance(said, ToolCall)]


def named(name: str) -> Tool:
    """A tool that only its name can lead to."""
    return Tool(1, name, "xyzzy plugh frobnicate")


def described(description: str) -> Tool:
    """A tool that only its description can lead to."""
    return Tool(1, "xyzzy", description)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("Run search.", "search"),
        ("Please use web_search for this.", "web_search"),
        ("Please use WEB_SEARCH for this.", "web_search"),
        ("Please use web_search for this.", "Web_Search"),
        ("Do a web search!", "web_search"),
        ("Do a web-search!", "web_search"),
        ("Do a web_search!", "Web-Search"),
        ("Do a web\nsearch!", "web search"),
        ("Do two web searches.", "web_search"),
        ("List my files.", "file"),
        ("Draw a city map.", "city_maps"),
        ("Compare the invoices.", "invoice"),
        ("Read the invoice.", "invoices"),
        ("Give me the translation.", "translate"),
        ("Die STRASSE suchen", "straße"),
        ("用 天气 吧", "天气"),
        ("(calculator)", "calculator"),
        ("gpt_4o_tool", "gpt-4o tool"),
    ],
)
def test_a_tool_that_the_task_names_is_asked_for(task: str, name: str) -> None:
    assert asked_for(task, named(name)) == [name]


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("Search the web.", "web_search"),
        ("Do a web lookup, then search.", "web_search"),
        ("Open the web.", "web_search"),
        ("Read the catalogue.", "cat"),
        ("Research this.", "search"),
        ("Say hello.", "search"),
        ("Is it !!! or ???", "!!!"),
        ("…", "search"),
    ],
)
def test_a_tool_that_the_task_does_not_name_is_not_asked_for(task: str, name: str) -> None:
    assert asked_for(task, named(name)) == []


@pytest.mark.parametrize(
    ("task", "description"),
    [
        ("What is the weather?", "Tells the weather."),
        ("Convert 5 dollars.", "Converts currencies."),
        ("Which city has the nicest beach?", "Finds a beach in a city or country."),
        ("CONVERTING CURRENCY", "converts currencies"),
        ("reports", "report"),
    ],
)
def test_a_tool_is_asked_for_when_the_task_holds_half_of_its_telling_words(task: str, description: str) -> None:
    assert asked_for(task, described(description)) == [described(description).name]


@pytest.mark.parametrize(
    ("task", "description"),
    [
        ("Which city has the nicest view?", "Finds a beach in a city or country."),
        ("Convert it.", "Converts amounts between currencies."),
        ("Convert, convert and convert it.", "Converts amounts between currencies."),
        ("Say hello.", "Converts currencies."),
    ],
)
def test_a_tool_is_not_asked_for_when_the_task_holds_fewer_of_its_telling_words(task: str, description: str) -> None:
    assert asked_for(task, described(description)) == []


@pytest.mark.parametrize(
    ("task", "description"),
    [
        ("Use the tool for that and this.", "The tool for that."),
        ("Do this.", "Reads this."),
        ("Decide whether to go.", "Guess whether."),
        ("Is it on?", "It is on."),
        ("Use what you have!", "!!!"),
    ],
)
def test_words_that_every_description_has_tell_nothing(task: str, description: str) -> None:
    assert asked_for(task, described(description)) == []


def test_a_task_that_needs_no_tool_is_answered_at_once_in_one_line() -> None:
    assert talk("Say hello.", [named("search")]) == ["Ann (assistant) on gpt-4o, with no tools: Say hello."]
    assert talk("Say hello.", []) == ["Ann (assistant) on gpt-4o, with no tools: Say hello."]


def test_each_tool_that_is_wanted_is_asked_for_once_in_the_order_of_the_agents_tools() -> None:
    alpha, beta, gamma, delta = (replace(named(name), id=at) for at, name in enumerate(["alpha", "beta", "gamma", "delta"]))
    task = "Use gamma, then beta, then gamma, then alpha again."
    assert talk(task, (alpha, beta, delta, gamma)) == [
        ToolCall("alpha", {"input": task}),
        ToolCall("beta", {"input": task}),
        ToolCall("gamma", {"input": task}),
        f"Ann (assistant) on gpt-4o, with alpha, beta, gamma: {task}",
    ]


def test_what_the_mock_repeats_of_a_task_is_cut_at_200_characters() -> None:
    task = "search " + "é" * 300
    assert talk(task, [named("search")]) == [
        ToolCall("search", {"input": task[:200]}),
        f"Ann (assistant) on gpt-4o, with search: {task[:200]}",
    ]


async def test_the_mock_keeps_nothing_between_conversations() -> None:
    mock = MockModel()
    asked = [await mock.answer(conversation("Search it.", named("search"))) for _ in range(3)]
    assert asked == [ToolCall("search", {"input": "Search it."})] * 3


def test_the_answer_tells_the_model_that_was_asked() -> None:
    other = replace(conversation("Hi."), model="another-1")
    assert asyncio.run(MockModel().answer(other)) == "Ann (assistant) on another-1, with no tools: Hi."


TOLD = """
import json
from tests.execution.test_models import CASES, talk
print(json.dumps([[str(said) for said in talk(task, tools)] for task, tools in CASES]))
"""
CASES = [
    (task, tools)
    for task in ("Search the weather in Oslo, Paris and Rome", "Convert currencies, dates and files", "Say hello")
    for tools in (
        (described("Finds the weather, the time and the news of cities in Oslo and Rome"),),
        (Tool(1, "convert", "Converts files, dates and currencies"), Tool(2, "search", "Searches the web")),
    )
]


@pytest.mark.parametrize("seed", ["0", "1", "4242"])
def test_the_mock_says_the_same_in_any_process(seed: str) -> None:
    other = subprocess.run(
        [sys.executable, "-c", TOLD],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(other.stdout) == [[str(said) for said in talk(task, tools)] for task, tools in CASES]


def test_the_registry_names_its_models_in_the_order_given_and_finds_each() -> None:
    first, second = MockModel(), MockModel()
    given = {"b-model": first, "a-model": second}
    registry = ModelRegistry(given)
    given.clear()
    assert registry.names == ("b-model", "a-model")
    assert registry.adapter("b-model") is first
    assert registry.adapter("a-model") is second


def test_the_registry_refuses_a_model_that_it_does_not_have() -> None:
    with pytest.raises(KeyError):
        default_registry().adapter("gpt-4O")


def test_the_shipped_registry_has_the_models_that_the_spec_names(contract: Contract) -> None:
    assert default_registry().names == tuple(contract.spec["components"]["schemas"]["SupportedModel"]["enum"])


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        (" \n\t\u2028", 0),
        ("hello", 1),
        ("Hello, world!", 4),
        ("web_search", 1),
        ("it's 3.5", 6),
        ("...", 3),
        ("日本語 Ω", 2),
        ("a  b\n\nc", 3),
    ],
)
def test_words_and_single_signs_count_as_tokens(text: str, tokens: int) -> None:
    assert count_tokens(text) == tokens
