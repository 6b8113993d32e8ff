"""Programs of ours in processes of their own, forked from one in which everything has been imported.

Hundreds of tests start one, and importing is most of what a start costs. What happens to the process afterwards (signals,
files, its end) is as if it had been started from a shell.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import chdir
from multiprocessing import forkserver
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, Any, cast

_ROOT = Path(__file__).parents[2]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.support.preloaded"])


class Forked:
    """Runs `python -m MODULE ARGUMENTS…` in the current folder; like subprocess.Popen, its output read from `stdout`."""

    def __init__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str], stderr: IO[bytes]) -> None:
        self._name = module
        ours, theirs = os.pipe()
        with chdir(_ROOT):
            # or it would not find what it imports
            forkserver.ensure_running()
        streams = (_Descriptor(theirs), _Descriptor(stderr.fileno()))
        given = module, list(arguments), dict(environment), os.getcwd(), streams
        self._process = _context.Process(target=_run, args=given)
        self._process.start()
        os.close(theirs)
        self.stdout = open(ours, "rb")  # noqa: SIM115  # whoever started the process closes it
        self.pid = cast("int", self._process.pid)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(self._name, timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Descriptor:
    """A file descriptor that a process is given with its arguments."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _given, (DupFd(self.number),)


def _given(duplicate: Any) -> _Descriptor:
    return _Descriptor(duplicate.detach())


def _run(
    module: str, arguments: list[str], environment: dict[str, str], folder: str, streams: tuple[_Descriptor, _Descriptor]
) -> None:
    """What the process does: it becomes as if it had been started with these."""
    for number, stream in enumerate(streams, 1):
        os.dup2(stream.number, number)
        os.close(stream.number)
    for out in (sys.stdout, sys.stderr):
        cast("Any", out).reconfigure(write_through=True)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv[1:] = arguments
    # it is there already, and is to be run
    sys.modules.pop(module, None)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
