"""What lives as long as the service: made in app.py, found on the application under STATE."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from service.addresses import Network
from service.auth import Authenticator
from service.execution.models import ModelRegistry
from service.execution.tools import ToolExecutor
from service.gate import Gate
from service.idempotency import Retries
from service.limiter import FixedWindow, RunLimiter
from service.metrics import Metrics


@dataclass(frozen=True, slots=True)
class State:
    """A handler asks for a part of it by naming an argument like the field."""

    authenticator: Authenticator
    limiter: RunLimiter
    # a window of this process, for addresses that try keys
    wrong_keys: FixedWindow
    # who is believed to know its client's address
    trusted_proxies: tuple[Network, ...]
    gate: Gate
    retries: Retries
    # how long a request's headers may take, and then its body, in seconds
    request_timeout: float
    models: ModelRegistry
    tool_executor: ToolExecutor
    metrics: Metrics
    # raises Unavailable where the storage does not answer or is not migrated
    check_storage: Callable[[], Awaitable[None]]


STATE: web.AppKey[State] = web.AppKey("STATE", State)
