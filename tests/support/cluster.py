"""A PostgreSQL server of a test's own, which may be restarted, killed and used up."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path

import psycopg

from tests.support.storage import Row, rows

HOW_TO_RUN = "There is no PostgreSQL to start a server with: install Debian's `postgresql`, or put its initdb on the PATH."
# so few that a test can use them all up
CONNECTIONS = 40
_SETTINGS = {
    "listen_addresses": "'127.0.0.1'",
    "unix_socket_directories": "''",
    "shared_buffers": "16MB",
    "max_connections": str(CONNECTIONS),
    # what asks for no flush gets none: a kill takes no page with it that the system has
    "fsync": "off",
    "autovacuum": "off",
}
# in seconds
_PATIENCE = 20.0


def _programs() -> Path | None:
    """The folder with initdb and pg_ctl, of the newest version that is there."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    installed = [each.parent for each in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(installed, key=lambda folder: int(folder.parent.name), default=None)


def can_be_started() -> bool:
    return _programs() is not None


class Cluster:
    """A server on a free port, and all that is in it. Made by `cluster`."""

    def __init__(self, folder: Path, user: str) -> None:
        self._data = folder / "data"
        self._log = folder / "postgresql.log"
        self._user = user
        self._numbers = count()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._run("initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in {**_SETTINGS, "port": str(self.port)}.items())
        self.start()

    def url(self, name: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def create(self) -> str:
        """Makes an empty database; its URL."""
        name = f"test_{next(self._numbers)}"
        self.ask(f"create database {name}")
        return self.url(name)

    def empty(self, database: str) -> None:
        """Takes away all that tenants have in the migrated database at the URL; its next ids are the first ones."""
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(
                "truncate kept_answers, usage, run_counts, runs, agent_tools, agents, agent_ids, tools restart identity"
            )

    def ask(self, *statements: str) -> list[Row]:
        """Runs statements as the superuser, each by itself; the rows of the last one."""
        with psycopg.connect(self.url(), autocommit=True, options="-c default_transaction_read_only=off") as connection:
            for statement in statements:
                answer = connection.execute(statement)
            return answer.fetchall() if answer.description else []

    def set(self, **settings: str) -> None:
        """Changes settings that a running server takes over; those that are not named are as they were at first."""
        self.ask("alter system reset all", *(f"alter system set {name} = {value}" for name, value in settings.items()))
        self.ask("select pg_reload_conf()")

    def start(self) -> None:
        """Starts it, and waits until it takes connections."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self._run("pg_ctl", "-D", self._data, "-l", self._log, "-w", "start")
            except subprocess.CalledProcessError:
                # the processes of one that was killed are still about to end
                assert time.monotonic() < deadline, self._log.read_text()[-2000:]
                time.sleep(0.05)
            else:
                return

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-D", self._data, "-m", mode, "-w", "stop")

    def kill(self) -> None:
        """Kills the server as a crash would: its first process, and the others see that it is gone."""
        os.kill(int((self._data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)

    def backends(self, database: str) -> list[int]:
        """The processes that work for the service at the URL `database`."""
        name = "datname = current_database() and application_name = 'agent-platform'"
        return [pid for (pid,) in rows(database, f"select pid from pg_stat_activity where {name}")]

    @contextmanager
    def used_up(self, database: str) -> Iterator[None]:
        """Others have all connections, those for a superuser too, and the service at the URL `database` has none."""
        with ExitStack() as others:
            deadline = time.monotonic() + _PATIENCE
            while True:
                assert time.monotonic() < deadline, "connections are left"
                try:
                    one = others.enter_context(psycopg.connect(self.url(), autocommit=True))
                except psycopg.OperationalError:
                    ours = one.execute(
                        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'agent-platform'"
                    ).fetchall()
                    if not ours:
                        break
            yield

    def _run(self, program: str, *arguments: str | Path) -> None:
        programs = _programs()
        assert programs is not None
        # PostgreSQL refuses to run as root
        other = ["runuser", "-u", self._user, "--"] if self._user != getpass.getuser() else []
        # a server that is started keeps what it is given as its output
        command = [*other, str(programs / program), *map(str, arguments)]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(command, check=True, cwd="/", **quiet)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A server that runs, and is gone behind the block with all that it had."""
    user = "postgres" if os.getuid() == 0 else getpass.getuser()
    folder = Path(tempfile.mkdtemp(prefix="agent-platform-postgresql-"))
    try:
        if user != getpass.getuser():
            shutil.chown(folder, user)
        made = Cluster(folder, user)
        try:
            yield made
        finally:
            with suppress(subprocess.CalledProcessError):
                made.stop("immediate")
    finally:
        shutil.rmtree(folder)
