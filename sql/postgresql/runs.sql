-- One transaction at a time writes for a tenant, so that the run stored last is the one with the largest id. A run takes its id
-- when the transaction has entered its tenant (service/storage/postgresql_queries.py), which is one row; none, and there is no run.

-- name: create_run(tenant_id, agent_id, agent_name, task, model, status, prompt, response, error, steps, prompt_tokens, completion_tokens, created_at, duration_ms)^
-- Not older than the run stored before it, whatever began first and whatever the clock says.
insert into runs (
    tenant_id, agent_id, agent_name, task, model, status, prompt, response, error, steps,
    prompt_tokens, completion_tokens, created_at, duration_ms
)
select
    :tenant_id, :agent_id, :agent_name, :task, :model, :status, :prompt, :response, :error, :steps,
    :prompt_tokens, :completion_tokens, not_before_the_last_run(:tenant_id, :created_at), :duration_ms
from entered
returning id, created_at;
