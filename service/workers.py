"""Several processes on one port: gunicorn starts them, starts again what dies, and drains and reloads them."""

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any, cast

from aiohttp import web
from aiohttp.worker import GunicornUVLoopWebWorker
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger

from service.app import make_app
from service.config import Config
from service.errors import Unavailable
from service.logs import AccessLog, writes_json
from service.problems import ACCESS_LOG
from service.server import FINISH, GRACE, Runner, allow_many_connections, announcement
from service.storage.migrations import MigrationError

# a worker that says nothing for so long hangs, and is killed and replaced; in seconds
_HANGS = 30
# one that is told to stop does so by itself, within FINISH and twice GRACE, and closes what it has; after this it is killed
_ENDS = int(FINISH + 2 * GRACE) + 6
# between two attempts to begin, in seconds
_PAUSE = 0.5
# what tells a process to stop
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

_log = logging.getLogger(__name__)


class InTurns(web.BaseSite):
    """Takes connections of a socket that several processes share, one each turn of the loop.

    A loop that takes all that wait leaves nothing to the other processes, for as long as those connections last.
    """

    def __init__(self, runner: web.AppRunner, listening: socket.socket) -> None:
        super().__init__(runner)
        self._socket = listening
        self._arriving: set[asyncio.Task[Any]] = set()
        self._resumes: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        return f"http://{self._socket.getsockname()}"

    async def start(self) -> None:
        await super().start()
        self._socket.setblocking(False)
        self._listen()

    async def stop(self) -> None:
        """Takes those that wait already, and then is no longer one of those who listen: without them, nobody is let in."""
        await super().stop()
        asyncio.get_running_loop().remove_reader(self._socket)
        while self._take_one():
            pass
        if self._resumes is not None:
            self._resumes.cancel()
        # the first process closes its own before it tells the others to stop, and never where it only replaces them
        self._socket.close()
        if self._arriving:
            await asyncio.wait(self._arriving)

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._socket, self._take_one)

    def _take_one(self) -> bool:
        """Was there a connection to take?"""
        loop = asyncio.get_running_loop()
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            # another process was faster, or the client is gone
            return False
        except OSError:
            # there is no room for one more file, and the socket would tell of the connection again and again
            loop.remove_reader(self._socket)
            self._resumes = loop.call_later(_PAUSE, self._listen)
            return False
        connection.setblocking(False)
        arriving = loop.create_task(loop.connect_accepted_socket(cast("web.Server", self._runner.server), connection))
        self._arriving.add(arriving)
        arriving.add_done_callback(self._arriving.discard)
        return True


class WorkerRunner(Runner):
    """The runner of one of several processes: what it can't take any more, the others do."""

    def __init__(self, app: web.Application, listening: Sequence[socket.socket]) -> None:
        super().__init__(app, access_log=None, shutdown_timeout=GRACE)
        self._listening = listening

    async def setup(self) -> None:
        await super().setup()
        for each in self._listening:
            await InTurns(self, each).start()

    async def cleanup(self) -> None:
        if self.sites:
            await self.hand_over(FINISH)
        await super().cleanup()
        if (log := self.app.get(ACCESS_LOG)) is not None:
            log.flush()


class Worker(GunicornUVLoopWebWorker):
    """aiohttp's worker, but it takes turns, stops at once, and bears a database that is away as it begins."""

    # gunicorn ships no types
    wsgi: Any
    sockets: list[Any]

    def run(self) -> None:
        self.wsgi = partial(self.wsgi, [each.sock for each in self.sockets])
        # else aiohttp's worker would make sites of its own
        self.sockets = []
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


class Master(Arbiter):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's arbiter, but what it tells a worker that was only just born is not lost."""

    def spawn_worker(self) -> Any:
        # until a worker handles signals itself, it has the handlers of this process, which would put them where nobody looks
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        try:
            return super().spawn_worker()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Log(Logger):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's log, which goes where all others go instead of having a format and a stream of its own."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        for handler in list(self.error_log.handlers):
            self.error_log.removeHandler(handler)
        self.error_log.propagate = True


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
            "logger_class": Log,
            "when_ready": self._say_where,
        }
        if "control_socket_disable" in self.cfg.settings:
            # else there is another way in, a file in the user's home that two services would fight for
            settings["control_socket_disable"] = True
        for name, value in settings.items():
            self.cfg.set(name, value)

    def run(self) -> None:
        Master(self).run()

    def load(self) -> Any:
        """What each worker makes its runner with, after the fork."""

        async def runner(listening: Sequence[socket.socket]) -> web.AppRunner:
            # the loop that runs listens to them now; uvloop forgets what comes before that
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
            app = make_app(self._config)
            if self._config.log_level in ("debug", "info"):
                app[ACCESS_LOG] = AccessLog(sys.stderr, as_json=writes_json(self._config.log_format, sys.stderr))
            return WorkerRunner(app, listening)

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
