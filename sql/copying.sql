-- Everything that a tenant owns, table by table in the order of their keys, for `agent-platform copy`. What goes into a table is an
-- array of JSON objects, which each engine takes apart in its own way (sqlite/copying.sql, postgresql/copying.sql). run_counts is
-- not copied: the triggers count anew. They do so for usage, too, but that knows of runs that are gone: it is written over at last.

-- name: count_rows(tenant_id)$
select
    (select count(*) from api_keys where tenant_id = :tenant_id)
    + (select count(*) from tools where tenant_id = :tenant_id)
    + (select count(*) from agent_ids where tenant_id = :tenant_id)
    + (select count(*) from agents where tenant_id = :tenant_id)
    + (select count(*) from agent_tools where tenant_id = :tenant_id)
    + (select count(*) from runs where tenant_id = :tenant_id)
    + (select count(*) from usage where tenant_id = :tenant_id)
    + (select count(*) from kept_answers where tenant_id = :tenant_id)
    + (select count(*) from audit_log where tenant_id = :tenant_id);

-- name: read_api_keys(tenant_id, id, limit)
select id, prefix, hash, label, scopes, created_at, expires_at, last_used_at, revoked_at
from api_keys
where tenant_id = :tenant_id and id > :id
order by id
limit :limit;

-- name: last_api_keys(tenant_id)^
select id from api_keys where tenant_id = :tenant_id order by id desc limit 1;

-- name: read_tools(tenant_id, id, limit)
select id, name, description, created_at, updated_at, version
from tools
where tenant_id = :tenant_id and id > :id
order by id
limit :limit;

-- name: last_tools(tenant_id)^
select id from tools where tenant_id = :tenant_id order by id desc limit 1;

-- name: read_agent_ids(tenant_id, id, limit)
select id from agent_ids where tenant_id = :tenant_id and id > :id order by id limit :limit;

-- name: last_agent_ids(tenant_id)^
select id from agent_ids where tenant_id = :tenant_id order by id desc limit 1;

-- name: read_agents(tenant_id, id, limit)
select id, name, role, description, created_at, updated_at, version
from agents
where tenant_id = :tenant_id and id > :id
order by id
limit :limit;

-- name: last_agents(tenant_id)^
select id from agents where tenant_id = :tenant_id order by id desc limit 1;

-- name: read_agent_tools(tenant_id, agent_id, tool_id, limit)
select agent_id, tool_id
from agent_tools
where tenant_id = :tenant_id and (agent_id, tool_id) > (:agent_id, :tool_id)
order by agent_id, tool_id
limit :limit;

-- name: last_agent_tools(tenant_id)^
select agent_id, tool_id from agent_tools where tenant_id = :tenant_id order by agent_id desc, tool_id desc limit 1;

-- name: read_runs(tenant_id, id, limit)
select
    id, agent_id, agent_name, model, status, prompt_tokens, completion_tokens, created_at, duration_ms, task, response, error, steps,
    prompt
from runs
where tenant_id = :tenant_id and id > :id
order by id
limit :limit;

-- name: last_runs(tenant_id)^
select id from runs where tenant_id = :tenant_id order by id desc limit 1;

-- name: read_usage(tenant_id, day, agent_id, model, limit)
select day, agent_id, model, agent_name, runs, failures, prompt_tokens, completion_tokens, duration_ms
from usage
where tenant_id = :tenant_id and (day, agent_id, model) > (:day, :agent_id, :model)
order by day, agent_id, model
limit :limit;

-- name: read_kept_answers(tenant_id, idempotency_key, limit)
select idempotency_key, fingerprint, status, headers, body, created_at
from kept_answers
where tenant_id = :tenant_id and idempotency_key > :idempotency_key
order by idempotency_key
limit :limit;

-- name: last_kept_answers(tenant_id)^
select idempotency_key from kept_answers where tenant_id = :tenant_id order by idempotency_key desc limit 1;

-- name: read_audit_log(tenant_id, id, limit)
select id, created_at, actor, key_id, action, resource, resource_id, request_id, before, after
from audit_log
where tenant_id = :tenant_id and id > :id
order by id
limit :limit;

-- name: last_audit_log(tenant_id)^
select id from audit_log where tenant_id = :tenant_id order by id desc limit 1;
