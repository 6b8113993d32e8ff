"""How the records of the logging module look, other people's too: lines of JSON for programs, or lines to read."""

import logging
import sys

from structlog.dev import ConsoleRenderer
from structlog.processors import JSONRenderer, TimeStamper
from structlog.stdlib import ProcessorFormatter, add_log_level, add_logger_name
from structlog.typing import EventDict, WrappedLogger

from service.logs import whereabouts, without_keys, writes_json
from service.trace import REQUEST_ID, TRACE

# libraries speak at their own length: their debug records hold URLs, bodies and SQL
_QUIET = ("connexion", "aiosqlite", "asyncio", "redis", "yoyo", "openapi_spec_validator")


class Formatter(ProcessorFormatter):
    """Formats records without keys and without what exceptions say, with the request in which they came to be."""

    def __init__(self, *, as_json: bool, colors: bool = False) -> None:
        stamp = TimeStamper("iso") if as_json else TimeStamper("%Y-%m-%d %H:%M:%S", utc=False)
        renderer = JSONRenderer() if as_json else ConsoleRenderer(pad_event_to=0, colors=colors)
        super().__init__(
            foreign_pre_chain=[add_log_level, add_logger_name, stamp, _add_whose, _say_where],
            processors=[self.remove_processors_meta, renderer],
        )

    def format(self, record: logging.LogRecord) -> str:
        return without_keys(super().format(record))


def log_to_stderr(level: str, log_format: str) -> None:
    """Sends all records of this process from `level` on to standard error, as `--log-format` says; warnings, too."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter(as_json=writes_json(log_format, sys.stderr), colors=sys.stderr.isatty()))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)
    for library in _QUIET:
        logging.getLogger(library).setLevel(max(logging.WARNING, logging.getLogger().level))


def _add_whose(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    if request_id := REQUEST_ID.get():
        event["request_id"] = request_id
    if trace := TRACE.get():
        event["trace_id"] = trace.trace_id
    return event


def _say_where(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Puts in the place of an exception what it was and where: as it is, the renderers would say what it says."""
    if raised := event.pop("exc_info", None):
        event["exception"] = whereabouts(raised[1])
    return event
