"""Drives servers: with wrk for what they bear, with one connection for how long one request takes."""

import json
import os
import random
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.benchmarks.servers import Server
from tests.benchmarks.shared import KEY, MODEL

TASK = {"task": "Search the web for the tallest tower", "model": MODEL}
BODY = json.dumps(TASK)
_SCRIPT = Path(__file__).with_name("wrk.lua")
_WARM_UP = 30

N = TypeVar("N", int, str)


@dataclass(frozen=True)
class Traffic:
    """What wrk sends: `kind` is get (of `path`), run (POST /agents/{agent_id}/run) or mix (one run in five requests).

    `callers` take turns, each with its key and the id of its agent.
    """

    kind: str
    path: str = ""
    callers: tuple[tuple[str, int], ...] = ((KEY, 1),)


@dataclass(frozen=True)
class Load:
    """What wrk saw: requests a second, latencies in milliseconds, and how many requests there were."""

    rate: float
    p50: float
    p99: float
    requests: int


def drive(server: Server, traffic: Traffic, connections: int, seconds: float) -> Load:
    """One run of wrk, with one thread. Raises RuntimeError for any answer that is no 2xx, and any broken connection."""
    callers = ",".join(f"{key} {agent_id}" for key, agent_id in traffic.callers)
    settings = {"BENCH_KIND": traffic.kind, "BENCH_PATH": traffic.path, "BENCH_CALLERS": callers, "BENCH_BODY": BODY}
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", str(_SCRIPT)]
    result = subprocess.run(
        [*command, f"http://127.0.0.1:{server.port}"],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=True,
    )
    seen = json.loads(result.stdout.splitlines()[-1])
    if seen["failed"] or not seen["requests"]:
        raise RuntimeError(f"{server.name}: {seen['failed']} of {seen['requests']} requests failed ({traffic}).")
    return Load(seen["requests"] / seen["seconds"], seen["p50"], seen["p99"], seen["requests"])


def rounds(
    servers: Sequence[Server], traffic: Traffic, connections: int, seconds: float, times: int
) -> dict[str, list[Load]]:
    """Drives the servers in turn, `times` times (A, B, …, A, B, …), each round beginning with another, after a warm-up."""
    for server in servers:
        drive(server, traffic, connections, 1)
    loads: dict[str, list[Load]] = {server.name: [] for server in servers}
    for number in range(times):
        first = number % len(servers)
        for server in (*servers[first:], *servers[:first]):
            loads[server.name].append(drive(server, traffic, connections, seconds))
    return loads


class Client:
    """One kept-alive connection that sends prepared bytes: it costs little beside the server's own time."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self._socket.close()

    def time(self, request: bytes) -> float:
        """Milliseconds from sending `request` to the end of its answer, which must be a 200 with a Content-Length."""
        began = time.perf_counter()
        self._socket.sendall(request)
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._more()
        head, _, body = received.partition(b"\r\n\r\n")
        missing = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]) - len(body)
        while missing > 0:
            missing -= len(self._more())
        took = (time.perf_counter() - began) * 1000
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"{head!r} for {request!r}")
        return took

    def _more(self) -> bytes:
        if more := self._socket.recv(65536):
            return more
        raise RuntimeError("The server closed the connection.")


def get(path: str, key: str = KEY) -> bytes:
    """A GET request, ready to send."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {key}\r\n\r\n".encode()


def post_run(agent_id: int = 1, key: str = KEY) -> bytes:
    """A run, ready to send."""
    head = (
        f"POST /agents/{agent_id}/run HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {key}\r\nContent-Type: application/json\r\n"
    )
    return f"{head}Content-Length: {len(BODY)}\r\n\r\n{BODY}".encode()


def latencies(clients: Mapping[N, Client], request: Callable[[N], bytes], times: int) -> dict[N, float]:
    """The median milliseconds of `request(name)` on each named client, `times` times after a warm-up, all by turns."""
    taken: dict[N, list[float]] = {name: [] for name in clients}
    order = list(clients)
    for number in range(_WARM_UP + times):
        # none always follows the same other one
        random.shuffle(order)
        for name in order:
            took = clients[name].time(request(name))
            if number >= _WARM_UP:
                taken[name].append(took)
    return {name: statistics.median(values) for name, values in taken.items()}
