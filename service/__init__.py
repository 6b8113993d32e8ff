"""A multi-tenant backend for AI agents, driven by openapi/openapi.yaml."""

__version__ = "0.1.0"
