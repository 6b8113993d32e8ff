"""What a run costs more where its limit is shared: python -m tests.benchmarks.limiters [redis://HOST/NUMBER]

Two real servers that differ in `--limiter` alone take a run each in turn, over one connection each.
"""

import http.client
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from tests.conftest import KEY_A
from tests.support.database import migrated
from tests.support.http import AGENT
from tests.support.process import Service

RUNS = 3_000
WARM = 300


class Caller:
    """One connection that creates an agent and runs it."""

    def __init__(self, origin: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(origin).netloc)
        self._agent = self.post("/agents", AGENT)["id"]

    def post(self, path: str, body: dict[str, str]) -> dict[str, int]:
        self._connection.request("POST", path, json.dumps(body), KEY_A | {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        text = answer.read()
        assert answer.status < 300, text
        made: dict[str, int] = json.loads(text)
        return made

    def run(self) -> float:
        """How many milliseconds a run takes."""
        began = time.perf_counter()
        self.post(f"/agents/{self._agent}/run", {"task": "Say hello", "model": "gpt-4o"})
        return (time.perf_counter() - began) * 1000


def main(url: str) -> None:
    options = ("--rate-limit", "1000000", "--log-level", "warning")
    with tempfile.TemporaryDirectory() as folder:
        files = [migrated(Path(folder) / f"{name}.db") for name in ("local", "shared")]
        with Service(files[0], *options) as local, Service(files[1], *options, "--limiter", url) as shared:
            callers = [Caller(local.origin), Caller(shared.origin)]
            took = [[caller.run() for caller in callers] for _ in range(WARM + RUNS)][WARM:]
    alone, together = (median(each) for each in zip(*took, strict=True))
    print(f"median of {RUNS:,} runs each: local {alone:.3f} ms, shared {together:.3f} ms, {together - alone:.3f} ms more")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "redis://127.0.0.1:6379/9")
