-- One transaction at a time writes for a tenant, so that the run stored last is the one with the largest id.

-- name: create_run(tenant_id, agent_id, agent_name, task, model, status, prompt, response, error, steps, prompt_tokens, completion_tokens, created_at, duration_ms)^
-- Not older than the run stored before it, whatever began first and whatever the clock says.
insert into runs (
    tenant_id, agent_id, agent_name, task, model, status, prompt, response, error, steps,
    prompt_tokens, completion_tokens, created_at, duration_ms
)
values (
    :tenant_id, :agent_id, :agent_name, :task, :model, :status, :prompt, :response, :error, :steps,
    :prompt_tokens, :completion_tokens,
    greatest(
        cast(:created_at as text) collate "C",
        (select created_at from runs where tenant_id = :tenant_id order by id desc limit 1)
    ),
    :duration_ms
)
returning id, created_at;
