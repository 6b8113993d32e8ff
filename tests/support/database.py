"""A migrated database file, made once for all tests: each copies it instead of migrating its own."""

import functools
import tempfile
from contextlib import closing
from pathlib import Path

from service.resources import resource
from service.storage.migrations import hold, migrate


@functools.cache
def _template() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "template.db"
        with closing(hold(file)):
            migrate(file, resource("migrations"))
        return file.read_bytes()


def migrated(file: Path) -> Path:
    """Writes a migrated, empty database to `file`, readable by its owner alone as the service would make it."""
    file.write_bytes(_template())
    file.chmod(0o600)
    return file
