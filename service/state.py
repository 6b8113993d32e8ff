"""What lives as long as the service: made in app.py, found on the application under STATE."""

from dataclasses import dataclass

from aiohttp import web

from service.auth import Authenticator
from service.execution.models import ModelRegistry
from service.execution.tools import ToolExecutor
from service.limiter import FixedWindow
from service.storage.scope import Unscoped


@dataclass(frozen=True, slots=True)
class State:
    """A handler asks for a part of it by naming an argument like the field."""

    authenticator: Authenticator
    limiter: FixedWindow
    models: ModelRegistry
    tool_executor: ToolExecutor
    unscoped: Unscoped
    migrations: frozenset[str]


STATE: web.AppKey[State] = web.AppKey("STATE", State)
