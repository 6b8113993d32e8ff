"""Whose doing a line of the log or a call to elsewhere is: the request's id, and the trace that it is a part of.

Both are found wherever the request's own task, or one that it has made, is at work. The trace is the caller's (W3C Trace
Context): this service adds no span of its own, and passes on what it was given. It answers with no header of it, for the
recommendation knows none; `traceresponse` is a draft.
"""

import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

# version, trace-id, parent-id and flags; a later version may have more behind them (section 3.2.4)
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
# sampled, and random (level 2); what other bits will mean is not known, and they are not passed on
_KNOWN_FLAGS = 0b11
# what has to be passed on of a tracestate at least (section 3.3.1.5): a longer one is left out whole
_LONGEST_STATE = 512


@dataclass(frozen=True, slots=True)
class Trace:
    """Where a request comes from. `state` belongs to tracing systems, and says nothing to us."""

    trace_id: str
    parent_id: str
    flags: int
    state: str = ""


REQUEST_ID: ContextVar[str | None] = ContextVar("REQUEST_ID", default=None)
TRACE: ContextVar[Trace | None] = ContextVar("TRACE", default=None)


def trace_of(traceparent: Sequence[str], tracestate: Sequence[str] = ()) -> Trace | None:
    """The trace that these values of the two headers name; None where there is none, or what is there is not valid."""
    found = _TRACEPARENT.fullmatch(traceparent[0]) if len(traceparent) == 1 else None
    if found is None:
        return None
    version, trace_id, parent_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not trace_id.strip("0") or not parent_id.strip("0"):
        return None
    state = ",".join(tracestate)
    if len(state) > _LONGEST_STATE or not (state.isascii() and state.isprintable()):
        state = ""
    return Trace(trace_id, parent_id, int(flags, 16) & _KNOWN_FLAGS, state)


def outgoing_headers() -> Mapping[str, str]:
    """What an adapter or a tool that calls another service sends with it, so that the call is a part of the same trace."""
    trace = TRACE.get()
    if trace is None:
        return {}
    headers = {"traceparent": f"00-{trace.trace_id}-{trace.parent_id}-{trace.flags:02x}"}
    return headers | {"tracestate": trace.state} if trace.state else headers
