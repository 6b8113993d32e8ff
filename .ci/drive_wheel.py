"""Drives an installed `agent-platform` once, from a folder that holds no source: python drive_wheel.py COMMAND."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any


def call(url: str, body: dict[str, Any] | None = None) -> Any:
    headers = {"X-API-Key": "key_tenant_a", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data=data, headers=headers), timeout=10) as answer:
        text = answer.read()
    return json.loads(text) if answer.headers["Content-Type"].endswith("json") else text


def main(command: str) -> None:
    assert not Path("service").exists()
    server = subprocess.Popen([command, "serve", "--port", "0", "--database", "wheel.db"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found is not None
        origin = found[0]
        tool = call(f"{origin}/tools", {"name": "search", "description": "Search the web"})
        agent = {"name": "runner", "role": "Assistant", "description": "Runs errands", "tool_ids": [tool["id"]]}
        call(f"{origin}/agents", agent)
        run = call(f"{origin}/agents/1/run", {"task": "Search the web", "model": "gpt-4o"})
        assert run["status"] == "completed"
        assert len(run["steps"]) == 1
        assert call(f"{origin}/runs/{run['id']}") == run
        assert len(call(f"{origin}/openapi.json")["paths"]) > 10
        for page in ("docs", "docs/swagger-ui-bundle.js", "redoc", "redoc/redoc.js", "openapi.yaml"):
            assert call(f"{origin}/{page}")
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=10)
        server.stdout.close()
    assert code == 0
    for each in ("dashboard", "alerts"):
        assert "agent_platform_runs_total" in subprocess.check_output([command, "monitoring", each], text=True)
    print("The wheel serves, runs an agent, shows its documentation and stops.")


if __name__ == "__main__":
    main(sys.argv[1])
