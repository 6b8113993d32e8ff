"""Several processes on one port: gunicorn starts them, starts again what dies, and drains and reloads them."""

import logging
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from aiohttp import web
from aiohttp.worker import GunicornUVLoopWebWorker
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from service.app import make_app
from service.config import Config
from service.errors import Unavailable
from service.logs import AccessLog
from service.problems import ACCESS_LOG
from service.server import FINISH, GRACE, Runner, allow_many_connections, announcement
from service.storage.migrations import MigrationError

# a worker that says nothing for so long hangs, and is killed and replaced; in seconds
_HANGS = 30
# one that is told to stop does so by itself, within FINISH and twice GRACE, and closes what it has; after this it is killed
_ENDS = int(FINISH + 2 * GRACE) + 6
# between two attempts to begin, in seconds
_PAUSE = 0.5

_log = logging.getLogger(__name__)


class WorkerRunner(Runner):
    """The runner of one of several processes: what it can't take any more, the others do."""

    async def cleanup(self) -> None:
        if self.sites:
            await self.hand_over(FINISH)
        await super().cleanup()
        if (log := self.app.get(ACCESS_LOG)) is not None:
            log.flush()


class Worker(GunicornUVLoopWebWorker):
    """aiohttp's worker, but it stops at once, and bears a database that is away as it begins."""

    def run(self) -> None:
        try:
            super().run()
        except (MigrationError, Unavailable) as error:
            # gunicorn would take it for a defect and end the whole service; the next worker tries again
            _log.warning("A worker can't begin: %s", error)
            time.sleep(_PAUSE)
            sys.exit(1)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        # it looks once a second, and would take connections until then
        self._notify_waiter_done()


class Workers(BaseApplication):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn with our settings instead of a file and a command line of its own."""

    def __init__(self, config: Config, listening: socket.socket, announce: Callable[[str], None]) -> None:
        self._config = config
        # the socket is gunicorn's from now on
        self._descriptor = listening.detach()
        self._announce = announce
        super().__init__()

    def load_config(self) -> None:
        settings = {
            "bind": f"fd://{self._descriptor}",
            "workers": self._config.workers,
            "worker_class": f"{__name__}.{Worker.__name__}",
            "graceful_timeout": _ENDS,
            "timeout": _HANGS,
            "loglevel": "warning",
            "when_ready": self._say_where,
        }
        if "control_socket_disable" in self.cfg.settings:
            # else there is another way in, a file in the user's home that two services would fight for
            settings["control_socket_disable"] = True
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """What each worker makes its runner with, after the fork."""

        async def runner() -> web.AppRunner:
            app = make_app(self._config)
            if self._config.log_level in ("debug", "info"):
                app[ACCESS_LOG] = AccessLog(sys.stderr)
            return WorkerRunner(app, access_log=None, shutdown_timeout=GRACE)

        return runner

    def _say_where(self, arbiter: Arbiter) -> None:
        for line in announcement(self._config, arbiter.LISTENERS[0].sock.getsockname()[1]):
            self._announce(line)


def serve(config: Config, announce: Callable[[str], None]) -> None:
    """Serves with `config.workers` processes until SIGTERM or SIGINT; SIGHUP replaces them one and all.

    The database is migrated already. `announce` gets the lines that say where.
    Raises OSError where the address can't be had.
    """
    allow_many_connections()
    # gunicorn would try for five seconds, and say so in eleven lines
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listening = socket.create_server((config.host, config.port), family=family)
    Workers(config, listening, announce).run()
