"""The server is killed, again and again, on one database under load, and what it had acknowledged is looked for.

A round starts the server, lets clients write, and kills it with SIGKILL; or kills it as it starts, as it starts after the
last kill, or as it (or `migrate`) brings another database to this version. Then the same one is started once more.
"""

import asyncio
import random
import shutil
import tempfile
from collections import Counter
from itertools import cycle
from pathlib import Path

from aiohttp import ClientSession, ClientTimeout, TCPConnector

from service.resources import resource
from tests.attacks import databases, upgrades
from tests.attacks.crowd import Crowd
from tests.attacks.databases_base import Store
from tests.attacks.victim import HELD, SERVE, Victim
from tests.support.secrets import leaks

# a start may take so many milliseconds, from the spawn to the first 200 of /ready
_START = 2_000.0
_ROUNDS = ("load", "recovery", "start-up", "migrations", "load", "migrations", "load")
# the clients write for so many seconds at the most before a kill; a commit takes longer there
_LOAD = {"sqlite": 0.35, "postgresql": 0.6}
# how a server is started: the one that can be held up more often, for it has runs under way
SERVERS = (HELD, HELD, SERVE)
_KINDS = ("load", "recovery", "start-up", "migrations")


def attack(seed: int, amount: int, folder: Path, engine: str = "sqlite") -> dict[str, int]:
    """Kills at least `amount` times; raises AssertionError where anything acknowledged is lost, or anything is left in half.

    Counts: `kills` and their kinds; `migrations_cut`, kills that left a migration unfinished, and `migrations_beside`, those
    that another process waited for; writes `acknowledged` and `found`; requests unanswered at a kill that were `done` or
    `not_done`; `replays`, repeated requests that got their first answer; `slowest_start_ms`, and `repeated_starts`, those
    that were slower on a busy machine and were not when repeated.
    """
    return asyncio.run(_Attack(seed, amount, folder, engine).run())


class _Attack:
    def __init__(self, seed: int, amount: int, folder: Path, engine: str) -> None:
        self.seed = seed
        self.amount = amount
        self.folder = folder
        self.engine = engine
        self.choice = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.slowest = 0.0
        self.quickest = _START
        self.store = databases.new(engine, folder, "crashes")
        # connections that a killed server has left behind
        self.forsaken: set[int] = set()
        self.copies = folder / "copies"
        self.checked = folder / "checked"
        self.copies.mkdir()
        self.checked.mkdir()
        keys = ["key_tenant_a", "key_tenant_b", self.store.add_tenant("acme")]
        self.crowd = Crowd(keys, writers=3, holders=1, choice=self.choice)
        self.held = False
        # the database as the next server has found it
        self.kept = self.store.left(self.copies)

    @property
    def kills(self) -> int:
        return sum(self.counts[kind] for kind in _KINDS)

    async def run(self) -> dict[str, int]:
        session = ClientSession(connector=TCPConnector(limit=0, force_close=False), timeout=ClientTimeout(total=20))
        async with session:
            try:
                await self._rounds(session)
            except AssertionError as error:
                where = f"seed {self.seed}, after {self.kills} kills: {dict(self.counts)}"
                raise AssertionError(f"{where}\n{error}") from None
        for log in self.folder.rglob("*.log"):
            assert leaks(log.read_text(errors="replace")) == []
        counts = self.crowd.counts
        return {
            "kills": self.kills,
            **{f"kills_{kind.replace('-', '_')}": self.counts[kind] for kind in _KINDS},
            "migrations_cut": self.counts["migrations cut"],
            "migrations_beside": self.counts["migrations beside"],
            "acknowledged": counts["acknowledged"],
            "found": counts["found"],
            "done": counts["done"],
            "not_done": counts["not done"],
            "replays": counts["replays"],
            "done_by_the_retry": counts["done by the retry"],
            "slowest_start_ms": round(self.slowest),
            "repeated_starts": self.counts["repeated starts"],
        }

    async def _rounds(self, session: ClientSession) -> None:
        versions = range(len(self.store.engine.known(resource("migrations"))))
        olds: dict[int, upgrades.Old] = {}
        victim = await self._start(session)
        try:
            for number, kind in enumerate(cycle(_ROUNDS)):
                if self.kills >= self.amount:
                    break
                if kind == "migrations":
                    version = self.choice.choice(versions)
                    if version not in olds:
                        olds[version] = upgrades.Old(self.engine, self.folder, version)
                    own = Path(tempfile.mkdtemp(dir=self.folder))
                    milliseconds, copy = await upgrades.attack(session, own, olds[version], self.choice, self.counts)
                    await self._note(session, milliseconds, SERVE, copy)
                    shutil.rmtree(own)
                    continue
                if kind == "start-up":
                    await victim.stop()
                else:
                    await self._load(session, victim)
                if kind != "load":
                    for _ in range(self.choice.choice((1, 2))):
                        await self._kill_at_start(kind)
                known = self.crowd.agent_ids if kind == "start-up" else None
                # the checks recover the copy that they look at
                self.kept = self.store.left(self.copies)
                self.kept.left(self.checked).check(known)
                victim = await self._start(session)
                # the new server has begun beside what was left of the old one; what it stored is looked at behind its end
                await self.store.gone(self.forsaken)
                self.forsaken.clear()
                await self.crowd.settle(session, victim.origin)
                if number % 25 == 0:
                    await self.crowd.check_all_runs(session, victim.origin)
            await self.crowd.settle(session, victim.origin, old=200)
            await self.crowd.check_all_runs(session, victim.origin)
            await victim.stop()
        finally:
            await victim.kill()
        self.store.check(self.crowd.agent_ids)

    async def _start(self, session: ClientSession) -> Victim:
        """Starts the server on the database that all kills hit, and waits until it is ready."""
        command = self.choice.choice(SERVERS)
        self.held = command is not SERVE
        self.store.hold.unlink(missing_ok=True)
        victim = await Victim.start(command, self.store)
        try:
            await self._note(session, await victim.ready(session), command, self.kept)
        except BaseException:
            await victim.kill()
            raise
        return victim

    async def _note(self, session: ClientSession, milliseconds: float, command: tuple[str, ...], copy: Store) -> None:
        """Notes how long a start took; one that was too slow is repeated, up to thrice, on a `copy` of what the kill left.

        What others do on the machine makes a start slow once; what the kill left would make it slow each time. The start of
        a new database beside it tells the two apart in the message.
        """
        if milliseconds > _START:
            self.counts["repeated starts"] += 1
            found = f"the start after a kill took {milliseconds:.0f} ms"
            for _ in range(3):
                peace, again = [Path(tempfile.mkdtemp(dir=self.folder)) for _ in range(2)]
                took = []
                for store in (databases.new(self.engine, peace, "new"), copy.left(again)):
                    async with await Victim.start(command, store) as victim:
                        took.append(await victim.ready(session))
                new, milliseconds = took
                found += f", then {milliseconds:.0f} ms, that of a new database {new:.0f} ms"
                if milliseconds <= _START:
                    break
            else:
                raise AssertionError(found)
        self.slowest, self.quickest = max(self.slowest, milliseconds), min(self.quickest, milliseconds)

    async def _load(self, session: ClientSession, victim: Victim) -> None:
        """Lets the clients write for a moment, and kills the server in the middle of it."""
        self.store.hold.touch()
        load = asyncio.create_task(self.crowd.load(session, victim.origin, holding=self.held))
        await asyncio.wait([load], timeout=self.choice.uniform(0.01, _LOAD[self.engine]))
        if await victim.kill():
            self.counts["load"] += 1
        self.forsaken |= self.store.sessions()
        async with asyncio.timeout(20):
            await load

    async def _kill_at_start(self, kind: str) -> None:
        victim = await Victim.start(self.choice.choice(SERVERS), self.store)
        await asyncio.sleep(self.choice.uniform(0, self.quickest / 1000))
        self.counts[kind] += await victim.kill()
        self.forsaken |= self.store.sessions()
