"""The access log: one line a request, for little."""

import asyncio
import time
from typing import TextIO

# how long lines are gathered before they are written, in seconds
_PAUSE = 0.1


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
        text = "".join(self._lines)
        self._lines.clear()
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            pass
