"""The units, the container's file and the commands that the README shows for running the service for others."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from service.__main__ import cli
from service.workers import _ENDS
from tests.support.command import done, status
from tests.support.database import migrated
from tests.support.nginx import free_port
from tests.support.process import ROOT, Service, clean_environment
from tests.support.shown import COMMANDS, FILES, SECTION

UNITS = "/etc/systemd/system/"
SERVE, BACKUP = "agent-platform-serve.service", "agent-platform-backup.service"
INSTALLED, STATE = "/opt/agent-platform/bin/agent-platform", "/var/lib/agent-platform"

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="This wants Debian's systemd.")


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """The command line as if it had been installed."""
    file = tmp_path / "agent-platform"
    file.write_text(f'#!/bin/sh\nexec {sys.executable} -m service "$@"\n')
    file.chmod(0o755)
    return file


@pytest.fixture
def units(tmp_path: Path, command: Path) -> Path:
    """A folder with the units, with a command in them that is there."""
    folder = tmp_path / "units"
    for name, text in FILES.items():
        if name.startswith(UNITS):
            file = folder / name.removeprefix(UNITS)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.replace(INSTALLED, str(command)))
    return folder


def systemd_analyze(*arguments: str, units: Path) -> subprocess.CompletedProcess[str]:
    # the folder alone would leave out the system's own units, and with them what these come after
    environment = os.environ | {"SYSTEMD_UNIT_PATH": f"{units}:"}
    return subprocess.run(["systemd-analyze", *arguments], env=environment, capture_output=True, text=True, timeout=20)


@needs_systemd
def test_systemd_understands_every_line_of_the_units(units: Path) -> None:
    names = sorted(str(each) for each in units.iterdir() if each.is_file())
    assert len(names) == 3
    verified = systemd_analyze("verify", *names, units=units)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


@needs_systemd
@pytest.mark.parametrize("unit", [SERVE, BACKUP])
def test_a_unit_may_do_no_more_than_it_must(unit: str, units: Path) -> None:
    most = re.findall(r"at most (\d)\.(\d) of 10", " ".join(SECTION.split()))
    assert len(most) == 1
    bound = "--threshold=" + "".join(most[0])
    judged = systemd_analyze("security", "--offline=true", "--no-pager", bound, str(units / unit), units=units)
    assert judged.returncode == 0, judged.stdout
    assert "Overall exposure level" in judged.stdout


def setting(unit: str, name: str) -> str:
    (found,) = re.findall(rf"^{name}=(.*)$", FILES[UNITS + unit], re.MULTILINE)
    return found


def words(line: str, command: Path, state: Path) -> list[str]:
    """The words that systemd makes of a command line, its escapes undone and its paths replaced."""
    line = line.replace("$$", "$").replace("%%", "%")
    return [word.replace(INSTALLED, str(command)).replace(STATE, str(state)) for word in shlex.split(line)]


def test_the_unit_serves_without_demo_keys_and_has_the_time_that_a_stop_takes(tmp_path: Path) -> None:
    program, subcommand, *options = shlex.split(setting(SERVE, "ExecStart"))
    assert (program, subcommand) == (INSTALLED, "serve")
    with Service(tmp_path / "served.db", *options) as service:
        assert status(service.origin, "/ready") == 200
        assert status(service.origin, "/whoami", "key_tenant_a") == 401
        assert not any("Demo" in line for line in service.announced)
    assert int(setting(SERVE, "TimeoutStopSec")) > _ENDS
    assert int(setting(SERVE, "RestartPreventExitStatus")) == 2


def test_the_backups_of_two_weeks_are_kept(tmp_path: Path, command: Path) -> None:
    state = tmp_path / "state"
    backups = state / "backups"
    backups.mkdir(parents=True)
    done("tenants", "create", "acme", "--database", str(migrated(state / "agent-platform.db")))
    for days in (13, 16):
        file = backups / f"{days}.db"
        file.touch()
        then = datetime.now(UTC).timestamp() - days * 86_400
        os.utime(file, (then, then))
    environment = clean_environment(AGENT_PLATFORM_DATABASE=str(state / "agent-platform.db"))
    for name in ("ExecStart", "ExecStartPost"):
        line = words(setting(BACKUP, name), command, state)
        ran = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=20)
        assert ran.returncode == 0, ran.stderr
    kept = {file.name for file in backups.glob("*.db")}
    assert "13.db" in kept
    (made,) = kept - {"13.db"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d{6}\.db", made)
    assert "acme" in done("tenants", "list", "--database", str(backups / made))


def test_what_is_to_be_typed_is_shell_and_its_commands_are_ours() -> None:
    typed = "\n".join(COMMANDS)
    subprocess.run(["bash", "-n", "-c", typed], check=True, timeout=10)
    called = re.findall(r"(?:^|/)agent-platform ([a-z]+)(?: ([a-z]+))?", typed, re.MULTILINE)
    assert len(called) > 10
    for name, more in called:
        command = cli.commands[name]
        assert not hasattr(command, "commands") or more in command.commands, (name, more)
    for unit in re.findall(r"agent-platform-\w+\.\w+", typed):
        assert UNITS + unit in FILES
    extras = re.findall(r"'\.\[([\w,]+)\]'", FILES["Containerfile"] + typed)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(",".join(extras).split(",")) == {"postgresql", "redis"} <= set(project["optional-dependencies"])


def instructions() -> Iterator[tuple[str, str]]:
    """What the container's file says, line by line."""
    for line in FILES["Containerfile"].replace("\\\n", " ").splitlines():
        if line:
            instruction, _, rest = line.partition(" ")
            yield instruction, " ".join(rest.split())


def said(instruction: str) -> list[str]:
    return [rest for name, rest in instructions() if name == instruction]


def test_the_container_is_of_one_version_and_runs_as_nobody_in_particular() -> None:
    bases = {rest.removesuffix(" AS build") for rest in said("FROM")}
    assert len(bases) == 1
    assert re.fullmatch(r"docker\.io/library/python:\d+\.\d+\.\d+-slim-\w+", bases.pop())
    *_, stage = [place for place, (name, _) in enumerate(instructions()) if name == "FROM"]
    assert [name for name, _ in list(instructions())[stage:]].count("USER") == 1
    (user,) = said("USER")
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)
    made = " ".join(said("RUN"))
    assert f"--uid {user.partition(':')[0]} " in made
    for flag, part in zip(("owner", "group"), user.split(":"), strict=True):
        assert f"--{flag}={part} " in made
    assert said("VOLUME") == said("WORKDIR")[1:] == [STATE]


def test_the_container_is_built_from_all_that_a_wheel_holds_and_nothing_else() -> None:
    copied = set()
    for rest in said("COPY"):
        *sources, target = rest.split()
        if sources[0].startswith("--from=build"):
            assert sources[1:] == [target] == ["/opt/agent-platform"]
            continue
        assert len(sources) > 1 or target == f"./{sources[0]}"
        copied |= set(sources)
    assert [path for path in copied if not (ROOT / path).exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert copied == {*wheel["packages"], *wheel["force-include"], project["project"]["readme"], "pyproject.toml"}


def test_what_the_container_starts_serves_and_is_found_healthy(tmp_path: Path) -> None:
    (entry,), (subcommand, *options) = map(json.loads, (*said("ENTRYPOINT"), *said("CMD")))
    assert (entry, subcommand) == ("agent-platform", "serve")
    variables = dict(each.split("=", 1) for each in shlex.split(said("ENV")[0]))
    assert variables.pop("PATH").split(":") == [os.path.dirname(INSTALLED), "$PATH"]
    assert Path(variables.pop("AGENT_PLATFORM_DATABASE")).parent == Path(STATE)
    assert variables == {"AGENT_PLATFORM_HOST": "0.0.0.0"}
    (check,) = said("HEALTHCHECK")
    _, *probe = json.loads(check.partition(" CMD ")[2])
    assert probe[0] == "-c"
    assert ":8000/health" in probe[1]
    assert said("EXPOSE") == ["8000"]

    def is_healthy(port: int | None) -> bool:
        asked = [sys.executable, "-c", probe[1].replace(":8000/", f":{port}/")]
        return subprocess.run(asked, capture_output=True, timeout=10).returncode == 0

    with Service(tmp_path / "served.db", "--host", variables["AGENT_PLATFORM_HOST"], *options) as service:
        assert is_healthy(urlsplit(service.origin).port)
        assert status(service.origin, "/whoami", "key_tenant_a") == 401
    assert not is_healthy(free_port())
