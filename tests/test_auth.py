"""Keys: how they are made and checked, and how the service finds out whose they are."""

import gc
import math
import random
import string
import weakref
import zlib
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest

from service.auth import DEMO_KEYS, Authenticator, is_well_formed, key_hash, key_prefix, new_key
from service.resources import resource
from service.storage.engines import engine_of
from service.storage.queries import load_queries
from service.storage.scope import Bind, Database, Unscoped
from service.storage.units import Row, T, Unit, ask
from service.times import utc_now
from tests.support.direct import direct
from tests.support.keys import revoke, store

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
KEY = "mk_7Fq0ZbN3xLk9TtVdR2mWcYh5PgJs8Aa1e2I9KnP"
QUERIES = load_queries(resource("sql"), "sqlite")


class Storage:
    """A storage that knows some keys by their hash, and counts how often it is asked."""

    def __init__(self, **rows: Row) -> None:
        self.queries = QUERIES
        self.rows = rows
        self.asked = 0

    async def read(self, unit: Unit[T], bind: Bind, tenant_id: str | None) -> T:
        query, parameters = bind(next(unit))
        assert (query.name, tenant_id) in (("find_api_key", None), ("find_demo_tenant", None))
        self.asked += 1
        answer = self.answer(parameters["hash" if "hash" in parameters else "id"])
        try:
            unit.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        raise AssertionError("One key took more than one query.")

    async def write(self, unit: Unit[T], bind: Bind, tenant_id: str | None) -> T:
        raise AssertionError("Looking up a key writes nothing.")

    async def check(self) -> None:
        raise AssertionError("Looking up a key is no check of the storage.")

    async def close(self) -> None:
        raise AssertionError("Looking up a key closes nothing.")

    def answer(self, hashed: str) -> Row | None:
        return self.rows.get(hashed)


class Broken(Storage):
    """A storage that nobody may ask."""

    def answer(self, hashed: str) -> Row | None:
        raise AssertionError("The storage was asked.")


class Clock:
    now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("service.auth.time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def stored(*keys: str, tenant: str = "acme") -> dict[str, Row]:
    return {key_hash(key): found(tenant, at) for at, key in enumerate(keys, 1)}


def found(tenant: str, key_id: int) -> Row:
    usual = dict.fromkeys(("expires_at", "run_limit", "run_window"))
    return {"tenant_id": tenant, "key_id": key_id, "scopes": "read run", "last_used_at": utc_now(), **usual}


def test_a_key_is_mk_33_random_characters_and_a_checksum_of_6() -> None:
    for _ in range(100):
        key = new_key()
        assert len(key) == 3 + 33 + 6
        assert key.startswith("mk_")
        assert set(key[3:]) <= set(BASE62)
        assert is_well_formed(key)


def test_a_key_has_160_random_bits_beyond_the_prefix_that_is_shown() -> None:
    keys = [new_key() for _ in range(2_000)]
    assert len(set(keys)) == len(keys)
    seen = [{key[place] for key in keys} for place in range(3, 36)]
    assert all(characters == set(BASE62) for characters in seen)
    shown = len(key_prefix(keys[0])) - 3
    assert sum(math.log2(len(characters)) for characters in seen[shown:]) >= 160


def test_keys_do_not_follow_from_a_seed() -> None:
    random.seed(7)
    first = new_key()
    random.seed(7)
    assert new_key() != first


def sealed(secret: str) -> str:
    """`secret` as a key: with its CRC-32 as six digits of base 62."""
    number = zlib.crc32(secret.encode())
    return f"mk_{secret}{''.join(BASE62[number // 62**power % 62] for power in reversed(range(6)))}"


def test_the_checksum_is_the_crc_32_of_the_random_characters_in_base62() -> None:
    assert is_well_formed(KEY)
    for key in (KEY, new_key()):
        assert sealed(key[3:36]) == key


@pytest.mark.parametrize("key", [KEY, new_key()], ids=["fixed", "fresh"])
def test_a_key_with_one_wrong_character_is_malformed(key: str) -> None:
    for place in range(len(key)):
        for other in string.printable.replace(key[place], "") + "é٣\0\x85":
            assert not is_well_formed(key[:place] + other + key[place + 1 :])


@pytest.mark.parametrize("key", [KEY, *(new_key() for _ in range(9))], ids=map(str, range(10)))
def test_a_key_with_two_neighbours_swapped_is_malformed(key: str) -> None:
    for place in range(len(key) - 1):
        left, right = key[place], key[place + 1]
        assert left == right or not is_well_formed(key[:place] + right + left + key[place + 2 :])


@pytest.mark.parametrize("secret", ["", "0" * 32, "0" * 34, "0" * 72, "0" * 32 + "_", "0" * 32 + "é"], ids=ascii)
def test_a_right_checksum_does_not_make_a_key_of_what_is_none(secret: str) -> None:
    assert not is_well_formed(sealed(secret))


def test_a_key_with_a_character_too_few_or_too_many_is_malformed() -> None:
    key = new_key()
    for place in range(len(key)):
        assert not is_well_formed(key[:place] + key[place + 1 :])
    for place in range(len(key) + 1):
        for more in BASE62 + " \n\r\t\0_-":
            assert not is_well_formed(key[:place] + more + key[place:])


ODD_KEYS = [
    "",
    "mk_",
    "key",
    KEY[3:],
    "MK_" + KEY[3:],
    "sk_" + KEY[3:],
    KEY.swapcase(),
    KEY + "\n",
    " " + KEY,
    KEY + KEY,
    KEY[:-1] + "é",
    "mk_" + "٣" * 39,
    "mk_" + "\ud800" * 39,
    "x" * 100_000,
    *DEMO_KEYS,
]


def test_only_the_hash_of_a_key_and_its_first_nine_characters_are_for_keeping() -> None:
    key = new_key()
    assert key_hash(key) == sha256(key.encode("ascii")).hexdigest()
    assert key_prefix(key) == key[:9]


@pytest.mark.parametrize("key", ODD_KEYS, ids=lambda key: ascii(key[:50]))
async def test_a_malformed_key_is_refused_without_the_storage(key: str) -> None:
    assert await Authenticator(Broken(), demo=False).caller(key) is None


async def test_a_key_opens_its_own_tenants_scope() -> None:
    ours, theirs = new_key(), new_key()
    storage = Storage(**stored(ours), **stored(theirs, tenant="other"))
    authenticator = Authenticator(storage, demo=False)
    for key, tenant in ((ours, "acme"), (theirs, "other"), (ours, "acme"), (theirs, "other")):
        scope = await authenticator.caller(key)
        assert scope is not None
        assert (scope.tenant_id, scope.key_id) == (tenant, 1)


async def test_an_unknown_key_opens_nothing() -> None:
    storage = Storage(**stored(new_key()))
    assert await Authenticator(storage, demo=False).caller(new_key()) is None
    assert storage.asked == 1


async def test_many_requests_with_one_key_are_one_query() -> None:
    key = new_key()
    storage = Storage(**stored(key))
    authenticator = Authenticator(storage, demo=False)
    scopes = [await authenticator.caller(key) for _ in range(100)]
    assert {scope and scope.tenant_id for scope in scopes} == {"acme"}
    assert storage.asked == 1


async def test_a_key_works_as_soon_as_it_is_made() -> None:
    key = new_key()
    storage = Storage()
    authenticator = Authenticator(storage, demo=False)
    assert await authenticator.caller(key) is None
    storage.rows = stored(key)
    assert await authenticator.caller(key) is not None


async def test_a_key_is_forgotten_after_its_time(clock: Clock) -> None:
    key = new_key()
    storage = Storage(**stored(key))
    authenticator = Authenticator(storage, demo=False, memory=1.0)
    for now, asked in ((1_000.0, 1), (1_000.5, 1), (1_000.99, 1), (1_001.0, 2), (1_001.9, 2), (1_002.0, 3)):
        clock.now = now
        assert await authenticator.caller(key) is not None
        assert storage.asked == asked


async def test_a_key_that_is_used_all_the_time_is_forgotten_too(clock: Clock) -> None:
    key = new_key()
    storage = Storage(**stored(key))
    authenticator = Authenticator(storage, demo=False, memory=1.0)
    assert await authenticator.caller(key) is not None
    storage.rows = {}
    for _ in range(9):
        clock.now += 0.1
        assert await authenticator.caller(key) is not None
    clock.now += 0.1
    assert await authenticator.caller(key) is None


async def test_the_time_that_a_look_up_takes_does_not_make_the_memory_longer(clock: Clock) -> None:
    class Slow(Storage):
        def answer(self, hashed: str) -> Row | None:
            clock.now += 0.8
            return super().answer(hashed)

    key = new_key()
    storage = Slow(**stored(key))
    authenticator = Authenticator(storage, demo=False, memory=1.0)
    asked_at = clock.now
    assert await authenticator.caller(key) is not None
    clock.now = asked_at + 1.0
    storage.rows = {}
    assert await authenticator.caller(key) is None


async def test_by_default_a_revoked_key_is_forgotten_within_two_seconds(clock: Clock) -> None:
    key = new_key()
    storage = Storage(**stored(key))
    authenticator = Authenticator(storage, demo=False)
    assert await authenticator.caller(key) is not None
    storage.rows = {}
    clock.now += 2
    assert await authenticator.caller(key) is None


class _Tenant(str):
    """A tenant's id of which a test can see whether somebody still holds it."""


async def test_no_more_keys_than_allowed_are_remembered() -> None:
    held: list[weakref.ref[_Tenant]] = []

    class Many(Storage):
        def answer(self, hashed: str) -> Row | None:
            tenant = _Tenant(hashed)
            held.append(weakref.ref(tenant))
            return found(tenant, 1)

    authenticator = Authenticator(Many(), demo=False, most=3)
    for _ in range(50):
        assert await authenticator.caller(new_key()) is not None
    gc.collect()
    assert sum(tenant() is not None for tenant in held) == 3


async def test_the_key_that_was_found_first_makes_room() -> None:
    keys = [new_key() for _ in range(4)]
    storage = Storage(**stored(*keys))
    authenticator = Authenticator(storage, demo=False, most=3)
    for key in keys:
        await authenticator.caller(key)
    assert storage.asked == 4
    for key in keys[2:]:
        await authenticator.caller(key)
    assert storage.asked == 4
    await authenticator.caller(keys[0])
    assert storage.asked == 5


async def test_an_unknown_key_takes_nobodys_place() -> None:
    key = new_key()
    storage = Storage(**stored(key))
    authenticator = Authenticator(storage, demo=False, most=1)
    await authenticator.caller(key)
    for _ in range(10):
        assert await authenticator.caller(new_key()) is None
    storage.asked = 0
    assert await authenticator.caller(key) is not None
    assert storage.asked == 0


@pytest.mark.parametrize(("key", "tenant"), [("key_tenant_a", "tenant_a"), ("key_tenant_b", "tenant_b")])
async def test_demo_keys_open_the_demo_tenants_only_when_told(key: str, tenant: str) -> None:
    storage = Storage(**{tenant: {"tenant_id": tenant, "run_limit": None, "run_window": None}})
    caller = await Authenticator(storage, demo=True).caller(key)
    assert caller is not None
    assert (caller.tenant_id, caller.key_id) == (tenant, None)
    # one that is shut out
    assert await Authenticator(Storage(), demo=True).caller(key) is None
    assert await Authenticator(Broken(), demo=False).caller(key) is None
    assert await Authenticator(Broken(), demo=True).caller(key.upper()) is None


@pytest.fixture
async def storage(database: Path | str) -> AsyncIterator[Database]:
    engine = engine_of(database)
    with engine.held():
        opened = await engine.open(load_queries(resource("sql"), engine.name))
        yield opened
        await opened.close()


async def issue(storage: Database, key: str, tenant: str) -> Row:
    def unit() -> Unit[None]:
        yield ask("create_tenant_if_missing", id=tenant, now=utc_now())

    await Unscoped(storage).write(unit())
    return await store(storage, tenant, key)


def everything_stored(database: Path | str) -> bytes:
    """All bytes of the file and of those beside it, or all rows of all tables."""
    if isinstance(database, Path):
        return b"".join(file.read_bytes() for file in database.parent.iterdir())
    with direct(database) as beside:
        return repr(beside.contents()).encode()


async def test_a_stored_key_opens_its_tenant_until_it_is_revoked(storage: Database) -> None:
    ours, theirs = new_key(), new_key()
    issued = await issue(storage, ours, "acme")
    await issue(storage, theirs, "other")
    authenticator = Authenticator(storage, demo=False, memory=0)
    for key, tenant in ((ours, "acme"), (theirs, "other")):
        scope = await authenticator.caller(key)
        assert scope is not None
        assert scope.tenant_id == tenant
    await revoke(storage, "acme", issued["id"])
    assert await authenticator.caller(ours) is None
    assert await authenticator.caller(theirs) is not None


async def test_nothing_of_a_key_but_its_prefix_is_stored(storage: Database, database: Path | str) -> None:
    key = new_key()
    await issue(storage, key, "acme")
    await Authenticator(storage, demo=False).caller(key)
    kept = everything_stored(database)
    assert key_hash(key).encode() in kept
    assert key[:9].encode() in kept
    # what is stored behind the prefix may begin as the key goes on
    assert key[:14].encode() not in kept
    assert key[9:].encode() not in kept
