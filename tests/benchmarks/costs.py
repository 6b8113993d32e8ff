"""What a request costs: the processor's time that the service takes for it, and what the database takes."""

import os
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests.benchmarks.filling import Filled
from tests.benchmarks.load import Traffic, drive
from tests.benchmarks.servers import Server

_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")
_TRIES = 5


@dataclass(frozen=True)
class Cost:
    """Milliseconds of one core for one request."""

    service: float
    database: float


def cost(server: Server, database: Filled, traffic: Traffic, connections: int, seconds: float) -> Cost:
    """Drives a server that has one process, on a database server of this machine. Raises OSError where it is on another."""
    drive(server, traffic, connections, 1)
    for _ in range(_TRIES):
        service, behind = _taken_ms([server.process.pid]), _taken_ms(_processes(database))
        load = drive(server, traffic, connections, seconds)
        service_now, behind_now = _taken_ms([server.process.pid]), _taken_ms(_processes(database))
        # a connection that is closed or made meanwhile has a process, and takes its time along
        if behind.keys() == behind_now.keys():
            taken = [sum(now.values()) - sum(then.values()) for now, then in ((service_now, service), (behind_now, behind))]
            return Cost(*(each / load.requests for each in taken))
    raise RuntimeError(f"The connections of {server.name} came and went in each of {_TRIES} tries.")


def _processes(database: Filled) -> list[int]:
    """Those of the database server that serve us, and those that write for all."""
    with psycopg.connect(database.url, autocommit=True) as connection:
        found = connection.execute(
            "select pid from pg_stat_activity where application_name = 'agent-platform' and datname = current_database()"
            " or backend_type in ('walwriter', 'background writer', 'checkpointer')"
        )
        return [pid for (pid,) in found]


def _taken_ms(processes: list[int]) -> dict[int, float]:
    """The time that each of these has had of any core so far."""
    taken = {}
    for pid in processes:
        # after the name, which may hold anything, user and system time are the 12th and 13th
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        taken[pid] = (int(fields[11]) + int(fields[12])) * _TICK_MS
    return taken
