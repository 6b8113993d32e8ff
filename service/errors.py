"""The errors we mean. What becomes of them on the wire stands in problems.py."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

_LONGEST_QUOTE = 100


def cut(text: str) -> str:
    """What a client sent, cut at 100 characters."""
    return text if len(text) <= _LONGEST_QUOTE else text[: _LONGEST_QUOTE - 1] + "…"


def quote(text: str) -> str:
    """What a client sent, for a sentence: in single quotes, cut at 100 characters."""
    return f"'{cut(text)}'"


class Problem(Exception):
    """An answer that is an error (RFC 9457). `detail` is a sentence for the person who reads it."""

    status: ClassVar[int]
    kind: ClassVar[str]
    title: ClassVar[str]

    def __init__(
        self,
        detail: str,
        *,
        errors: Sequence[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors
        self.headers = dict(headers or {})
        self.members = members


class Invalid(Problem):
    """A body or parameter that breaks the contract; `errors` says each place and why."""

    status, kind, title = 400, "invalid-request", "Invalid request"


class Malformed(Problem):
    """Bytes that are no HTTP or no JSON, so that no place in them can be named."""

    status, kind, title = 400, "malformed-request", "Malformed request"


class GuardrailStopped(Problem):
    """A task that tries to override the agent's instructions."""

    status, kind, title = 400, "guardrail", "Stopped by the guardrail"


class Unauthorized(Problem):
    """No key, or one that opens nothing: the answer does not say which."""

    status, kind, title = 401, "unauthorized", "Unauthorized"


class MissingScope(Problem):
    """A good key, but not for this."""

    status, kind, title = 403, "missing-scope", "Missing scope"


class NotFound(Problem):
    """Not there, or another tenant's: the answer does not say which."""

    status, kind, title = 404, "not-found", "Not found"


class MethodNotAllowed(Problem):
    """The path is there, the method is not."""

    status, kind, title = 405, "method-not-allowed", "Method not allowed"


class Conflict(Problem):
    """Well-formed, but at odds with what is stored."""

    status, kind, title = 409, "conflict", "Conflict"


class UnderWay(Problem):
    """The request with this idempotency key is being answered just now."""

    status, kind, title = 409, "request-under-way", "Request under way"


class PreconditionFailed(Problem):
    """What If-Match names is not what is stored."""

    status, kind, title = 412, "precondition-failed", "Precondition failed"


class KeyReused(Problem):
    """An idempotency key that came with another request before."""

    status, kind, title = 422, "idempotency-key-reused", "Idempotency key reused"


class RequestTimeout(Problem):
    """A request that did not arrive within its deadline."""

    status, kind, title = 408, "request-timeout", "Request timeout"


class TooLarge(Problem):
    """A body over the limit."""

    status, kind, title = 413, "content-too-large", "Content too large"


class UnsupportedMediaType(Problem):
    """A body that is not said to be JSON."""

    status, kind, title = 415, "unsupported-media-type", "Unsupported media type"


class TooManyRuns(Problem):
    """The tenant has used up its window."""

    status, kind, title = 429, "too-many-runs", "Too many runs"


class TooManyWrongKeys(Problem):
    """An address that tries one key after the other."""

    status, kind, title = 429, "too-many-wrong-keys", "Too many wrong keys"


class Crash(Problem):
    """A defect of ours. The answer says nothing of it; the log does."""

    status, kind, title = 500, "internal-error", "Internal error"


class Unavailable(Problem):
    """The storage does not answer now; the same request may work soon."""

    status, kind, title = 503, "unavailable", "Service unavailable"

    def __init__(self, detail: str = "The storage does not answer at the moment; please try again.") -> None:
        super().__init__(detail, headers={"Retry-After": "1"})


class OutcomeUnknown(Unavailable):
    """The storage was told to keep what was done, and its answer was lost: it may be stored, or not."""


class Overloaded(Unavailable):
    """The service is full, or about to stop: its own choice, and no news for its log each time."""

    def __init__(self, detail: str = "The service has as many requests as it can hold; please try again.") -> None:
        super().__init__(detail)


def unauthorized() -> NoReturn:
    raise Unauthorized(
        "Send a valid API key in the header X-API-Key.",
        headers={"WWW-Authenticate": 'ApiKey realm="agent-platform", header="X-API-Key"'},
    )


def not_found(thing: str) -> NoReturn:
    """Raises the 404 that an unknown id and another tenant's id share; `thing` is the resource's name."""
    raise NotFound(f"There is no such {thing}.")
