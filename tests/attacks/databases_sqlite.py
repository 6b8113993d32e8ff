"""An attacked file of the embedded engine."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from service.storage.lock import writer_lock
from service.storage.sqlite import connect
from tests.attacks.databases_base import Read, Rows, Store, Write


class SqliteStore(Store):
    """A file."""

    is_shared = False
    part = "."
    glance = 0.0005

    def __init__(self, file: Path) -> None:
        super().__init__(file, file.parent, file.stem)
        self.file = file

    @contextmanager
    def reading(self) -> Iterator[Read]:
        with closing(sqlite3.connect(self.file, isolation_level=None)) as connection:
            connection.execute("begin")
            yield lambda query: connection.execute(query).fetchall()

    @contextmanager
    def writing(self) -> Iterator[Write]:
        with closing(writer_lock(self.file)) as lock, closing(connect(self.file)) as connection:
            lock.acquire(5.0)
            connection.execute("begin immediate")
            yield connection.executemany
            connection.execute("commit")

    def tables(self) -> dict[str, list[str]]:
        if not self.file.exists():
            return {}
        with self.reading() as read:
            query = "select name from sqlite_master where type = 'table' and name not like 'sqlite_%'"
            return {name: [row[1] for row in read(f"pragma table_info({name})")] for (name,) in read(query)}

    def copy(self, folder: Path, name: str) -> Store:
        target = folder / f"{name}.db"
        # what was there before goes with its locks' files, which show a migrator's progress
        for each in folder.glob(f"{target.name}*"):
            each.unlink()
        if self.file.exists():
            shutil.copyfile(self.file, target)
        return SqliteStore(target)

    def left(self, folder: Path) -> Store:
        target = folder / self.file.name
        for suffix in ("", "-wal"):
            source, copy = self.file.with_name(self.file.name + suffix), target.with_name(target.name + suffix)
            if source.exists():
                shutil.copyfile(source, copy)
            else:
                copy.unlink(missing_ok=True)
        target.with_name(target.name + "-shm").unlink(missing_ok=True)
        return SqliteStore(target)

    def forget_progress(self) -> None:
        self._writer.unlink(missing_ok=True)

    def is_begun(self) -> bool:
        return self._writer.exists()

    @property
    def _writer(self) -> Path:
        # the lock that all who write take
        return self.file.with_name(self.file.name + "-writer")

    def begin_ids_at(self, table: str, number: int) -> None:
        with self.writing() as write:
            write("delete from sqlite_sequence where name = ?", [(table,)])
            write("insert into sqlite_sequence (name, seq) values (?, ?)", [(table, number)])

    def _damage(self, read: Read) -> Rows:
        return [row for row in read("pragma integrity_check") if row != ("ok",)] + read("pragma foreign_key_check")
