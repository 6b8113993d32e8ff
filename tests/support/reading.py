"""The spec and the SQL are the same for all applications: read, checked and resolved once, not a thousand times."""

import functools
from collections.abc import Callable
from typing import Any

from connexion.spec import Specification

import service.app
from service.contract import load_spec
from service.storage.queries import load_queries


def read_once(patch: Callable[[Any, str, Any], None]) -> None:
    """Lets every application of this process share what it reads."""
    load, loaded = Specification.load, {}

    def load_once(spec: dict[str, Any], arguments: Any = None) -> Specification:
        if id(spec) not in loaded:
            # kept with its dict, so that no other one gets the same id
            loaded[id(spec)] = spec, load(spec, arguments)
        return loaded[id(spec)][1]

    patch(Specification, "load", load_once)
    patch(service.app, "load_spec", functools.cache(load_spec))
    patch(service.app, "load_queries", functools.cache(load_queries))
