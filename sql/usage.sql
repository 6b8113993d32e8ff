-- What was used, read from its sums and never from the history: `first` and `last` are days, both of them included. `after` is the
-- day, model or agent that the previous page ended with.

-- name: get_usage(tenant_id, first, last)^
-- The whole span; no row where nothing was used.
select
    cast(sum(runs) as bigint) as runs, cast(sum(failures) as bigint) as failures,
    cast(sum(prompt_tokens) as bigint) as prompt_tokens, cast(sum(completion_tokens) as bigint) as completion_tokens,
    cast(sum(prompt_tokens) + sum(completion_tokens) as bigint) as total_tokens, cast(sum(duration_ms) as bigint) as duration_ms
from usage
where tenant_id = :tenant_id and day >= :first and day <= :last
group by tenant_id;

-- name: list_usage_by_day(tenant_id, after, first, last, limit, offset)
select
    day, cast(sum(runs) as bigint) as runs, cast(sum(failures) as bigint) as failures,
    cast(sum(prompt_tokens) as bigint) as prompt_tokens, cast(sum(completion_tokens) as bigint) as completion_tokens,
    cast(sum(prompt_tokens) + sum(completion_tokens) as bigint) as total_tokens, cast(sum(duration_ms) as bigint) as duration_ms
from usage
where tenant_id = :tenant_id and day > :after and day >= :first and day <= :last
group by day
order by day
limit :limit offset :offset;

-- name: count_usage_by_day(tenant_id, first, last)$
select count(*)
from (
    select distinct day from usage where tenant_id = :tenant_id and day >= :first and day <= :last
) as found;

-- name: list_usage_by_model(tenant_id, after, first, last, limit, offset)
select
    model, cast(sum(runs) as bigint) as runs, cast(sum(failures) as bigint) as failures,
    cast(sum(prompt_tokens) as bigint) as prompt_tokens, cast(sum(completion_tokens) as bigint) as completion_tokens,
    cast(sum(prompt_tokens) + sum(completion_tokens) as bigint) as total_tokens, cast(sum(duration_ms) as bigint) as duration_ms
from usage
where tenant_id = :tenant_id and model > :after and day >= :first and day <= :last
group by model
order by model
limit :limit offset :offset;

-- name: count_usage_by_model(tenant_id, first, last)$
select count(*)
from (
    select distinct model from usage where tenant_id = :tenant_id and day >= :first and day <= :last
) as found;

-- name: list_usage_by_agent(tenant_id, after, first, last, limit, offset)
-- With the agent's name, or, where it is deleted, the one that it had when it ran last.
select
    agent_id,
    coalesce(
        (select name from agents where tenant_id = :tenant_id and id = used.agent_id),
        (
            select agent_name from usage as last_used
            where last_used.tenant_id = :tenant_id and last_used.agent_id = used.agent_id
            order by last_used.day desc limit 1
        )
    ) as agent_name,
    cast(sum(runs) as bigint) as runs, cast(sum(failures) as bigint) as failures,
    cast(sum(prompt_tokens) as bigint) as prompt_tokens, cast(sum(completion_tokens) as bigint) as completion_tokens,
    cast(sum(prompt_tokens) + sum(completion_tokens) as bigint) as total_tokens, cast(sum(duration_ms) as bigint) as duration_ms
from usage as used
where tenant_id = :tenant_id and agent_id > :after and day >= :first and day <= :last
group by agent_id
order by agent_id
limit :limit offset :offset;

-- name: count_usage_by_agent(tenant_id, first, last)$
select count(*)
from (
    select distinct agent_id from usage where tenant_id = :tenant_id and day >= :first and day <= :last
) as found;
