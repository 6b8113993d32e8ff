"""Holds answers against openapi.yaml, with a validator that the service does not use."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from openapi_schema_validator import OAS30Validator, oas30_format_checker

from service.contract import load_spec

SPEC_FILE = Path(__file__).parents[2] / "openapi" / "openapi.yaml"
METHODS = ("get", "put", "post", "delete", "patch")
PAGES = ("/docs", "/redoc", "/openapi.json", "/openapi.yaml", "/metrics")
PROBLEM = "application/problem+json"


class Contract:
    """The spec, ready to be asked whether an answer is one that it describes."""

    def __init__(self) -> None:
        self.spec = load_spec(SPEC_FILE.parent)
        # each with its schema, so that no other one gets the same id
        self._validators: dict[int, tuple[dict[str, Any], OAS30Validator]] = {}
        self._paths = [(re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), path) for path in self.spec["paths"]]

    def operations(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(method, path, operation) of each."""
        for path, item in self.spec["paths"].items():
            for method in METHODS:
                if method in item:
                    yield method, path, item[method]

    def resolve(self, node: Any) -> Any:
        """The node itself, or what its `$ref` stands for."""
        while isinstance(node, dict) and "$ref" in node:
            found: Any = self.spec
            for step in node["$ref"].removeprefix("#/").split("/"):
                found = found[step]
            node = found
        return node

    def parameters(self, path: str, operation: dict[str, Any]) -> list[dict[str, Any]]:
        """The operation's parameters and its path's."""
        own = operation.get("parameters", []) + self.spec["paths"][path].get("parameters", [])
        return [self.resolve(parameter) for parameter in own]

    def whole(self, node: Any) -> Any:
        """The node with every reference in it resolved; no schema of ours holds itself."""
        node = self.resolve(node)
        if isinstance(node, dict):
            return {key: self.whole(value) for key, value in node.items()}
        return [self.whole(value) for value in node] if isinstance(node, list) else node

    def validator(self, schema: dict[str, Any]) -> OAS30Validator:
        """A validator for a schema of the spec, made once."""
        if id(schema) not in self._validators:
            validator = OAS30Validator(self.whole(schema), format_checker=oas30_format_checker)
            self._validators[id(schema)] = schema, validator
        return self._validators[id(schema)][1]

    def path_of(self, raw_path: str) -> str | None:
        return next((path for pattern, path in self._paths if pattern.fullmatch(raw_path)), None)

    def check(self, method: str, raw_path: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Fails where the answer's status, media type, headers or body is not as the spec says."""
        head = method.upper() == "HEAD"
        where = f"{method} {raw_path} -> {status}"
        path = self.path_of(raw_path)
        operation = self.spec["paths"].get(path, {}).get("get" if head else method.lower()) if path else None
        if operation is None:
            self._check_outside(where, raw_path, path, status, headers, body, head)
            return
        assert str(status) in operation["responses"], f"{where}: undocumented. {body[:300]!r}"
        response = self.resolve(operation["responses"][str(status)])
        for name, definition in response.get("headers", {}).items():
            definition = self.resolve(definition)
            assert name in headers or not definition.get("required"), f"{where}: no header {name}"
            if name in headers:
                value: Any = headers[name]
                if definition["schema"]["type"] == "integer":
                    assert re.fullmatch(r"[0-9]+", value), f"{where}: {name} is {value!r}"
                    value = int(value)
                self._check_schema(f"{where}: header {name}", definition["schema"], value)
        content = response.get("content")
        if content is None:
            assert body == b"", f"{where}: a body where none is documented"
            return
        media_type = headers["Content-Type"].split(";")[0]
        assert media_type in content, f"{where}: {media_type}"
        if not head:
            value = json.loads(body)
            self._check_schema(where, content[media_type]["schema"], value)
            if media_type == PROBLEM:
                self._check_problem(where, status, headers, value)

    def _check_outside(
        self,
        where: str,
        raw_path: str,
        path: str | None,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        head: bool,
    ) -> None:
        """An answer to what is no operation: a page, a path that is not there, a method that is not."""
        if any(raw_path == page or raw_path.startswith(page + "/") for page in PAGES) and status < 400:
            return
        assert status in ((405,) if path else (400, 404, 405)), where
        assert headers["Content-Type"] == PROBLEM, where
        assert (status == 405) == ("Allow" in headers), where
        if not head:
            self._check_schema(where, self.spec["components"]["schemas"]["Problem"], json.loads(body))
            self._check_problem(where, status, headers, json.loads(body))

    def _check_problem(self, where: str, status: int, headers: Mapping[str, str], problem: dict[str, Any]) -> None:
        assert problem["status"] == status, where
        assert problem["request_id"] == headers["X-Request-ID"], where
        for place in problem.get("errors", []):
            assert ("pointer" in place) != ("parameter" in place), where

    def _check_schema(self, where: str, schema: dict[str, Any], value: Any) -> None:
        errors = [f"{error.json_path}: {error.message[:300]}" for error in self.validator(schema).iter_errors(value)]
        assert not errors, f"{where}: {errors}"
