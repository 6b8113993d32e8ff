"""Checking what a client sends, against the spec's schemas: strict JSON, parameters, compiled validators."""

import itertools
import json
import keyword
import re
from collections.abc import Callable
from datetime import date
from typing import Any
from urllib.parse import quote

import jsonschema_rs

from service.errors import Malformed, cut
from service.times import utc_text

Schema = dict[str, Any]
# (pointer or parameter, sentence) of each place that breaks the contract, as the problem's `errors` has them
Places = list[dict[str, str]]

# how many places a problem names at the most
MOST_PLACES = 1000
# 2 ** 53 has 16
_MOST_DIGITS = 24
_TOO_DEEP = "The body is nested too deeply."


def strict_json(data: bytes) -> Any:
    """Parses JSON as RFC 8259 has it, in UTF-8.

    Raises Malformed for anything else, and for what parsers like to pass: NaN and Infinity, a key given twice, half of a
    surrogate pair, nesting without end.
    """
    try:
        text = data.decode()
        value = json.loads(
            text, object_pairs_hook=_without_twins, parse_constant=_refuse_constant, parse_int=_shortened_integer
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise Malformed("The body is not UTF-8.") from None
    except UnicodeEncodeError:
        raise Malformed("The body holds half of a surrogate pair, which is no text.") from None
    except RecursionError:
        raise Malformed(_TOO_DEEP) from None
    except json.JSONDecodeError as error:
        raise Malformed(f"The body is not JSON: line {error.lineno}, column {error.colno}.") from None
    return value


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise Malformed("The body is not JSON that says one thing: an object has a key twice.")
    return value


def _shortened_integer(digits: str) -> int:
    """The integer, or one of as many digits as no schema allows: thousands of digits take long to compute with."""
    return int(digits if len(digits) <= _MOST_DIGITS else digits[:_MOST_DIGITS])


def _refuse_constant(constant: str) -> Any:
    raise Malformed(f"The body is not JSON: {constant} is no number.")


class Validator:
    """A schema of the spec, compiled once: says where a value breaks it, in sentences that hold nothing of the schema's."""

    def __init__(self, schema: Schema) -> None:
        self._schema = _draft_4(schema)
        self._compiled = jsonschema_rs.Draft4Validator(self._schema)

    def errors(self, value: Any) -> list[tuple[str, str]]:
        """(JSON Pointer as a URI fragment, sentence) of each place; none for a valid value."""
        try:
            if self._compiled.is_valid(value):
                return []
            found = list(self._compiled.iter_errors(self._shortened(value)))
        except ValueError:
            raise Malformed(_TOO_DEEP) from None
        places: list[tuple[str, str]] = []
        for error in found:
            kind: Any = error.kind  # its classes are typed without their own members
            at = list(error.instance_path)
            if kind.name == "required":
                places.append((_pointer([*at, kind.property]), "This field is required."))
            elif kind.name == "additionalProperties":
                places.extend((_pointer([*at, name]), "This field is not known.") for name in kind.unexpected)
            else:
                places.append((_pointer(at), self._sentence(kind, error.schema_path)))
        return places

    def _shortened(self, value: Any) -> Any:
        """A broken value with at most MOST_PLACES items and unknown fields: to name every place in a megabyte takes long."""
        if isinstance(value, list):
            return [_emptied(item) for item in value[:MOST_PLACES]]
        if not isinstance(value, dict):
            return value
        known = self._schema.get("properties", {})
        unknown = itertools.islice((name for name in value if name not in known), MOST_PLACES)
        return {
            name: [_emptied(item) for item in value[name][:MOST_PLACES]] if isinstance(value[name], list) else value[name]
            for name in (*(name for name in known if name in value), *unknown)
        }

    def _sentence(self, kind: Any, schema_path: list[str | int]) -> str:
        if kind.name == "pattern":
            schema: Any = self._schema
            for step in schema_path[:-1]:
                schema = schema[step]
            return str(schema["x-pattern-says"])
        return _SENTENCES[kind.name](kind.value)


def _emptied(item: Any) -> Any:
    """An array or object without what it holds: no schema of ours looks deeper, and messages would spell it out."""
    return type(item)() if isinstance(item, (list, dict)) else item


_SENTENCES: dict[str, Callable[[Any], str]] = {
    "type": lambda types: f"Must be of the type {' or '.join(types)}.",
    "enum": lambda options: f"Must be one of: {', '.join(str(option) for option in options)}.",
    "minLength": lambda limit: f"Must have at least {limit} character{'' if limit == 1 else 's'}.",
    "maxLength": lambda limit: f"Must have at most {limit} characters.",
    "minimum": lambda limit: f"Must be at least {limit}.",
    "maximum": lambda limit: f"Must be at most {limit}.",
    "minItems": lambda limit: f"Must have at least {limit} item{'s' if limit > 1 else ''}.",
    "maxItems": lambda limit: f"Must have at most {limit} items.",
    "uniqueItems": lambda _: "Must not hold the same item twice.",
}


def _pointer(path: list[str | int]) -> str:
    """RFC 6901 section 6: each step escaped, the whole as a URI fragment; the client's part of it cut."""
    steps = (cut(str(step)).replace("~", "~0").replace("/", "~1") for step in path)
    return "#" + "".join(f"/{quote(step, safe='~!$&()*+,;=:@')}" for step in steps)


def _draft_4(schema: Any) -> Any:
    """A schema object of OpenAPI 3.0 in the words of JSON Schema Draft 4: `nullable` becomes a type.

    `format` is left out: what it means for a time or a day, `Parameter` checks.
    """
    if isinstance(schema, list):
        return [_draft_4(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: _draft_4(value) for key, value in schema.items() if key != "format"}
    if changed.pop("nullable", False) is True:
        changed["type"] = [changed["type"], "null"]
    return changed


# the integers of JSON (RFC 8259 section 6): no sign but minus, no leading zero, no underscore, no other digits
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,20}", re.ASCII)
_BOOLEANS = {"true": True, "false": False}
# what a text of a format stands for, and how it is read once its pattern fits; any other format is for readers of the spec
_FORMATS: dict[str | None, tuple[str, Callable[[str], str]]] = {
    "date-time": ("time", utc_text),
    "date": ("day", lambda text: date.fromisoformat(text).isoformat()),
}


class Parameter:
    """One parameter of the path, the query or a header: from its text to a checked value of its type."""

    def __init__(self, definition: Schema) -> None:
        self._name = definition["name"]
        # the handler's, as Connexion would call it
        self.argument = f"{self._name}_" if keyword.iskeyword(self._name) else self._name
        schema = definition["schema"]
        self._type = schema["type"]
        self._format = schema.get("format")
        self._validator = Validator(schema)
        self.default = schema.get("default")

    def parse(self, text: str, errors: Places) -> Any:
        """The value, or None and at least one more error."""
        if text == "":
            return self._refuse("This parameter is empty.", errors)
        if not text.isprintable() and any("\ud800" <= sign <= "\udfff" for sign in text):
            return self._refuse("Must be UTF-8.", errors)
        value: Any = text
        if self._type == "integer":
            if not _INTEGER.fullmatch(text):
                return self._refuse("Must be a whole number in plain digits.", errors)
            value = int(text)
        elif self._type == "boolean":
            if text not in _BOOLEANS:
                return self._refuse("Must be true or false.", errors)
            value = _BOOLEANS[text]
        found = [sentence for _, sentence in self._validator.errors(value)]
        for sentence in found:
            self._refuse(sentence, errors)
        if found or self._format not in _FORMATS:
            return value
        thing, read = _FORMATS[self._format]
        try:
            return read(text)
        except ValueError:
            return self._refuse(f"Must be a {thing} that exists.", errors)

    def _refuse(self, detail: str, errors: Places) -> None:
        errors.append({"parameter": self._name, "detail": detail})
