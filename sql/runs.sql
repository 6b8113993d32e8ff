-- name: list_runs(tenant_id, before, status, model, created_after, created_before, limit, offset)
-- The tenant's history, newest first; `before` is the id that the previous page ended with, the largest id for the first.
select
    id, agent_id, agent_name, task, model, status, prompt, response,
    error as "error [json]", steps as "steps [json]",
    json_object(
        'prompt_tokens', prompt_tokens, 'completion_tokens', completion_tokens,
        'total_tokens', prompt_tokens + completion_tokens
    ) as "usage [json]",
    created_at, duration_ms
from runs
where tenant_id = :tenant_id and id < :before
    and (:status is null or status = :status) and (:model is null or model = :model)
    and (:created_after is null or created_at > :created_after)
    and (:created_before is null or created_at < :created_before)
order by id desc
limit :limit offset :offset;

-- name: count_runs(tenant_id, status, model, created_after, created_before)$
select count(*)
from runs
where tenant_id = :tenant_id
    and (:status is null or status = :status) and (:model is null or model = :model)
    and (:created_after is null or created_at > :created_after)
    and (:created_before is null or created_at < :created_before);

-- name: list_agent_runs(tenant_id, agent_id, before, status, model, created_after, created_before, limit, offset)
-- The history of one agent, newest first.
select
    id, agent_id, agent_name, task, model, status, prompt, response,
    error as "error [json]", steps as "steps [json]",
    json_object(
        'prompt_tokens', prompt_tokens, 'completion_tokens', completion_tokens,
        'total_tokens', prompt_tokens + completion_tokens
    ) as "usage [json]",
    created_at, duration_ms
from runs
where tenant_id = :tenant_id and agent_id = :agent_id and id < :before
    and (:status is null or status = :status) and (:model is null or model = :model)
    and (:created_after is null or created_at > :created_after)
    and (:created_before is null or created_at < :created_before)
order by id desc
limit :limit offset :offset;

-- name: count_agent_runs(tenant_id, agent_id, status, model, created_after, created_before)$
select count(*)
from runs
where tenant_id = :tenant_id and agent_id = :agent_id
    and (:status is null or status = :status) and (:model is null or model = :model)
    and (:created_after is null or created_at > :created_after)
    and (:created_before is null or created_at < :created_before);

-- name: get_run(tenant_id, run_id)^
select
    id, agent_id, agent_name, task, model, status, prompt, response,
    error as "error [json]", steps as "steps [json]",
    json_object(
        'prompt_tokens', prompt_tokens, 'completion_tokens', completion_tokens,
        'total_tokens', prompt_tokens + completion_tokens
    ) as "usage [json]",
    created_at, duration_ms
from runs
where tenant_id = :tenant_id and id = :run_id;

-- name: create_run(tenant_id, agent_id, agent_name, task, model, status, prompt, response, error, steps, prompt_tokens, completion_tokens, created_at, duration_ms)$
insert into runs (
    tenant_id, agent_id, agent_name, task, model, status, prompt, response, error, steps,
    prompt_tokens, completion_tokens, created_at, duration_ms
)
values (
    :tenant_id, :agent_id, :agent_name, :task, :model, :status, :prompt, :response, :error, :steps,
    :prompt_tokens, :completion_tokens, :created_at, :duration_ms
)
returning id;
