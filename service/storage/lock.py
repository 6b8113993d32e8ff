"""Locks between processes on one database file, freed by the kernel however the process ends.

They stand in files of their own: closing any descriptor of the database file itself would drop SQLite's own locks on it.
"""

import fcntl
import os
import time
from pathlib import Path


class Locked(Exception):
    """Another process holds the lock, or this one does elsewhere."""


class FileLock:
    """An exclusive flock(2) on the file `path`, which stays there when the lock is gone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self, patience: float = 0.0) -> None:
        """Takes the lock, waiting up to `patience` seconds. Raises Locked, or OSError where the file can't be made."""
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Locked(str(self._path)) from None
                time.sleep(0.005)

    def release(self) -> None:
        """Gives the lock back and keeps the file open for the next time."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Gives the lock back for good."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def server_lock(database: Path) -> FileLock:
    """The lock of the one process that may serve or migrate `database`."""
    return FileLock(database.with_name(database.name + "-server"))


def writer_lock(database: Path) -> FileLock:
    """The lock of the one connection that may write `database` at this moment.

    SQLite before 3.51.3 can damage a WAL database when one connection writes while another one checkpoints
    (sqlite.org/wal.html, "the WAL-reset bug"); `keys revoke` beside a running server would be such a pair.
    """
    return FileLock(database.with_name(database.name + "-writer"))
