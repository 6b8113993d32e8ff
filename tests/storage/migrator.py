"""A migrator that is killed: python -m tests.storage.migrator URL NUMBER SECONDS

It is killed by SIGKILL so many seconds after it began its statement of that number; 0 is no statement. What comes to its
end prints how many statements it took.
"""

import os
import signal
import sys
import threading
from typing import Any

import psycopg

from service.resources import resource
from service.storage.engines import engine_of


def main(url: str, number: int, seconds: float) -> None:
    execute, count = psycopg.Cursor.execute, 0

    def counted(self: Any, *arguments: Any, **settings: Any) -> Any:
        nonlocal count
        count += 1
        if count == number:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return execute(self, *arguments, **settings)

    psycopg.Cursor.execute = counted  # type: ignore[method-assign]
    engine_of(url).migrate(resource("migrations"))
    print(count)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
