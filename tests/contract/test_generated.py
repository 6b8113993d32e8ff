"""Generated from the spec, for each operation: no key, another tenant's id, and every field and parameter broken in turn.

What is refused changes nothing: one service takes all of a test's operations, for to make one takes longer than to ask it.
"""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import KEY_A, KEY_B, Client
from tests.support.contract import Contract

CONTRACT = Contract()
OPERATIONS = list(CONTRACT.operations())
SECURED = [each for each in OPERATIONS if each[2]["security"]]
WITH_ID = [each for each in SECURED if "{" in each[1]]
WITH_BODY = [each for each in OPERATIONS if "requestBody" in each[2]]
WITH_PARAMETERS = [each for each in OPERATIONS if CONTRACT.parameters(each[1], each[2])]


def ids(operations: list[tuple[str, str, dict[str, Any]]]) -> list[str]:
    return [f"{method} {path}" for method, path, _ in operations]


def example_body(operation: dict[str, Any]) -> Any:
    content = next(iter(operation["requestBody"]["content"].values()))
    example = next(iter(content["examples"].values()))
    return copy.deepcopy(CONTRACT.resolve(example)["value"])


def url(path: str, number: object = 1) -> str:
    for name in ("tool_id", "agent_id", "run_id", "key_id"):
        path = path.replace(f"{{{name}}}", str(number))
    return path


async def fill(client: Client) -> None:
    """Tenant a's tool, agent, run and key, each with the id 1."""
    for path in ("/tools", "/agents", "/agents/{agent_id}/run", "/keys"):
        method = "post"
        operation = CONTRACT.spec["paths"][path][method]
        await client.json(method, url(path), json=example_body(operation))


async def test_the_examples_of_the_spec_are_what_the_service_answers(client: Client) -> None:
    await fill(client)
    changing = {"created_at", "updated_at", "duration_ms"}
    for path, example in (("/tools/1", "Tool"), ("/agents/1", "Agent"), ("/runs/1", "Run"), ("/runs", "RunPage")):
        answer = await client.json("GET", path)
        shown = copy.deepcopy(CONTRACT.spec["components"]["examples"][example]["value"])
        for each in (answer, shown):
            for item in each.get("items", [each]):
                for name in changing & set(item):
                    del item[name]
        assert answer == shown


def plain(body: bytes, number: int) -> bytes:
    """The body without what may differ: the id in the path and the request id."""
    problem = json.loads(body)
    del problem["request_id"]
    return json.dumps(problem).encode().replace(f"/{number}".encode(), b"/N")


async def test_without_a_key_every_operation_is_401(client: Client) -> None:
    for method, path, _ in SECURED:
        for headers in ({}, {"X-API-Key": "nobody"}, {"X-API-Key": ""}):
            response = await client.request(method, url(path), headers=headers, data=b"not even read")
            assert response.status == 401, f"{method} {path}"


@pytest.mark.parametrize(("method", "path", "operation"), WITH_ID, ids=ids(WITH_ID))
async def test_another_tenants_id_is_the_404_of_an_unknown_one(
    client: Client, method: str, path: str, operation: dict[str, Any]
) -> None:
    await fill(client)
    arguments = {"json": example_body(operation)} if "requestBody" in operation else {}
    if "tool_ids" in arguments.get("json", {}):
        arguments["json"]["tool_ids"] = []
    answers = []
    for number in (1, 999_999):
        response = await client.request(method, url(path, number), headers=KEY_B, **arguments)
        assert response.status == 404
        headers = {name: value for name, value in response.headers.items() if name not in ("X-Request-ID", "Date")}
        headers.pop("Content-Length")
        answers.append((plain(await response.read(), number), headers))
    assert answers[0] == answers[1]
    assert (await client.request(method, url(path), headers=KEY_A, **arguments)).status < 300


def broken_values(schema: dict[str, Any]) -> Iterator[Any]:
    """Values that the schema refuses: wrong types, and each of its limits passed."""
    schema = CONTRACT.resolve(schema)
    candidates: list[Any] = [7, 1.5, True, "text", [], ["text"], {}, {"a": 1}]
    candidates += [None, "", " ", "\t\n", "\u3000", "nul\0", [0], [-1], [2**53], [1, 1], [1.5], [True], ["1"], [None], [[]]]
    if "maxLength" in schema:
        candidates.append("x" * (schema["maxLength"] + 1))
    if "maxItems" in schema:
        candidates.append(list(range(1, schema["maxItems"] + 2)))
    validator = CONTRACT.validator(schema)
    for candidate in candidates:
        if not validator.is_valid(candidate):
            yield candidate


async def test_a_body_with_any_one_field_broken_is_400_and_changes_nothing(client: Client) -> None:
    await fill(client)
    for method, path, operation in WITH_BODY:
        before = [await client.json("GET", each) for each in ("/tools", "/agents", "/runs", "/keys", "/audit")]
        schema = CONTRACT.whole(next(iter(operation["requestBody"]["content"].values()))["schema"])
        base = example_body(operation)
        bodies: list[tuple[str, Any]] = [("#/nobody~1knows~0this%20", base | {"nobody/knows~this ": 1})]
        for name, field in schema["properties"].items():
            bodies += [(f"#/{name}", base | {name: value}) for value in broken_values(field)]
            if name in schema.get("required", []):
                bodies.append((f"#/{name}", {key: value for key, value in base.items() if key != name}))
        bodies += [("#", value) for value in ([], "text", 7, None, True)]
        assert len(bodies) > 20
        for pointer, body in bodies:
            headers = KEY_A | {"Content-Type": "application/json"}
            response = await client.request(method, url(path), data=json.dumps(body), headers=headers)
            assert response.status == 400, (method, path, body)
            errors = (await response.json())["errors"]
            assert any(error["pointer"] == pointer or error["pointer"].startswith(f"{pointer}/") for error in errors), (
                body,
                errors,
            )
        assert [await client.json("GET", each) for each in ("/tools", "/agents", "/runs", "/keys", "/audit")] == before


def broken_texts(schema: dict[str, Any]) -> list[str]:
    """Texts that are no value of the schema, as they would stand in a URL."""
    schema = CONTRACT.resolve(schema)
    texts = ["%00", "%20", "%E3%80%80"]
    if schema["type"] == "integer":
        texts += [
            "x",
            "1_0",
            "+1",
            "01",
            "1.0",
            "1e1",
            "0x1",
            "%D9%A1",
            "%EF%BC%91",
            "%201",
            "-1",
            "9007199254740992",
            "9" * 40,
        ]
        texts += ["0"] if schema["minimum"] else []
    elif schema["type"] == "boolean":
        texts += ["True", "1", "yes", "tru"]
    elif "enum" in schema:
        texts += ["none", schema["enum"][0].upper()]
    elif schema.get("format") == "date-time":
        texts += ["2026-11-22", "2026-02-30T00:00:00Z", "2026-11-22T10:00:00", "2026-11-22T10:00:00+02:00", "now"]
        texts += ["0001-01-01T00:00:00%2B23:59", "2026-11-22T24:00:00Z", "2026-11-22T10:00:00.1234567Z", "2026-11-22T10:00Z"]
    elif schema.get("format") == "date":
        texts += ["2026-11-22T00:00:00Z", "2026-02-30", "0000-01-01", "2026-1-1", "20261122", "2026-W48-1", "today"]
    if "maxLength" in schema:
        texts.append("x" * (schema["maxLength"] + 1))
    return texts


async def test_any_one_parameter_broken_is_400_and_is_named(client: Client) -> None:
    await fill(client)
    for method, path, operation in WITH_PARAMETERS:
        arguments = {"json": example_body(operation)} if "requestBody" in operation else {}
        for parameter in CONTRACT.parameters(path, operation):
            for text in broken_texts(parameter["schema"]):
                in_path = parameter["in"] == "path"
                target = url(path, text) if in_path else f"{url(path)}?{parameter['name']}={text}"
                response = await client.request(method, yarl(target), headers=KEY_A, **arguments)
                if in_path and response.status == 404:
                    continue
                assert response.status == 400, (method, target)
                assert parameter["name"] in [error["parameter"] for error in (await response.json())["errors"]], (
                    method,
                    target,
                )


async def test_unknown_empty_and_repeated_parameters_are_400(client: Client) -> None:
    await fill(client)
    for method, path, operation in OPERATIONS:
        arguments = {"json": example_body(operation)} if "requestBody" in operation else {}
        queries = ["unknown=1", "unknown", "=", "=1", "Limit=1"]
        for parameter in CONTRACT.parameters(path, operation):
            if parameter["in"] == "query":
                value = parameter.get("example", "abc")
                queries += [
                    f"{parameter['name']}=",
                    parameter["name"],
                    f"{parameter['name']}={value}&{parameter['name']}={value}",
                ]
        for query in queries:
            response = await client.request(method, yarl(f"{url(path)}?{query}"), headers=KEY_A, **arguments)
            assert response.status == 400, (method, path, query)
            assert (await response.json())["errors"][0]["parameter"] == query.split("=")[0]


def yarl(target: str) -> Any:
    """The URL to the letter: without it the client would tidy it up first."""
    from yarl import URL

    return URL(target, encoded=True)
