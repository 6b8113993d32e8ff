"""Processes that can be killed at any moment: servers, and `migrate`."""

import asyncio
import os
import re
import signal
import sys
import time
from contextlib import suppress
from types import TracebackType

from aiohttp import ClientError, ClientSession

from tests.attacks.databases_base import Store
from tests.support.process import ROOT, clean_environment

# what is awaited of a process, in seconds, before it counts as hanging
_PATIENCE = 20.0

SERVE = ("-m", "service", "serve", "--port", "0", "--rate-limit", "1000000", "--log-level", "info", "--database")
MIGRATE = ("-m", "service", "migrate", "--database")
HELD = ("-m", "tests.attacks.held_server")


class Victim:
    """A process of ours on a database. Made by `start`; to be left as a context manager, which ends it."""

    def __init__(self, process: asyncio.subprocess.Process, began: float, store: Store) -> None:
        self.process = process
        # unlike Process.kill, which may take the exit code from those who wait for it, and unlike a number, which may be
        # another process by now
        self._descriptor: int | None = os.pidfd_open(process.pid)
        self.began = began
        self.store = store
        self.origin = ""

    @classmethod
    async def start(cls, command: tuple[str, ...], store: Store) -> "Victim":
        """Starts `command` on a database; its errors go to the log beside it."""
        began = time.monotonic()
        with store.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *command,
                str(store.database),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=clean_environment(HOLD=str(store.hold)),
                cwd=ROOT,
            )
        return cls(process, began, store)

    async def __aenter__(self) -> "Victim":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()

    async def ready(self, session: ClientSession) -> float:
        """Waits for the first 200 of /ready; the milliseconds since the process was spawned.

        Raises AssertionError where the process ends, or does not answer in twenty seconds.
        """
        try:
            async with asyncio.timeout(_PATIENCE):
                assert self.process.stdout is not None
                while not self.origin:
                    line = (await self.process.stdout.readline()).decode()
                    assert line, f"the process ended before it listened: {self._log()}"
                    if found := re.search(r"listens on (http://\S+)", line):
                        self.origin = found[1]
                while True:
                    try:
                        async with session.get(f"{self.origin}/ready") as response:
                            if response.status == 200:
                                return (time.monotonic() - self.began) * 1000
                    except ClientError:
                        assert self.process.returncode is None, f"the process ended: {self._log()}"
                    await asyncio.sleep(0.002)
        except TimeoutError:
            raise AssertionError(f"/ready was not 200 within {_PATIENCE} s: {self._log()}") from None

    async def kill(self) -> bool:
        """Ends the process with SIGKILL; says whether that is what ended it."""
        self._send(signal.SIGKILL)
        return await self._ended() == -signal.SIGKILL

    async def stop(self) -> None:
        """Ends the process with SIGTERM. Raises AssertionError where it does not end with exit code 0."""
        self._send(signal.SIGTERM)
        assert await self._ended() == 0, f"SIGTERM: exit code {self.process.returncode}: {self._log()}"

    def _send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            if self._descriptor is not None:
                signal.pidfd_send_signal(self._descriptor, number)

    async def _ended(self) -> int:
        assert self.process.stdout is not None
        async with asyncio.timeout(_PATIENCE):
            await self.process.stdout.read()
            code = await self.process.wait()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        return code

    def _log(self) -> str:
        return self.store.log.read_text(errors="replace")[-3000:]
