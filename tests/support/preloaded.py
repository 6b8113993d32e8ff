"""Everything that `agent-platform` imports and reads as it starts; see forked.py."""

import service.__main__
import service.server
import service.shared_limiter
import service.storage.copying
import service.storage.migrations
import service.storage.postgresql
import service.storage.postgresql_migrations
import service.storage.sqlite
import service.workers  # noqa: F401  # it is here to be imported
from service.app import make_app
from service.config import Config
from tests.support.reading import read_once

read_once(setattr)
make_app(Config())
