"""The real service in a thread of its own, for clients that block."""

import asyncio
import threading
from types import TracebackType
from typing import Self

import uvloop
from aiohttp import web

from service.app import make_app
from service.config import Config
from service.server import Runner

_PATIENCE = 20.0


class Served:
    """A context in which the service answers at `url`, run as `serve` runs it, on 127.0.0.1 and any free port.

    Being in the same process, it can be broken on purpose before it starts. Raises what starting it raises.
    """

    def __init__(self, config: Config) -> None:
        self.url = ""
        self._config = config
        self._loop = uvloop.new_event_loop()
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="service", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(_PATIENCE), "The service has not started."
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_PATIENCE)
        assert not self._thread.is_alive(), "The service has not stopped."
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as failure:
            self._failure = failure
            self._started.set()

    async def _serve(self) -> None:
        runner = Runner(make_app(self._config), access_log=None)
        try:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._started.set()
            await self._stop.wait()
        finally:
            await runner.cleanup()
