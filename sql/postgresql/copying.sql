-- The writing half of `agent-platform copy`.

-- name: write_api_keys(tenant_id, rows)!
insert into api_keys (tenant_id, id, prefix, hash, label, scopes, created_at, expires_at, last_used_at, revoked_at)
select :tenant_id, id, prefix, hash, label, scopes, created_at, expires_at, last_used_at, revoked_at
from json_populate_recordset(cast(null as api_keys), cast(:rows as json));

-- name: write_tools(tenant_id, rows)!
insert into tools (tenant_id, id, name, description, created_at, updated_at, version)
select :tenant_id, id, name, description, created_at, updated_at, version
from json_populate_recordset(cast(null as tools), cast(:rows as json));

-- name: write_agent_ids(tenant_id, rows)!
insert into agent_ids (tenant_id, id)
select :tenant_id, id
from json_populate_recordset(cast(null as agent_ids), cast(:rows as json));

-- name: write_agents(tenant_id, rows)!
insert into agents (tenant_id, id, name, role, description, created_at, updated_at, version)
select :tenant_id, id, name, role, description, created_at, updated_at, version
from json_populate_recordset(cast(null as agents), cast(:rows as json));

-- name: write_agent_tools(tenant_id, rows)!
insert into agent_tools (tenant_id, agent_id, tool_id)
select :tenant_id, agent_id, tool_id
from json_populate_recordset(cast(null as agent_tools), cast(:rows as json));

-- name: write_runs(tenant_id, rows)!
insert into runs (
    tenant_id, id, agent_id, agent_name, model, status, prompt_tokens, completion_tokens, created_at, duration_ms,
    task, response, error, steps, prompt
)
select
    :tenant_id, id, agent_id, agent_name, model, status, prompt_tokens, completion_tokens, created_at,
    duration_ms, task, response, error, steps, prompt
from json_populate_recordset(cast(null as runs), cast(:rows as json));

-- name: write_usage(tenant_id, rows)!
-- Over what the triggers have counted of the runs that were written.
insert into usage (
    tenant_id, day, agent_id, model, agent_name, runs, failures, prompt_tokens, completion_tokens, duration_ms
)
select
    :tenant_id, day, agent_id, model, agent_name, runs, failures, prompt_tokens, completion_tokens, duration_ms
from json_populate_recordset(cast(null as usage), cast(:rows as json))
on conflict (tenant_id, day, agent_id, model) do update
set
    agent_name = excluded.agent_name, runs = excluded.runs, failures = excluded.failures,
    prompt_tokens = excluded.prompt_tokens, completion_tokens = excluded.completion_tokens, duration_ms = excluded.duration_ms;

-- name: write_kept_answers(tenant_id, rows)!
insert into kept_answers (tenant_id, idempotency_key, fingerprint, status, headers, body, created_at)
select :tenant_id, idempotency_key, fingerprint, status, headers, body, created_at
from json_populate_recordset(cast(null as kept_answers), cast(:rows as json));

-- name: write_audit_log(tenant_id, rows)!
insert into audit_log (tenant_id, id, created_at, actor, key_id, action, resource, resource_id, request_id, before, after)
select :tenant_id, id, created_at, actor, key_id, action, resource, resource_id, request_id, before, after
from json_populate_recordset(cast(null as audit_log), cast(:rows as json));
