"""What a tenant who knows everything about another one would try: every query, with the other's ids, names and rows."""

import json
from typing import Any

from service.auth import key_hash, key_prefix, new_key
from service.storage.queries import Query
from service.storage.scope import Database, Scope
from service.storage.units import ask
from service.times import utc_now
from tests.support.keys import parts

NOW = utc_now()
SECRET = "planted-secret"
KEY = new_key()

# ids are those of tenant a's things
THEIRS: dict[str, Any] = {
    "id": 0,
    "tool_id": 1,
    "agent_id": 1,
    "run_id": 1,
    "name": f"{SECRET} tool",
    "agent_name": f"{SECRET} agent",
    "tool_name": f"{SECRET} tool",
    "tool_ids": "[1]",
    "role": "r",
    "description": "d",
    "after": 0,
    "before": 2**53,
    "first": "",
    "last": "9999-12-31",
    "limit": 100,
    "offset": 0,
    "now": NOW,
    "task": "t",
    "model": "gpt-4o",
    "status": "completed",
    "created_after": None,
    "created_before": None,
    "prompt": "p",
    "response": "r",
    "error": None,
    "steps": "[]",
    "prompt_tokens": 1,
    "completion_tokens": 1,
    "created_at": NOW,
    "duration_ms": 1,
    "versions": ",1,",
    "idempotency_key": SECRET,
    "fingerprint": "0" * 64,
    "headers": "{}",
    "body": "b",
    "expired": "",
    "key_id": 1,
    "key": 1,
    "expires_at": NOW,
    "action": None,
    "resource": None,
    "resource_id": None,
    "scopes": "keys read run write",
    "label": "l",
    "prefix": key_prefix(KEY),
    "hash": key_hash(KEY),
    "old": None,
    "new": None,
}
# what no caller says himself
_THE_SCOPES = ("tenant_id", "actor", "actor_key_id", "request_id")
_RUN = (
    "agent_name",
    "model",
    "status",
    "prompt_tokens",
    "completion_tokens",
    "created_at",
    "duration_ms",
    "task",
    "response",
)
_RUN += ("error", "steps", "prompt")
_ROWS: dict[str, dict[str, Any]] = {
    "api_keys": {
        "prefix": key_prefix(KEY),
        "hash": key_hash(KEY),
        "label": None,
        "created_at": NOW,
        "revoked_at": None,
        "scopes": "read",
        "expires_at": None,
        "last_used_at": None,
    },
    "tools": {"name": f"{SECRET} tool", "description": "d", "created_at": NOW, "updated_at": NOW, "version": 1},
    "agent_ids": {},
    "agents": {"name": "n", "role": "r", "description": "d", "created_at": NOW, "updated_at": NOW, "version": 1},
    "agent_tools": {"agent_id": 1, "tool_id": 1},
    "runs": {"agent_id": 1} | {name: THEIRS[name] for name in _RUN},
    "usage": {"day": NOW[:10], "agent_id": 1, "model": "gpt-4o", "agent_name": "n", "runs": 7, "failures": 7}
    | dict.fromkeys(("prompt_tokens", "completion_tokens", "duration_ms"), 7),
    "kept_answers": {name: THEIRS[name] for name in ("idempotency_key", "fingerprint", "headers", "body", "created_at")},
    "audit_log": {
        "created_at": NOW,
        "actor": "demo",
        "key_id": None,
        "action": "create",
        "resource": "tool",
        "resource_id": 1,
        **dict.fromkeys(("request_id", "before", "after")),
    },
}
# where another value reaches more
_FURTHER: dict[str, dict[str, Any]] = {
    **{f"{verb}_agents{rest}": {"name": None} for verb in ("list", "count") for rest in ("", "_with_tool")},
    **{f"list_{kind}_ids": {"last": 2**53 - 1} for kind in ("tools", "agent_ids", "runs", "audit_log")},
    **{f"{verb}_audit": {"key_id": None} for verb in ("list", "count")},
    "write_audit": {"action": "create", "resource": "tool"},
    "forget_kept_answers": {"expired": "9999"},
    "keep_answer": {"expired": "9999", "status": 200},
    "tool_is_renamed": {"name": "another"},
    "read_agent_tools": {"agent_id": 0, "tool_id": 0},
    "read_kept_answers": {"idempotency_key": ""},
    "read_usage": {"day": "", "agent_id": 0, "model": ""},
    **{f"list_usage_by_{group}": {"after": ""} for group in ("day", "model")},
    "get_last_run_before": {"created_before": "9999"},
    "delete_runs": {"last": 2**53 - 1, "created_before": "9999"},
    **{f"write_{table}": {"rows": json.dumps([{"id": 1, "status": 200} | row])} for table, row in _ROWS.items()},
    "write_runs": {"rows": json.dumps([{"id": 1} | _ROWS["runs"]])},
}


def parameters(query: Query) -> dict[str, Any]:
    """What to pass to a query, so that it finds or changes what is tenant a's."""
    values = THEIRS | _FURTHER.get(query.name, {})
    return {name: values[name] for name in query.parameters if name not in _THE_SCOPES}


async def plant(tenant: Scope, storage: Database) -> None:
    """Gives the tenant one of everything, with the ids 1 and the secret in every text."""

    def unit() -> Any:
        yield ask("create_key", **parts(KEY, label=SECRET, now=NOW))
        yield ask("write_audit", action="create", resource="tool", resource_id=1, old=None, new=f'["{SECRET}"]', now=NOW)
        yield ask("write_audit", action="rotate", resource="key", resource_id=1, old=None, new=f'["{SECRET}"]', now=NOW)
        yield ask("create_tool", name=f"{SECRET} tool", description=SECRET, now=NOW)
        agent_id = yield ask("create_agent_id")
        yield ask("create_agent", agent_id=agent_id, name=f"{SECRET} agent", role=SECRET, description=SECRET, now=NOW)
        yield ask("add_agent_tools", agent_id=agent_id, tool_ids="[1]")
        yield ask("create_run", agent_id=agent_id, **{name: THEIRS[name] for name in _RUN} | {"task": SECRET})
        kept = {name: THEIRS[name] for name in ("idempotency_key", "fingerprint", "headers", "now", "expired")}
        yield ask("keep_answer", **kept, status=200, body=SECRET)

    await tenant.write(unit())
