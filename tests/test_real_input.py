"""What people really write: tools, agents and tasks from ../shared/data drive the running platform."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.config import Config
from tests.conftest import KEY_A, Client, Serve

DATA = Path(__file__).parents[2] / "shared" / "data"
LONGEST_DESCRIPTION = 2000


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


async def everything(client: Client, path: str) -> list[dict[str, Any]]:
    """All items of a list, followed by its cursor."""
    items, query = [], "limit=100"
    while True:
        page = await client.json("GET", f"{path}?{query}")
        items += page["items"]
        if page["next"] is None:
            assert len(items) == page["total"]
            return items
        query = f"limit=100&cursor={page['next']}"


@pytest.mark.skipif(not DATA.is_dir(), reason="The data is not there: it stands in ../shared/data, beside the checkout.")
async def test_the_platform_bears_what_people_really_write(serve: Serve, config: Config) -> None:
    client = await serve(replace(config, rate_limit=1000))
    tools = lines("tools.jsonl")
    tool_ids = [(await client.json("POST", "/tools", json=tool))["id"] for tool in tools]

    agents, refused = [], 0
    for number, agent in enumerate(lines("agents.jsonl")):
        body = agent | {"tool_ids": [tool_ids[number % len(tool_ids)], tool_ids[(number + 7) % len(tool_ids)]]}
        response = await client.post("/agents", json=body, headers=KEY_A)
        answer = await response.json()
        if len(agent["description"]) > LONGEST_DESCRIPTION:
            assert response.status == 400
            assert answer["errors"] == [{"pointer": "#/description", "detail": "Must have at most 2000 characters."}]
            refused += 1
        else:
            assert response.status == 201, answer
            assert {name: answer[name] for name in agent} == agent
            agents.append(answer)

    runs = []
    for number, task in enumerate(lines("tasks.jsonl")):
        agent = agents[number % len(agents)]
        run = await client.json("POST", f"/agents/{agent['id']}/run", json={"task": task["task"], "model": "gpt-4o"})
        assert run["task"] == task["task"]
        assert task["task"] in run["prompt"]
        runs.append(run)

    assert await everything(client, "/tools") == [await client.json("GET", f"/tools/{number}") for number in tool_ids]
    assert [
        {"name": tool["name"], "description": tool["description"]} for tool in await everything(client, "/tools")
    ] == tools
    assert await everything(client, "/agents") == agents
    assert await everything(client, "/runs") == runs[::-1]
    of_first = [run for run in runs[::-1] if run["agent_id"] == agents[0]["id"]]
    assert await everything(client, f"/agents/{agents[0]['id']}/runs") == of_first

    completed = sum(run["status"] == "completed" for run in runs)
    called = sum(bool(run["steps"]) for run in runs)
    # of the agents one has a description that is too long, and one of the tasks asks for a tool
    assert (len(tools), len(agents), refused, len(runs), completed, called) == (37, 212, 1, 252, 252, 1)
