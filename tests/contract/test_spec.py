"""openapi.yaml itself: complete, true to the handlers, and everything that the contract asks of it."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from openapi_spec_validator import validate
from prometheus_client import CollectorRegistry

import service.handlers
from service.app import SpecError, make_app
from service.config import Config
from service.execution.models import MockModel, ModelRegistry
from service.pages import add_metrics, add_pages
from service.resources import resource
from tests.support.contract import PAGES, PROBLEM, Contract

CONTRACT = Contract()
OPERATIONS = list(CONTRACT.operations())
IDS = [f"{method} {path}" for method, path, _ in OPERATIONS]
OPEN = {"/", "/health", "/ready"}
# what the page does not have, for it came later
LATER = ("/keys", "/keys/{key_id}", "/keys/{key_id}/rotate", "/audit", "/usage")
API_PAGE = Path(__file__).parents[3] / "shared" / "api.md"


# which requests can be repeated, and which ask for a version
CONDITIONAL = {
    **{("post", path): {"Idempotency-Key"} for path in ("/tool", "/agent", "/agents/{agent_id}/run")},
    **{("get", path): {"If-None-Match"} for path in ("/tools/{tool_id}", "/agents/{agent_id}")},
    **{
        (method, path): {"If-Match"}
        for method in ("put", "patch", "delete")
        for path in ("/tools/{tool_id}", "/agents/{agent_id}")
    },
}


def schemas(node: Any, where: str = "#") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema object with a type, wherever it stands in the spec."""
    if isinstance(node, dict):
        if isinstance(node.get("type"), str) and "/examples/" not in where:
            yield where, node
        for key, value in node.items():
            if key not in ("example", "examples"):
                yield from schemas(value, f"{where}/{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from schemas(value, f"{where}/{index}")


def contents(operation: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(where, media type, content) of the operation's request and of each of its responses."""
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield "request", media_type, content
    for status, response in operation["responses"].items():
        for media_type, content in CONTRACT.resolve(response).get("content", {}).items():
            yield status, media_type, content


def test_the_spec_is_valid_openapi() -> None:
    validate(CONTRACT.spec)
    assert CONTRACT.spec["openapi"] == "3.0.3"
    assert CONTRACT.spec["servers"] == [{"url": "/"}]


def test_operations_and_handlers_are_the_same_both_ways() -> None:
    handlers = set()
    for module in pkgutil.iter_modules(service.handlers.__path__):
        loaded = importlib.import_module(f"service.handlers.{module.name}")
        for name, function in inspect.getmembers(loaded, inspect.iscoroutinefunction):
            if not name.startswith("_") and function.__module__ == loaded.__name__:
                handlers.add(f"{loaded.__name__}.{name}")
    assert {operation["operationId"] for _, _, operation in OPERATIONS} == handlers


def test_routes_are_the_spec_and_the_pages_and_nothing_else(config: Config) -> None:
    app = make_app(config)
    pages = web.Application()
    add_pages(pages, resource("openapi"), CONTRACT.spec)
    add_metrics(pages, CollectorRegistry())

    def routes(of: web.Application) -> set[tuple[str, str]]:
        return {(route.method, route.resource.canonical) for route in of.router.routes() if route.resource}

    operations = {(method.upper(), path) for method, path, _ in OPERATIONS}
    heads = {("HEAD", path) for method, path in operations if method == "GET"}
    own = operations | heads | routes(pages)
    # what answers unknown methods and unknown paths
    rest = {("*", path) for _, path in own} | {("*", "/{path}")}
    assert routes(app) == own | rest


def scope_of(method: str, path: str) -> str | None:
    if path in OPEN or path == "/whoami":
        return None
    if path.startswith("/keys"):
        return "keys"
    return "read" if method == "get" else "run" if path.endswith("/run") else "write"


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=IDS)
def test_each_operation_is_complete(method: str, path: str, operation: dict[str, Any]) -> None:
    assert operation["summary"]
    assert operation["description"]
    assert len(operation["tags"]) == 1
    assert operation["tags"][0] in [tag["name"] for tag in CONTRACT.spec["tags"]]
    assert operation["security"] == ([] if path in OPEN else [{"api_key": []}])
    expected = {"400", "500"} | (set() if path in OPEN else {"401", "429", "503"}) | ({"503"} if path == "/ready" else set())
    if "{" in path:
        expected.add("404")
    assert operation.get("x-scope") == scope_of(method, path)
    if "x-scope" in operation:
        expected.add("403")
    if "requestBody" in operation:
        expected |= {"408", "413", "415"}
        assert operation["requestBody"]["required"] is (path != "/keys/{key_id}/rotate")
    headers = {parameter["name"] for parameter in CONTRACT.parameters(path, operation) if parameter["in"] == "header"}
    assert headers == CONDITIONAL.get((method, path.rstrip("s")), set())
    for header in headers:
        expected |= {"Idempotency-Key": {"409", "422"}, "If-Match": {"412"}, "If-None-Match": {"304"}}[header]
    assert expected <= set(operation["responses"])
    success = [status for status in operation["responses"] if status < "300"]
    assert len(success) == 1
    # Connexion takes the first response's media type as the default
    assert next(iter(operation["responses"])) == success[0]
    for status, response in operation["responses"].items():
        assert "X-Request-ID" in CONTRACT.resolve(response)["headers"], status


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=IDS)
def test_each_body_has_an_example_that_its_schema_accepts(method: str, path: str, operation: dict[str, Any]) -> None:
    for where, media_type, content in contents(operation):
        assert (media_type == PROBLEM) == (where.isdigit() and where >= "400")
        examples = [CONTRACT.resolve(each)["value"] for each in content.get("examples", {}).values()]
        examples += [content["example"]] if "example" in content else []
        assert examples, f"{where} {media_type}"
        for example in examples:
            assert list(CONTRACT.validator(content["schema"]).iter_errors(example)) == []


@pytest.mark.skipif(not API_PAGE.is_file(), reason="The page is not there: it stands in ../shared, beside the checkout.")
def test_the_spec_has_every_route_and_status_of_the_api_page() -> None:
    stated: dict[tuple[str, str], set[str]] = {}
    for line in API_PAGE.read_text(encoding="utf-8").splitlines():
        route, _, *statuses = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("| `") else ("", "")
        path = re.search(r"/[^`]*", route)
        if path is None or path[0] in PAGES:
            continue
        for method in re.findall(r"[A-Z]{3,}", route):
            as_for_tools = "as for tools" in statuses
            own = set(re.findall(r"\b[2-5]\d\d\b", " ".join(statuses)))
            stated[method.lower(), path[0]] = stated[method.lower(), "/tools/{tool_id}"] if as_for_tools else own
    assert stated.keys() == {(method, path) for method, path, _ in OPERATIONS if path not in LATER}
    for method, path, operation in OPERATIONS:
        if path in LATER:
            continue
        assert stated[method, path], (method, path)
        assert stated[method, path] <= set(operation["responses"]), (method, path)


def test_every_object_refuses_unknown_fields() -> None:
    objects = [(where, schema) for where, schema in schemas(CONTRACT.spec) if schema["type"] == "object"]
    assert len(objects) > 20
    assert [where for where, schema in objects if schema.get("additionalProperties") is not False] == []


def test_every_pattern_that_a_client_can_break_says_what_it_wants() -> None:
    for where, schema in schemas(CONTRACT.spec):
        if "pattern" in schema and "/headers/" not in where and not where.endswith("/Time"):
            assert schema["x-pattern-says"], where


def test_every_parameter_has_a_type_a_description_and_fits_its_example() -> None:
    for _, path, operation in OPERATIONS:
        for parameter in CONTRACT.parameters(path, operation):
            assert CONTRACT.resolve(parameter["schema"])["type"]
            assert parameter["description"]
            # a cursor is good for one list of one tenant: there is no example that would be taken
            assert ("example" in parameter) == (parameter["name"] != "cursor")
            if "example" in parameter:
                assert list(CONTRACT.validator(parameter["schema"]).iter_errors(parameter["example"])) == []


def test_both_media_types_of_a_patch_have_one_schema() -> None:
    patches = [operation for method, _, operation in OPERATIONS if method == "patch"]
    assert len(patches) == 2
    for operation in patches:
        content = operation["requestBody"]["content"]
        assert list(content) == ["application/merge-patch+json", "application/json"]
        assert content["application/merge-patch+json"] == content["application/json"]


def test_a_registry_with_other_models_than_the_spec_is_refused(config: Config) -> None:
    with pytest.raises(SpecError, match="other-model"):
        make_app(config, models=ModelRegistry({"gpt-4o": MockModel(), "other-model": MockModel()}))
