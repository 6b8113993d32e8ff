"""One file per resource: what the spec cannot say. Each function is an operationId of openapi.yaml.

It takes `tenant`, the parameters and `body` of the operation, checked against the spec, and parts of service/state.py by
name. It returns the answer's body, or (body, status), or (body, status, headers), and raises errors of service/errors.py.
"""

from typing import Any

Answer = Any
