"""The command line, in processes of its own, and questions to a server that it started."""

import re
import subprocess
import sys
import tempfile
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.forked import Forked
from tests.support.process import clean_environment

COMMAND = (sys.executable, "-m", "service")
KEY = re.compile(r"mk_[0-9A-Za-z]{39}")


def agent_platform(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs one command to its end."""
    environment = clean_environment(**variables)
    if any(name.startswith("PYTHON") for name in variables):
        # they are for an interpreter that begins
        return subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=20)
    with tempfile.TemporaryFile() as errors:
        process = Forked("service.__main__", arguments, environment, errors)
        with process.stdout as output:
            printed = output.read().decode()
        code = process.wait(20)
        errors.seek(0)
        return subprocess.CompletedProcess(arguments, code, printed, errors.read().decode())


def done(*arguments: str, **variables: str) -> str:
    """What a command prints that must succeed and has nothing to complain about."""
    ended = agent_platform(*arguments, **variables)
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    return ended.stdout


def refusal(code: int, *arguments: str, **variables: str) -> str:
    """The one line that a command leaves which ends with the exit code `code`."""
    ended = agent_platform(*arguments, **variables)
    assert ended.returncode == code, ended
    assert ended.stdout == ""
    assert ended.stderr.startswith("agent-platform: ")
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.endswith("\n")
    return ended.stderr.removeprefix("agent-platform: ").strip()


def create_key(database: Path | str, tenant: str = "acme", *options: str) -> tuple[str, str]:
    """A new key and its id."""
    ended = agent_platform("keys", "create", "--tenant", tenant, "--database", str(database), *options)
    assert ended.returncode == 0, ended
    found = re.fullmatch(rf"Key (\d+) of the tenant {tenant}, for [a-z, ]+\. It is shown this once\.\n", ended.stderr)
    assert found is not None
    assert KEY.fullmatch(ended.stdout.removesuffix("\n"))
    return ended.stdout.strip(), found[1]


def status(origin: str, path: str, key: str | None = None) -> int:
    return ask(origin, path, key)[0]


def ask(origin: str, path: str, key: str | None = None) -> tuple[int, bytes]:
    port = urlsplit(origin).port
    with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        connection.request("GET", path, headers={} if key is None else {"X-API-Key": key})
        response = connection.getresponse()
        return response.status, response.read()
