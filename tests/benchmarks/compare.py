"""Two servers side by side: what they are asked, whether they answer alike, and how their rates compare."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tests.benchmarks.load import TASK, Load, Traffic
from tests.benchmarks.report import Figure
from tests.benchmarks.servers import OURS, Server

AGENT = Traffic("get", "/agents/{agent_id}")
RUNS = Traffic("get", "/agents/{agent_id}/runs?limit=10")
RUN = Traffic("run")
WHOAMI = Traffic("get", "/whoami")
ROUTES = (("GET /agents/{id}", AGENT), ("GET /agents/{id}/runs?limit=10", RUNS), ("POST …/run", RUN))


def against(name: str, loads: Mapping[str, list[Load]], other: str, least: float | None, one: str = OURS) -> Figure:
    """The median of the rounds' ratios; a round's two runs lie beside each other, so noise hurts both."""
    pairs = [(ours.rate, theirs.rate) for ours, theirs in zip(loads[one], loads[other], strict=True)]
    ours, theirs = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    ratio = statistics.median(mine / their for mine, their in pairs)
    return Figure(name, ratio, least, detail=f"{ours:,.0f}/s, {theirs:,.0f}/s")


def check_bodies(servers: Sequence[Server]) -> None:
    """All answer with the same bodies, but for what must differ. Raises RuntimeError."""
    for method, path, body in (("GET", "", None), ("GET", "/runs?limit=10", None), ("POST", "/run", TASK)):
        answers = [_comparable(server.call(method, f"/agents/1{path}", body)) for server in servers]
        for server, answer in zip(servers, answers, strict=True):
            if answer != answers[0]:
                raise RuntimeError(f"{server.name} answers {method} /agents/1{path} with {answer}, not {answers[0]}.")


def _comparable(body: Any) -> Any:
    differing = {"created_at", "duration_ms", "next"}
    return {name: type(value).__name__ if name in differing else value for name, value in body.items()}
