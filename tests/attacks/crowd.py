"""Several clients of several tenants, and the comparison of all that they were told with all that is stored."""

import json
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from aiohttp import ClientError, ClientSession

from tests.attacks.stored import listed, send, states, together
from tests.attacks.writers import Item, State, Write, Writer

SIGNS = "abcdefghijklmnopqrtuvwxyz0123456789"


class Crowd:
    """`writers` clients of each tenant that write what comes to mind, and `holders` whose runs never come to an end."""

    def __init__(self, keys: list[str], writers: int, holders: int, choice: random.Random) -> None:
        self.choice = choice
        self.counts: Counter[str] = Counter()
        signs = iter(SIGNS)
        self.writers = [Writer(next(signs), key, random.Random(choice.random())) for key in keys for _ in range(writers)]
        self.holders = [Writer(next(signs), key, random.Random(choice.random())) for key in keys for _ in range(holders)]
        # all runs that were settled, by tenant and id
        self._runs: dict[str, dict[int, Item]] = {key: {} for key in keys}

    @property
    def everyone(self) -> list[Writer]:
        return self.writers + self.holders

    @property
    def agent_ids(self) -> set[int]:
        return set().union(*(writer.agent_ids for writer in self.everyone))

    async def load(self, session: ClientSession, origin: str, *, holding: bool) -> None:
        """Sends requests until the service is gone. Raises AssertionError for an answer that none should get."""

        async def live(writer: Writer, held: bool) -> None:
            while True:
                write = writer.run("hold") if held and writer.state.agents else writer.next()
                writer.pending = write
                try:
                    status, _, body = await send(session, origin, write)
                except (ClientError, ConnectionError):
                    return
                writer.take(write, status, body)

        lives = [live(writer, False) for writer in self.writers]
        if holding:
            lives += [live(writer, True) for writer in self.holders]
        await together(*lives)

    async def settle(self, session: ClientSession, origin: str, *, old: int = 3) -> None:
        """Compares what is stored with what was answered, then sends again what had an Idempotency-Key.

        Of what was answered since the last time, and `old` requests of any time, a replay; of what was not answered a replay
        where it was done, else it is done now. Raises AssertionError.
        """
        retried: list[tuple[Writer, Write, bool]] = []
        for key, runs in self._runs.items():
            found, new = await states(session, origin, key, max(runs, default=0))
            known = {writer.sign for writer in self.everyone if writer.api_key == key}
            assert found.keys() <= known, f"whose are these: {[found[sign] for sign in found.keys() - known]}"
            for writer in self.everyone:
                if writer.api_key == key:
                    pending = writer.pending
                    stored = found.get(writer.sign, State())
                    self.counts["found"] += writer.found(stored)
                    done = writer.settle(stored)
                    if pending is not None:
                        self.counts["done" if done else "not done"] += 1
                        if pending.key is not None:
                            retried.append((writer, pending, bool(done)))
            runs.update((run["id"], run) for run in new)
        self.counts["acknowledged"] = sum(writer.acknowledged for writer in self.everyone)
        for writer, write, done in retried:
            await self._retry(session, origin, writer, write, done)
        kept = [each for writer in self.everyone for each in writer.kept]
        for write, status, body in self.choice.sample(kept, min(old, len(kept))) + [
            each for writer in self.everyone for each in writer.kept[-1:]
        ]:
            again = await send(session, origin, write)
            _is_replay(write, again, status, body)
            self.counts["replays"] += 1

    async def check_all_runs(self, session: ClientSession, origin: str) -> None:
        """Every run that was ever settled is there as it was, and no other; those since the last time are not settled."""
        for key, runs in self._runs.items():
            found = {run["id"]: run for run in await listed(session, origin, key, "/runs")}
            pending = {run["id"] for writer in self.everyone for run in writer.state.runs.values()}
            lost = [run for number, run in runs.items() if found.get(number) != run]
            assert not lost, f"runs that were there are not as they were: {lost[:3]}"
            assert found.keys() - pending <= runs.keys(), f"runs from nowhere: {sorted(found.keys() - runs.keys())[:10]}"

    async def _retry(self, session: ClientSession, origin: str, writer: Writer, write: Write, done: bool) -> None:
        status, headers, body = again = await send(session, origin, write)
        if done:
            kind, name = write.place or ("", "")
            # what was stored is what is told again; a run has been moved to those that are settled
            stored = getattr(writer.state, kind).get(name) or next(
                run for run in self._runs[writer.api_key].values() if run["task"] == name
            )
            wanted = 200 if kind == "runs" else 201
            _is_replay(write, again, wanted, json.dumps(stored).encode(), exact=False)
            self.counts["replays"] += 1
            writer.kept.append((write, status, body))
        else:
            assert "Idempotency-Replayed" not in headers, f"not done, but replayed: {write} -> {status} {body!r}"
            kind, name = write.place or ("", "")
            # what the request found is settled by now
            now = replace(writer.state, **{kind: {**getattr(writer.state, kind), name: write.expected}})
            writer.take(replace(write, after=now), status, body)
            self.counts["done by the retry"] += 1


def _is_replay(
    write: Write, again: tuple[int, Mapping[str, str], bytes], status: int, body: bytes, *, exact: bool = True
) -> None:
    found_status, headers, found = again
    asked = f"{write.method} {write.path} {write.body} {dict(write.headers)}"
    what = f"{asked}: first {status} {body!r}, then {found_status} {found!r}"
    assert found_status == status, what
    assert found == body if exact else json.loads(found) == json.loads(body), what
    assert headers.get("Idempotency-Replayed") == "true", f"not marked: {what}"
