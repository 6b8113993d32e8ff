"""The classic: FastAPI, SQLAlchemy sessions, synchronous handlers in the thread pool, `count(*)` with offset and limit.

`python -m tests.benchmarks.classic DATABASE PORT`. The access log is on, as uvicorn and our server ship it.
"""

import sys
import time
from collections.abc import Coroutine, Iterator
from typing import Annotated, Any, TypeVar

import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Query
from sqlalchemy import JSON, Column, ForeignKey, Table, create_engine, event, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from service.execution import loop
from service.execution import models as mock
from service.execution.prompt import Agent as AgentToRun
from service.execution.prompt import Tool as ToolToCall
from service.execution.tools import MockTools
from service.times import utc_now
from tests.benchmarks.models import AgentOut, RunOut, RunPage, RunRequest
from tests.benchmarks.shared import KEYS, PRAGMAS

T = TypeVar("T")


class Base(DeclarativeBase):
    pass


agent_tools = Table(
    "agent_tools",
    Base.metadata,
    Column("agent_id", ForeignKey("agents.id"), primary_key=True),
    Column("tool_id", ForeignKey("tools.id"), primary_key=True),
)


class Tool(Base):
    __tablename__ = "tools"

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    name: Mapped[str]
    description: Mapped[str]


class Agent(Base):
    __tablename__ = "agents"

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    name: Mapped[str]
    role: Mapped[str]
    description: Mapped[str]
    created_at: Mapped[str]
    updated_at: Mapped[str]
    tools: Mapped[list[Tool]] = relationship(secondary=agent_tools, order_by=Tool.id)

    @property
    def tool_ids(self) -> list[int]:
        return [tool.id for tool in self.tools]


class Run(Base):
    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    agent_id: Mapped[int]
    agent_name: Mapped[str]
    task: Mapped[str]
    model: Mapped[str]
    status: Mapped[str]
    prompt: Mapped[str]
    response: Mapped[str | None]
    error: Mapped[Any] = mapped_column(JSON(none_as_null=True))
    steps: Mapped[Any] = mapped_column(JSON)
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    created_at: Mapped[str]
    duration_ms: Mapped[int]

    @property
    def usage(self) -> dict[str, int]:
        prompt, completion = self.prompt_tokens, self.completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


# many sessions write at once: one that waits for the others' flushes waits longer than the five seconds of the default
engine = create_engine(f"sqlite:///{sys.argv[1]}", connect_args={"check_same_thread": False, "timeout": 60})
SessionLocal = sessionmaker(bind=engine)


@event.listens_for(engine, "connect")
def _prepare(connection: Any, _: Any) -> None:
    for pragma in PRAGMAS:
        connection.execute(pragma)


def _session() -> Iterator[Session]:
    session = SessionLocal()
    try:
        yield session
    finally:
        session.close()


def _tenant(x_api_key: Annotated[str, Header()]) -> str:
    if x_api_key not in KEYS:
        raise HTTPException(401, "Unknown key")
    return KEYS[x_api_key]


Tenant = Annotated[str, Depends(_tenant)]
Storage = Annotated[Session, Depends(_session)]
Limit = Annotated[int, Query(ge=1, le=100)]

app = FastAPI()


@app.get("/agents/{agent_id}", response_model=AgentOut)
def get_agent(agent_id: int, tenant: Tenant, session: Storage) -> Agent:
    return _agent(session, tenant, agent_id)


@app.get("/agents/{agent_id}/runs", response_model=RunPage)
def list_agent_runs(
    agent_id: int, tenant: Tenant, session: Storage, limit: Limit = 20, offset: Annotated[int, Query(ge=0)] = 0
) -> dict[str, Any]:
    _agent(session, tenant, agent_id)
    wanted = select(Run).where(Run.tenant_id == tenant, Run.agent_id == agent_id)
    total = session.scalar(select(func.count()).select_from(wanted.subquery())) or 0
    items = session.scalars(wanted.order_by(Run.id.desc()).offset(offset).limit(limit)).all()
    following = str(offset + limit) if offset + limit < total else None
    return {"items": items, "total": total, "limit": limit, "offset": offset, "next": following}


@app.post("/agents/{agent_id}/run", response_model=RunOut)
def run_agent(agent_id: int, body: RunRequest, tenant: Tenant, session: Storage) -> Run:
    agent = _agent(session, tenant, agent_id)
    tools = sorted((ToolToCall(tool.id, tool.name, tool.description) for tool in agent.tools), key=lambda tool: tool.name)
    to_run = AgentToRun(agent.id, agent.name, agent.role, agent.description, tuple(tools))
    created_at, began = utc_now(), time.monotonic()
    outcome = _finished(loop.run(to_run, body.task, body.model, mock.MockModel(), MockTools()))
    run = Run(
        tenant_id=tenant,
        agent_id=agent.id,
        agent_name=agent.name,
        task=body.task,
        model=body.model,
        status=outcome.status,
        prompt=outcome.prompt,
        response=outcome.response,
        error=outcome.error,
        steps=outcome.steps,
        prompt_tokens=outcome.prompt_tokens,
        completion_tokens=outcome.completion_tokens,
        created_at=created_at,
        duration_ms=round((time.monotonic() - began) * 1000),
    )
    session.add(run)
    session.commit()
    session.refresh(run)
    return run


def _agent(session: Session, tenant: str, agent_id: int) -> Agent:
    agent = session.scalars(select(Agent).where(Agent.tenant_id == tenant, Agent.id == agent_id)).first()
    if agent is None:
        raise HTTPException(404, "Not found")
    return agent


def _finished(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits, as the mock's: cheaper than an event loop for each run."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise RuntimeError("The mock waited for something.")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]))
