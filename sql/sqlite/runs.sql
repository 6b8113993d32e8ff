-- SQLite finds the time of a new run in the statement that writes it; in PostgreSQL a function does.

-- name: create_run(tenant_id, agent_id, agent_name, task, model, status, prompt, response, error, steps, prompt_tokens, completion_tokens, created_at, duration_ms)^
-- Not older than the run stored before it, whatever began first and whatever the clock says.
insert into runs (
    tenant_id, agent_id, agent_name, task, model, status, prompt, response, error, steps,
    prompt_tokens, completion_tokens, created_at, duration_ms
)
values (
    :tenant_id, :agent_id, :agent_name, :task, :model, :status, :prompt, :response, :error, :steps,
    :prompt_tokens, :completion_tokens,
    max(:created_at, coalesce((select created_at from runs where tenant_id = :tenant_id order by id desc limit 1), '')),
    :duration_ms
)
returning id, created_at;
