"""What a run must be, from the README's account of the mock and the spec's example of a prompt; it runs none of our code."""

import re
from collections.abc import Sequence
from typing import Any

JSON = dict[str, Any]

MOST_STEPS = 8
_TOKEN = re.compile(r"\w+|[^\w\s]")


def check_run(run: JSON, agent: JSON, tools: Sequence[JSON], task: str, named: Sequence[str]) -> None:
    """Fails where `run` is not what `agent` with `tools` makes of `task`, which names the tools called `named`.

    The texts of tenants_texts.py are such that a task names a tool by its whole name, case aside, or not at all, and none
    has a line break. The id and the times are the caller's to check.
    """
    ordered = sorted(tools, key=lambda tool: tool["name"])
    folded = {name.casefold() for name in named}
    wanted = [tool for tool in ordered if tool["name"].casefold() in folded]
    given = task[:200]
    steps = [
        {
            "index": index,
            "type": "tool_call",
            "tool_id": tool["id"],
            "tool_name": tool["name"],
            "arguments": {"input": given},
            "result": f'{tool["name"]}: done with "{given}"',
        }
        for index, tool in enumerate(wanted[:MOST_STEPS])
    ]
    failed = len(wanted) > MOST_STEPS
    used = ", ".join(tool["name"] for tool in wanted) or "no tools"
    response = None if failed else f"{agent['name']} ({agent['role']}) on gpt-4o, with {used}: {given}"
    prompt = _prompt(run["prompt"], agent, ordered, task)
    read = [prompt, *(step["result"] for step in steps)]
    written = [*(step["arguments"]["input"] for step in steps), response or ""]
    prompt_tokens, completion_tokens = _tokens(read), _tokens(written)
    error = {"code": "step_limit_exceeded", "message": "The model asked for more than 8 tool calls."}
    expected = {
        "id": run["id"],
        "agent_id": agent["id"],
        "agent_name": agent["name"],
        "task": task,
        "model": "gpt-4o",
        "status": "failed" if failed else "completed",
        "prompt": prompt,
        "response": response,
        "error": error if failed else None,
        "steps": steps,
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
        "created_at": run["created_at"],
        "duration_ms": run["duration_ms"],
    }
    assert run == expected, f"the run is {run}, not {expected}"


def _prompt(said: str, agent: JSON, tools: Sequence[JSON], task: str) -> str:
    """The prompt with the mark that the service made up for it, which must stand in none of the texts."""
    found = re.match(r"=== system instructions ([0-9a-f]{16}) ===\n", said)
    assert found, f"a prompt begins with {said[:60]!r}"
    mark = found[1]
    texts = [agent["name"], agent["role"], agent["description"], task]
    lines = [f"{tool['name']}: {tool['description']}" for tool in tools] or ["(none)"]
    assert not any(mark in text for text in [*texts, *lines])
    return "\n".join(
        [
            f"=== system instructions {mark} ===",
            f"Name: {agent['name']}",
            f"Role: {agent['role']}",
            f"Description: {agent['description']}",
            f"=== tool descriptions {mark} ===",
            *lines,
            f"=== user input {mark} ===",
            task,
            f"=== end {mark} ===",
        ]
    )


def _tokens(texts: Sequence[str]) -> int:
    return sum(len(_TOKEN.findall(text)) for text in texts)
