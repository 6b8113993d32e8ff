"""What this process tells Prometheus about itself. No label names a tenant or a key, or holds what a client made up."""

import platform
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from service import __version__

# what a label holds instead of a path that is not ours, and of a method that is none
OTHER = "other"
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"))

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_UNITS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# how a tool call can end that fails its run, by the code of the run's error
_FAILED_CALLS = {"tool_error": "failed", "unknown_tool": "unknown_tool", "step_limit_exceeded": "over_the_step_limit"}

# else each counter has a second series, with the time at which it began
disable_created_metrics()  # type: ignore[no-untyped-call]  # the package does not say


@dataclass(slots=True)
class _Kind:
    """What is known of the requests of one route, method and status; `buckets` are not cumulative, the last one is +Inf."""

    requests: int = 0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(_SECONDS) + 1))


class Requests(Collector):
    """Counts requests, and how long they take: in plain numbers, that become series when they are asked for.

    Each request is counted here, and the library's own counters would cost several times as much.
    """

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str, int], _Kind] = {}

    def note(self, route: str, method: str, status: int, seconds: float) -> None:
        """Counts a request of a route of ours, or OTHER; `method` is one of METHODS, or OTHER."""
        kind = self._kinds.get((route, method, status))
        if kind is None:
            kind = self._kinds[route, method, status] = _Kind()
        kind.requests += 1
        kind.seconds += seconds
        kind.buckets[bisect_left(_SECONDS, seconds)] += 1

    def note_unread(self, status: int) -> None:
        """Counts a request that found no route at all, or was no HTTP: how long it took says nothing."""
        self._kinds.setdefault((OTHER, OTHER, status), _Kind()).requests += 1

    def collect(self) -> Iterator[Metric]:
        count = CounterMetricFamily(
            "agent_platform_requests",
            "Requests that were answered, by the route's template, method and status.",
            labels=("route", "method", "status"),
        )
        durations = HistogramMetricFamily(
            "agent_platform_request_duration_seconds",
            "Seconds from a request's head to its answer, still unsent, by the route's template and method.",
            labels=("route", "method"),
        )
        together: dict[tuple[str, str], _Kind] = {}
        for (route, method, status), kind in self._kinds.items():
            count.add_metric((route, method, str(status)), kind.requests)
            total = together.setdefault((route, method), _Kind())
            total.seconds += kind.seconds
            total.buckets = [one + other for one, other in zip(total.buckets, kind.buckets, strict=True)]
        bounds = [*map(floatToGoString, _SECONDS), "+Inf"]
        for labels, total in together.items():
            durations.add_metric(labels, list(zip(bounds, accumulate(total.buckets), strict=True)), total.seconds)
        yield count
        yield durations


class Metrics:
    """The metrics of one application; what can be told before anything has happened is there from the start, at 0.

    `engine` is the storage's name, `models` and `rules` are the labels that runs and the guardrail can have.
    """

    def __init__(self, engine: str, models: Iterable[str], rules: Iterable[str]) -> None:
        self.registry = registry = CollectorRegistry()
        # memory, processor time and open files, under the names that every program uses
        ProcessCollector(registry=registry)
        build = Gauge(
            "agent_platform_build_info",
            "1, with what runs: the service's version, Python's, and the engine that keeps the data.",
            ("version", "python", "engine"),
            registry=registry,
        )
        build.labels(__version__, platform.python_version(), engine).set(1)
        self.requests = Requests()
        registry.register(self.requests)
        connections = Gauge("agent_platform_open_connections", "Connections that are open.", registry=registry)
        self._connections: list[Callable[[], int]] = []
        connections.set_function(lambda: sum(count() for count in self._connections))
        self._runs = Counter(
            "agent_platform_runs",
            "Runs that were stored, by model and by how they ended.",
            ("model", "status"),
            registry=registry,
        )
        self._tool_calls = Counter(
            "agent_platform_tool_calls",
            "Tool calls that models asked for, by how they ended.",
            ("outcome",),
            registry=registry,
        )
        self._guardrail_stops = Counter(
            "agent_platform_guardrail_stops", "Tasks that the guardrail stopped, by its rule.", ("rule",), registry=registry
        )
        for model in models:
            for status in ("completed", "failed"):
                self._runs.labels(model, status)
        for outcome in ("completed", *_FAILED_CALLS.values()):
            self._tool_calls.labels(outcome)
        for rule in rules:
            self._guardrail_stops.labels(rule)
        self.limiter_admissions = Counter(
            "agent_platform_limiter_admissions",
            "Runs that the limiter admitted, those included that came to nothing and were taken back.",
            registry=registry,
        )
        self.limiter_refusals = Counter(
            "agent_platform_limiter_refusals",
            "Runs refused with 429: their tenant is over its limit.",
            registry=registry,
        )
        self.limiter_unreachable = Gauge(
            "agent_platform_limiter_unreachable",
            "1 while the shared limiter does not answer this process, else 0.",
            registry=registry,
        )
        self.limiter_fallback_runs = Counter(
            "agent_platform_limiter_fallback_runs",
            "Runs that this process admitted by a count of its own while the shared limiter did not answer.",
            registry=registry,
        )
        self.writer_queue = Gauge(
            "agent_platform_writer_queue_depth", "Units of work that wait for a connection that writes.", registry=registry
        )
        self.writer_batches = Histogram(
            "agent_platform_writer_batch_size",
            "Units of work that one transaction took together.",
            registry=registry,
            buckets=_UNITS,
        )

    def count_connections(self, count: Callable[[], int]) -> None:
        """Adds what `count` says to the open connections, from now on."""
        self._connections.append(count)

    def note_tool_calls(self, completed: int, error: str | None) -> None:
        """Counts the tool calls of one run, whose error has the code `error`."""
        self._tool_calls.labels("completed").inc(completed)
        if error in _FAILED_CALLS:
            self._tool_calls.labels(_FAILED_CALLS[error]).inc()

    def note_run(self, model: str, status: str) -> None:
        """Counts a run that is stored."""
        self._runs.labels(model, status).inc()

    def note_guardrail_stop(self, rule: str) -> None:
        """Counts a task that was stopped."""
        self._guardrail_stops.labels(rule).inc()
