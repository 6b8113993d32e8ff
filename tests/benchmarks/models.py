"""The pydantic models of the two FastAPI servers."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Model(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class RunRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    task: Annotated[str, Field(min_length=1, max_length=20_000)]
    model: Literal["gpt-4o"]


class ToolName(_Model):
    id: int
    name: str


class AgentOut(_Model):
    id: int
    name: str
    role: str
    description: str
    tool_ids: list[int]
    tools: list[ToolName]
    created_at: str
    updated_at: str


class RunError(_Model):
    code: str
    message: str


class Step(_Model):
    index: int
    type: str
    tool_id: int
    tool_name: str
    arguments: dict[str, str]
    result: str


class Usage(_Model):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class RunOut(_Model):
    id: int
    agent_id: int
    agent_name: str
    task: str
    model: str
    status: str
    prompt: str
    response: str | None
    error: RunError | None
    steps: list[Step]
    usage: Usage
    created_at: str
    duration_ms: int


class RunPage(_Model):
    items: list[RunOut]
    total: int
    limit: int
    offset: int
    next: str | None
