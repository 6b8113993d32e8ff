"""Retries that don't repeat: the Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07).

An answer that had an effect is kept in the transaction that had it, and given again to whoever asks the same under the same
key, for a day. A refusal changed nothing and is not kept: the same key may be tried again, with the mistake mended.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Any

import orjson

from service.errors import KeyReused, TooManyRuns, UnderWay
from service.storage.scope import Scope
from service.storage.units import T, Unit, ask
from service.times import utc_now

KEPT_FOR = timedelta(hours=24)

_ESCAPED = re.compile(r"\\(.)")


def key_of(header: str) -> str:
    """The key that a header's value stands for: a string in quotes (RFC 8941 section 3.3.3), or plain as many send it."""
    return _ESCAPED.sub(r"\1", header[1:-1]) if header.startswith('"') else header


def fingerprint(operation: str, path: Mapping[str, Any], body: Any) -> str:
    """What makes two requests the same: the operation, what its path says, and what the body says, however it is written."""
    said = orjson.dumps([operation, path, body], option=orjson.OPT_SORT_KEYS)
    return sha256(said).hexdigest()


@dataclass(frozen=True, slots=True)
class Rendered:
    """An answer as it is sent: `headers` are those that it has beside those of every answer."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class _Retry:
    """The requests of one key that are here now: how many, what the one that works asked, and whether one has ended."""

    requests: int = 0
    at_work: str | None = None
    ended: int = 0


class _AnsweredMeanwhile(Exception):
    """Another process, or a request that was cut off, has done the work."""


class _KeepingScope(Scope):
    """A scope whose writes return an answer, and keep it under a key in the same transaction."""

    __slots__ = ("_fingerprint", "_key", "_render")

    def __init__(self, tenant: Scope, key: str, fingerprint: str, render: Callable[[Any], Rendered]) -> None:
        super().__init__(tenant._database, tenant.tenant_id, tenant.key_id)
        # who asks is the same
        self._own = tenant._own
        self._key = key
        self._fingerprint = fingerprint
        self._render = render

    async def write(self, unit: Unit[T]) -> T:
        return await super().write(self._keeping(unit))

    def _keeping(self, unit: Unit[T]) -> Unit[T]:
        now, expired = utc_now(), utc_now(-KEPT_FOR)
        if (yield ask("get_kept_answer", idempotency_key=self._key, expired=expired)):
            raise _AnsweredMeanwhile
        answer = yield from unit
        rendered = self._render(answer)
        yield ask("forget_kept_answers", expired=expired)
        kept = yield ask(
            "keep_answer",
            idempotency_key=self._key,
            fingerprint=self._fingerprint,
            status=rendered.status,
            headers=orjson.dumps(rendered.headers).decode(),
            body=rendered.body.decode(),
            now=now,
            expired=expired,
        )
        if not kept:
            raise _AnsweredMeanwhile
        return answer


class Retries:
    """Answers each key's request once, and says it again. `render` makes an answer what is sent and kept."""

    def __init__(self, render: Callable[[Any], Rendered]) -> None:
        self._render = render
        self._here: dict[tuple[str, str], _Retry] = {}

    async def once(
        self, tenant: Scope, key: str, fingerprint: str, work: Callable[[Scope], Awaitable[Any]]
    ) -> tuple[Rendered, bool]:
        """What `work` answers, and False; or what it answered the first time, and True.

        `work` gets the scope that it is to write through, once, and answers with what that write returned. Raises UnderWay
        while the first request of the key is at work, KeyReused where the key came with another request, and what `work`
        raises.
        """
        retry = self._here.setdefault((tenant.tenant_id, key), _Retry())
        retry.requests += 1
        try:
            while True:
                _refuse_while_at_work(retry, fingerprint)
                ended = retry.ended
                if kept := await self._kept(tenant, key, fingerprint):
                    return kept, True
                _refuse_while_at_work(retry, fingerprint)
                if ended != retry.ended:
                    # one has worked and ended since the storage was asked
                    continue
                retry.at_work = fingerprint
                try:
                    with suppress(_AnsweredMeanwhile):
                        return self._render(await work(_KeepingScope(tenant, key, fingerprint, self._render))), False
                except TooManyRuns:
                    # what filled the window may have been this very request, in another process
                    if kept := await self._kept(tenant, key, fingerprint):
                        return kept, True
                    raise
                finally:
                    retry.at_work = None
                    retry.ended += 1
        finally:
            retry.requests -= 1
            if not retry.requests:
                del self._here[(tenant.tenant_id, key)]

    async def _kept(self, tenant: Scope, key: str, fingerprint: str) -> Rendered | None:
        kept = await tenant.one("get_kept_answer", idempotency_key=key, expired=utc_now(-KEPT_FOR))
        if kept is None:
            return None
        if kept["fingerprint"] != fingerprint:
            raise _reused()
        return Rendered(kept["status"], kept["headers"], kept["body"].encode())


def _refuse_while_at_work(retry: _Retry, fingerprint: str) -> None:
    if retry.at_work is None:
        return
    if retry.at_work != fingerprint:
        raise _reused()
    raise UnderWay("A request with this Idempotency-Key is being answered; ask again in a moment.")


def _reused() -> KeyReused:
    return KeyReused("This Idempotency-Key came with another request before; use a new one.")
