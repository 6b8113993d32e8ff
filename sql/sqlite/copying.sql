-- The writing half of `agent-platform copy`.

-- name: write_api_keys(tenant_id, rows)!
insert into api_keys (tenant_id, id, prefix, hash, label, scopes, created_at, expires_at, last_used_at, revoked_at)
select
    :tenant_id, value ->> 'id', value ->> 'prefix', value ->> 'hash', value ->> 'label', value ->> 'scopes',
    value ->> 'created_at', value ->> 'expires_at', value ->> 'last_used_at', value ->> 'revoked_at'
from json_each(:rows);

-- name: write_tools(tenant_id, rows)!
insert into tools (tenant_id, id, name, description, created_at, updated_at, version)
select
    :tenant_id, value ->> 'id', value ->> 'name', value ->> 'description', value ->> 'created_at',
    value ->> 'updated_at', value ->> 'version'
from json_each(:rows);

-- name: write_agent_ids(tenant_id, rows)!
insert into agent_ids (tenant_id, id)
select :tenant_id, value ->> 'id'
from json_each(:rows);

-- name: write_agents(tenant_id, rows)!
insert into agents (tenant_id, id, name, role, description, created_at, updated_at, version)
select
    :tenant_id, value ->> 'id', value ->> 'name', value ->> 'role', value ->> 'description',
    value ->> 'created_at', value ->> 'updated_at', value ->> 'version'
from json_each(:rows);

-- name: write_agent_tools(tenant_id, rows)!
insert into agent_tools (tenant_id, agent_id, tool_id)
select :tenant_id, value ->> 'agent_id', value ->> 'tool_id'
from json_each(:rows);

-- name: write_runs(tenant_id, rows)!
insert into runs (
    tenant_id, id, agent_id, agent_name, model, status, prompt_tokens, completion_tokens, created_at, duration_ms,
    task, response, error, steps, prompt
)
select
    :tenant_id, value ->> 'id', value ->> 'agent_id', value ->> 'agent_name', value ->> 'model',
    value ->> 'status', value ->> 'prompt_tokens', value ->> 'completion_tokens', value ->> 'created_at',
    value ->> 'duration_ms', value ->> 'task', value ->> 'response', value ->> 'error', value ->> 'steps',
    value ->> 'prompt'
from json_each(:rows);

-- name: write_usage(tenant_id, rows)!
-- Over what the triggers have counted of the runs that were written.
insert into usage (
    tenant_id, day, agent_id, model, agent_name, runs, failures, prompt_tokens, completion_tokens, duration_ms
)
select
    :tenant_id, value ->> 'day', value ->> 'agent_id', value ->> 'model', value ->> 'agent_name', value ->> 'runs',
    value ->> 'failures', value ->> 'prompt_tokens', value ->> 'completion_tokens', value ->> 'duration_ms'
from json_each(:rows)
where true
on conflict (tenant_id, day, agent_id, model) do update
set
    agent_name = excluded.agent_name, runs = excluded.runs, failures = excluded.failures,
    prompt_tokens = excluded.prompt_tokens, completion_tokens = excluded.completion_tokens, duration_ms = excluded.duration_ms;

-- name: write_kept_answers(tenant_id, rows)!
insert into kept_answers (tenant_id, idempotency_key, fingerprint, status, headers, body, created_at)
select
    :tenant_id, value ->> 'idempotency_key', value ->> 'fingerprint', value ->> 'status', value ->> 'headers',
    value ->> 'body', value ->> 'created_at'
from json_each(:rows);

-- name: write_audit_log(tenant_id, rows)!
insert into audit_log (tenant_id, id, created_at, actor, key_id, action, resource, resource_id, request_id, before, after)
select
    :tenant_id, value ->> 'id', value ->> 'created_at', value ->> 'actor', value ->> 'key_id', value ->> 'action',
    value ->> 'resource', value ->> 'resource_id', value ->> 'request_id', value ->> 'before', value ->> 'after'
from json_each(:rows);
