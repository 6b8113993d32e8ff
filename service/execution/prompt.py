"""The final prompt: system instructions, tool descriptions and user input, three parts that cannot be confused.

Each part opens with a line that ends in a mark, as the parts of a MIME message do (RFC 2046 section 5.1.1). The mark is
made from all the texts and stands in none of them, so no text of the user's can open or close a part, and none has to be
changed to prevent it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as a run sees it."""

    id: int
    name: str
    description: str


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent as a run sees it; `tools` in the order of their names."""

    id: int
    name: str
    role: str
    description: str
    tools: tuple[Tool, ...] = ()


def build_prompt(agent: Agent, task: str) -> str:
    """The prompt for `agent` on `task`: the same text for the same input, on any machine.

    The task stands in it as it is. In a line of the form `label: text` the text begins with no space and its further lines
    are indented, so that no text can pass for another line.
    """
    tools = [f"{tool.name}: {tool.description}" for tool in agent.tools] or ["(none)"]
    mark = _mark([agent.name, agent.role, agent.description, *tools, task])
    return "\n".join(
        [
            f"=== system instructions {mark} ===",
            f"Name: {_indented(agent.name)}",
            f"Role: {_indented(agent.role)}",
            f"Description: {_indented(agent.description)}",
            f"=== tool descriptions {mark} ===",
            *map(_indented, tools),
            f"=== user input {mark} ===",
            task,
            f"=== end {mark} ===",
        ]
    )


def _mark(texts: Sequence[str]) -> str:
    """Sixteen hexadecimal digits that depend on every text and occur in none."""
    digest = sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    mark = digest.hexdigest()[:16]
    while any(mark in text for text in texts):
        digest.update(b"again")
        mark = digest.hexdigest()[:16]
    return mark


def _indented(text: str) -> str:
    return "\n  ".join(text.strip().splitlines())
