"""PostgreSQL's migrators: several at once, and those that are killed. tests/attacks kills those of the embedded engine."""

import os
import random
import re
import subprocess
import sys
from collections import Counter

import pytest

from service.resources import resource
from service.storage.engines import engine_of
from tests.support import postgresql
from tests.support.direct import direct
from tests.support.process import clean_environment
from tests.support.schema import schema

pytestmark = pytest.mark.skipif(postgresql.server() is None, reason=postgresql.HOW_TO_RUN)

FOLDER = resource("migrations")
PROCESSES = 4
KILLS = 6


@pytest.fixture
def fresh() -> str:
    return postgresql.create(f"agent_platform_fresh_{os.getpid()}")


def recorded(url: str) -> tuple[list[str], Counter[str]]:
    """The migrations that count as applied, and how often yoyo noted that it applied each."""
    with direct(url) as beside:
        if beside.run("select to_regclass('_yoyo_migration')") == [(None,)]:
            return [], Counter()
        applied = [name for (name,) in beside.run("select migration_id from _yoyo_migration order by 1")]
        if beside.run("select to_regclass('_yoyo_log')") == [(None,)]:
            return applied, Counter()
        noted = beside.run("select migration_id from _yoyo_log where operation = 'apply'")
        return applied, Counter(name for (name,) in noted)


def test_processes_that_migrate_at_once_apply_each_migration_once(fresh: str) -> None:
    command = [sys.executable, "-m", "service", "migrate", "--database", fresh]
    processes = [
        subprocess.Popen(command, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    said = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * PROCESSES, said
    known = sorted(engine_of(fresh).known(FOLDER))
    assert sorted(re.findall(r"\d{4}_\w+", " ".join(out for out, _ in said))) == known
    assert recorded(fresh) == (known, Counter(known))
    engine_of(fresh).check(FOLDER)


def migrator(url: str, number: int, seconds: float) -> subprocess.CompletedProcess[str]:
    """Runs a migrator that is killed; see migrator.py."""
    command = [sys.executable, "-m", "tests.storage.migrator", url, str(number), str(seconds)]
    return subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=60)


def test_a_migrator_that_is_killed_is_finished_by_the_next_start(fresh: str) -> None:
    ended = migrator(fresh, 0, 0)
    assert ended.returncode == 0, ended
    whole, statements, known = schema(fresh), int(ended.stdout), sorted(engine_of(fresh).known(FOLDER))
    assert statements > 50
    seed = random.randrange(2**32)
    choice, cut = random.Random(seed), 0
    for _ in range(KILLS):
        url = postgresql.create(f"agent_platform_fresh_{os.getpid()}")
        at, after = choice.randrange(1, statements), choice.choice((0, choice.uniform(0, 0.01)))
        ended = migrator(url, at, after)
        said = f"seed {seed}, statement {at} of {statements}, {after} s: {ended}"
        assert ended.returncode in (0, -9), said
        before, _ = recorded(url)
        cut += before != known
        # it may be at work still: what it began on the server goes on until the server notices
        applied = engine_of(url).migrate(FOLDER)
        assert set(applied) >= set(known) - {*before}, said
        assert recorded(url)[0] == known, said
        assert schema(url) == whole, said
    # most are killed in the middle of their work, or this shows nothing
    assert cut >= KILLS / 2, f"seed {seed}"
