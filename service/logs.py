"""What is logged, and what never is: no key, no body and no prompt stands in a log, whatever its level.

Our own lines hold none. The messages of exceptions may, so that a log says what was raised and where, and not what it said.
"""

import asyncio
import re
import time
import traceback
from functools import lru_cache
from typing import TextIO

import orjson

# a client can put its key, or a part of it, where it does not belong: into a request id
_KEY = re.compile(r"(?<=mk_)[0-9A-Za-z]{4,}|(?<=key_tenant_)[ab]", re.ASCII)

# how long lines are gathered before they are written, in seconds
_PAUSE = 0.1


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


def writes_json(log_format: str, stream: TextIO) -> bool:
    """Are lines to be JSON? `auto` means: where nobody reads them as they come, on a terminal."""
    return log_format == "json" or (log_format == "auto" and not stream.isatty())


class AccessLog:
    """Writes a line for each request to `stream`, those of one moment with one system call.

    The logging module would make a record, a lock and a system call of each. The lines look like its own: see records.py.
    """

    def __init__(self, stream: TextIO, *, as_json: bool) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._second = 0
        self._time = ""
        self._render = _as_json if as_json else _as_text
        self._tell_time = _utc if as_json else _local

    def write(
        self,
        method: str,
        route: str,
        status: int,
        seconds: float,
        size: int,
        tenant_id: str | None,
        request_id: str,
        trace_id: str | None,
    ) -> None:
        """Notes an answer with `size` bytes; its line stands in the stream a moment later. To be called on the event loop.

        `route` is the template, and like `method` nothing that a client made up.
        """
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._time = second, self._tell_time(second)
        if not self._lines:
            asyncio.get_running_loop().call_later(_PAUSE, self.flush)
        of = method, route, status, seconds * 1000, size, tenant_id, request_id, trace_id
        self._lines.append(self._render(self._time, now - second, *of))

    def flush(self) -> None:
        """Writes what was noted. A stream that is gone takes no request with it."""
        text = without_keys("".join(self._lines))
        self._lines.clear()
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            pass


def _as_json(
    second: str,
    fraction: float,
    method: str,
    route: str,
    status: int,
    milliseconds: float,
    size: int,
    tenant_id: str | None,
    request_id: str,
    trace_id: str | None,
) -> str:
    # orjson would take twice as long for the whole as for the two that can't be kept
    return (
        f'{{"timestamp":"{second}.{int(fraction * 1_000_000):06d}Z","level":"info","event":"request",'
        f'"method":{_quoted(method)},"route":{_quoted(route)},"status":{status},'
        f'"duration_ms":{milliseconds:.2f},"bytes":{size},"tenant":{_quoted(tenant_id)},'
        f'"request_id":{orjson.dumps(request_id).decode()},"trace_id":{orjson.dumps(trace_id).decode()}}}\n'
    )


def _as_text(
    second: str,
    fraction: float,
    method: str,
    route: str,
    status: int,
    milliseconds: float,
    size: int,
    tenant_id: str | None,
    request_id: str,
    trace_id: str | None,
) -> str:
    whose = "" if tenant_id is None else f" tenant={tenant_id}"
    where = "" if trace_id is None else f" trace_id={trace_id}"
    what = f"{method} {route} {status} {milliseconds:.2f}ms {size}B"
    return f"{second} [info     ] {what}{whose} request_id={request_id}{where}\n"


@lru_cache(maxsize=4096)
def _quoted(text: str | None) -> str:
    """What comes again and again, as JSON."""
    return orjson.dumps(text).decode()


def _utc(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _local(second: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
