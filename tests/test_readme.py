"""The README's tour, configuration and commands are run as they stand, so that it never lies."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.__main__ import cli
from service.storage.engines import engine_of
from tests.benchmarks.growing import growing
from tests.support import postgresql
from tests.support.command import agent_platform
from tests.support.database import migrated
from tests.support.process import Service
from tests.support.store import Store

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(sh|json)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def blocks(title: str) -> list[tuple[str, str]]:
    """(language, text) of each block of the section, from top to bottom."""
    return [(match[1], match[2]) for match in BLOCK.finditer(section(title))]


@pytest.fixture
def service(database: Path | str) -> Iterator[Service]:
    with Service(database) as running:
        yield running


@pytest.fixture
def three_workers(shared_database: str) -> Iterator[Service]:
    """Three processes that share a database, and a limiter that nobody else has counted in."""
    limiter = Store()
    limiter.start()
    with Service(shared_database, "--workers", "3", "--limiter", limiter.url) as running:
        yield running
    limiter.kill()


def shell(command: str, folder: Path | None = None, **environment: str) -> str:
    program = ["bash", "-euo", "pipefail", "-c", command]
    own = os.environ | environment
    done = subprocess.run(program, capture_output=True, text=True, timeout=30, env=own, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_shown(answer: str) -> str:
    """The answer with what differs from run to run left out, as the README shows it."""
    answer = re.sub(r'("(?:created_at|updated_at)":)"[^"]*"', r'\1"…"', answer)
    answer = re.sub(r'("request_id":)"[^"]*"', r'\1"…"', answer)
    return re.sub(r'("duration_ms":)\d+', r"\1…", answer)


def test_the_tour_can_be_pasted_and_answers_what_it_shows(service: Service) -> None:
    _take_the_tour(service)


def test_the_tour_is_the_same_with_three_workers(three_workers: Service) -> None:
    _take_the_tour(three_workers)


def _take_the_tour(service: Service) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed; the tour is made of it.")
    answers: list[str] = []
    shown = 0
    for language, text in blocks("A tour"):
        if language == "sh":
            answers.append(shell(text.replace("http://127.0.0.1:8000", service.origin)))
        else:
            assert as_shown(answers[-1]) == text.strip()
            shown += 1
    assert shown == 5
    assert len(answers) == 12
    history, found, updates, retries, rate, deleted = (answers[number] for number in (3, 4, 5, 9, 10, 11))
    assert history.count('"id":1,"agent_id":1') == 3
    assert found.count('"name":"web-search"') == 2
    assert updates.split() == ["412", "200"]
    assert re.sub(r"t=\d+", "t=…", retries).split() == [
        *("Content-Location:", "/runs/2", "RateLimit:", '"run";r=3;t=…'),
        *("Content-Location:", "/runs/2", "Idempotency-Replayed:", "true", "RateLimit:", '"run";r=3;t=…'),
    ]
    assert json.loads(answers[7])["rule"] == "ignore_instructions"
    assert rate.split()[:4] == ["200", "200", "200", "429"]
    assert "Retry-After:" in rate
    assert '"status":409' in deleted
    assert "204" in deleted
    assert deleted.count('"agent_name":"runner"') == 1


def test_the_commands_for_keys_can_be_pasted(service: Service) -> None:
    (language, text), *rest = blocks("Keys and tenants")
    assert language == "sh"
    assert rest == []
    printed = ours(text, AGENT_PLATFORM_DATABASE=str(service.database))
    assert re.search(r"^mk_[0-9A-Za-z]{39}$", printed, re.MULTILINE)
    assert "Revoked the key 1" in printed
    # the one that was put in its place
    assert re.search(r"^acme +1 +50 runs in 60 s ", printed, re.MULTILINE)


def test_running_it_for_others_can_be_pasted_up_to_a_rotated_key(tmp_path: Path) -> None:
    """From nothing to a tenant with a key, a dashboard, a backup that was restored, and a rotated key."""
    walk = section("Run it for others").partition("### From nothing to a key")[2].partition("\n### ")[0]
    begin, *texts = [match[2] for match in BLOCK.finditer(walk)]
    migrate, serve = begin.strip().splitlines()
    database = tmp_path / "agent-platform.db"

    def pasted(text: str) -> str:
        return ours(text, folder=tmp_path, AGENT_PLATFORM_DATABASE=str(database))

    assert "Applied 0001_tenants" in pasted(f"{migrate}\n")
    with Service(database, *serve.split()[2:]) as service:
        printed = [pasted(text.replace("http://127.0.0.1:8000", service.origin)) for text in texts]
    tenant, dashboard, backup, rotated = printed
    assert "The limit of the tenant acme: 50 runs in 60 s." in tenant
    assert '{"tenant_id":"acme","key_id":1}' in tenant
    assert 'route="/whoami"' in dashboard
    assert json.loads((tmp_path / "dashboard.json").read_text())["panels"]
    assert "alert:" in (tmp_path / "alerts.yaml").read_text()
    assert re.search(r"^acme +1 +50 runs in 60 s ", backup, re.MULTILINE)
    assert "problem" not in backup
    assert '{"tenant_id":"acme","key_id":2}' in rotated
    keys = [(tmp_path / name).read_text().strip() for name in ("acme.key", "acme.new-key")]
    assert [line.split()[1] for line in rotated.splitlines()[-2:]] == [f"{key[:9]}…" for key in keys]


@pytest.mark.parametrize("title", ["Usage, and how long runs are kept", "A tenant leaves, or comes", "Backups"])
def test_the_other_commands_for_a_file_can_be_pasted(title: str, tmp_path: Path) -> None:
    database = migrated(tmp_path / "agent-platform.db")
    assert agent_platform("tenants", "create", "acme", "--database", str(database)).returncode == 0
    texts = [text for language, text in blocks(title) if language == "sh" and "psql" not in text and "createdb" not in text]
    assert len(texts) == (2 if title == "Backups" else 1)
    for text in texts:
        ours(text, folder=tmp_path, AGENT_PLATFORM_DATABASE=str(database))
    assert "acme" in agent_platform("tenants", "list", "--database", str(database)).stdout


def ours(text: str, folder: Path | None = None, **environment: str) -> str:
    """Runs commands of ours as a shell that has them would."""
    text = re.sub(r"^agent-platform ", f"{sys.executable} -m service ", text, flags=re.MULTILINE)
    return shell(text, folder, PYTHONPATH=str(ROOT), **environment)


def test_the_move_to_several_processes_can_be_pasted(tmp_path: Path, shared_database: str) -> None:
    ((_, text),) = blocks("More than one machine")
    install, move, serve = text.strip().splitlines()
    extras = re.findall(r"\w+", install.partition("[")[2])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(extras) <= set(project["optional-dependencies"])
    file = migrated(tmp_path / "agent-platform.db")
    move = move.replace("agent-platform.db", str(file)).replace("postgresql://localhost/agent_platform", shared_database)
    assert f"Moved 0 tenants with 0 rows to {engine_of(shared_database)}" in ours(move)
    limiter = Store()
    limiter.start()
    options = serve.replace("postgresql://localhost/agent_platform", shared_database).replace(
        "redis://localhost", limiter.url
    )
    with Service(shared_database, *options.split()[2:]) as service:
        assert shell(f"curl -s {service.origin}/ready") == '{"status":"ready"}'
    limiter.kill()


def test_the_two_commands_are_there_to_the_letter() -> None:
    assert [text.strip() for _, text in blocks("Two commands")] == [
        "pip install . && agent-platform serve",
        "pip install '.[test]' && pytest -q",
    ]


def test_the_table_of_options_is_the_command_lines() -> None:
    rows = [line for line in section("Configuration").splitlines() if line.startswith("| `--")]
    table = {}
    for row in rows:
        option, variable, default, _ = (cell.strip() for cell in row.strip("|").split("|"))
        table[option.strip("`")] = (variable.strip("`"), default.strip("`"))
    real: dict[str, tuple[str, str]] = {}
    for command in commands(cli):
        for parameter in command.params:
            if getattr(parameter, "envvar", None):
                name = "/".join([*parameter.opts, *parameter.secondary_opts])
                default = (
                    "" if parameter.default is None or not isinstance(parameter.default, int | str) else parameter.default
                )
                real[name] = (str(parameter.envvar), str(default))
    real["--demo/--no-demo"] = (real["--demo/--no-demo"][0], "on loopback only")
    assert table == real


def commands(group: Any) -> Iterator[Any]:
    for command in group.commands.values():
        if hasattr(command, "commands"):
            yield from commands(command)
        else:
            yield command


LATEST = "tests/benchmarks/latest"
BENCHMARKS = {
    "Usage, and how long runs are kept": ["pruning", "pruning_postgresql"],
    "More than one machine": ["moving"],
    "How fast, and what it costs": ["table", "earlier"],
    "How fast on PostgreSQL, and what it carries": ["postgresql", "growing"],
}


@pytest.mark.parametrize("title", BENCHMARKS)
def test_the_tables_of_figures_are_the_last_benchmarks(title: str) -> None:
    shown = [part.partition("<!-- end -->")[0].strip() for part in section(title).split("a test holds them equal -->\n")[1:]]
    files = [ROOT / LATEST / f"{name}.md" for name in BENCHMARKS[title]]
    assert shown == [file.read_text(encoding="utf-8").strip() for file in files]


def test_what_growing_is_reckoned_from_is_what_was_measured() -> None:
    facts = json.loads((ROOT / LATEST / "postgresql.json").read_text(encoding="utf-8"))
    assert growing(facts) == (ROOT / LATEST / "growing.md").read_text(encoding="utf-8").strip()


@pytest.mark.parametrize("title", [title for title in BENCHMARKS if title.startswith("How fast")])
def test_the_benchmarks_can_be_called_as_the_readme_says(title: str) -> None:
    ((_, command),) = blocks(title)
    install, _, start = command.strip().partition(" && ")
    assert install == "pip install '.[test,bench]'"
    # the whole takes minutes; that it can be called with what it needs at hand is what a test can tell
    command = [sys.executable, *start.split()[1:], "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout


@pytest.mark.skipif(postgresql.server() is None, reason=postgresql.HOW_TO_RUN)
def test_a_move_can_be_measured_as_the_readme_says(tmp_path: Path) -> None:
    assert "`python -m tests.benchmarks.moving` (`--quick`" in section("More than one machine")
    command = [sys.executable, "-m", "tests.benchmarks.moving", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert re.match(r"10,000 runs of 10 tenants, [\d,]+ rows in all: .*all three have the checksum", done.stdout)
    assert (tmp_path / "moving.md").read_text() == done.stdout.removesuffix("\n")


def test_every_file_that_the_readme_names_is_there() -> None:
    named = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).exists()] == []
