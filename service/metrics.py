"""What this process tells Prometheus about itself, at /metrics."""

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from service.problems import answering, nothing_yet, safe_headers


class Metrics:
    """The metrics of one application. No label names a tenant or a key."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.limiter_unreachable = Gauge(
            "agent_platform_limiter_unreachable",
            "1 while the shared limiter does not answer this process, else 0.",
            registry=self.registry,
        )
        self.limiter_fallback_runs = Counter(
            "agent_platform_limiter_fallback_runs",
            "Runs that this process admitted by a count of its own while the shared limiter did not answer.",
            registry=self.registry,
        )

    def add_page(self, app: web.Application) -> None:
        """Adds /metrics to `app`; it asks for no key."""

        async def serve(request: web.Request) -> web.StreamResponse:
            headers = safe_headers({"Content-Type": CONTENT_TYPE_LATEST})
            return web.Response(body=generate_latest(self.registry), headers=headers)

        app.router.add_get("/metrics", answering(serve), expect_handler=nothing_yet)
