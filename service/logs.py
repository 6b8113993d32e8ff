"""What is logged, and what never is: no key, no body and no prompt stands in a log, whatever its level.

Our own lines hold none. The messages of exceptions may, so that a log says what was raised and where, and not what it said.
"""

import asyncio
import logging
import re
import time
import traceback
from typing import Any, TextIO

# a client can put its key, or a part of it, where it does not belong: into a request id
_KEY = re.compile(r"(?<=mk_)[0-9A-Za-z]{4,}|(?<=key_tenant_)[ab]", re.ASCII)

# how long lines are gathered before they are written, in seconds
_PAUSE = 0.1


class Formatter(logging.Formatter):
    """Formats records, other people's too, without keys and without what exceptions say."""

    def format(self, record: logging.LogRecord) -> str:
        return without_keys(super().format(record))

    def formatException(self, ei: Any) -> str:
        return whereabouts(ei[1])


def whereabouts(error: BaseException | None) -> str:
    """What was raised and where, with what it came from, each as a traceback without its message."""
    lines: list[str] = []
    seen: set[int] = set()
    # an exception can come from itself, over others
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        lines += [type(error).__qualname__, *traceback.format_tb(error.__traceback__)]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(line.rstrip("\n") for line in lines)


def without_keys(text: str) -> str:
    """The text, with dots for what is secret of each key that stands in it."""
    return _KEY.sub("…", text)


class AccessLog:
    """Writes lines with their time to `stream`, those of one moment with one system call.

    The logging module would make a record, a lock and a system call of each.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._second = 0
        self._time = ""

    def write(self, line: str) -> None:
        """Notes a line; it stands in the stream a moment later. To be called on the event loop."""
        now = int(time.time())
        if now != self._second:
            self._second, self._time = now, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
        if not self._lines:
            asyncio.get_running_loop().call_later(_PAUSE, self.flush)
        self._lines.append(f"{self._time} {line}\n")

    def flush(self) -> None:
        """Writes what was noted. A stream that is gone takes no request with it."""
        text = without_keys("".join(self._lines))
        self._lines.clear()
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            pass
