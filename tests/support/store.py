"""A Redis or Valkey server for the tests: one that is there, or one that they start, kill and start again."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis

_THERE = "redis://127.0.0.1:6379/9"


class Store:
    """A server of the test's own on a free port, which keeps nothing on the disk."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = ("--port", str(self._port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", "/")
        self._process = subprocess.Popen([_program(), *command], stdout=subprocess.DEVNULL)
        for _ in range(500):
            if answers(self.url):
                return
            time.sleep(0.01)
        raise AssertionError("The store did not start.")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=1, socket_timeout=1) as client:
            client.ping()
    except redis.RedisError:
        return False
    return True


def can_be_started() -> bool:
    return bool(_program())


@contextmanager
def store_url() -> Iterator[str | None]:
    """The URL of a server, which is started where none is there; None where it can't be."""
    given = os.environ.get("AGENT_PLATFORM_TEST_LIMITER")
    if given or answers(_THERE):
        yield given or _THERE
    elif can_be_started():
        own = Store()
        own.start()
        yield own.url
        own.kill()
    else:
        yield None


def _program() -> str:
    return shutil.which("redis-server") or shutil.which("valkey-server") or ""
