"""Executing tools. A deterministic mock: what it answers follows from the tool and the arguments alone."""

from collections.abc import Mapping
from typing import Protocol

from service.execution.prompt import Tool


class ToolExecutor(Protocol):
    """Calls a tool and answers with its result; whatever it raises fails the run."""

    async def execute(self, tool: Tool, arguments: Mapping[str, str]) -> str: ...


class MockTools:
    """Every tool answers with its name and what it was given."""

    async def execute(self, tool: Tool, arguments: Mapping[str, str]) -> str:
        return f'{tool.name}: done with "{arguments["input"]}"'
