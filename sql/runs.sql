-- Times become a range of ids: within a tenant, ids and times grow together. A time that is not given is null, finds nothing,
-- and leaves that end of the range open. Each end is one value, made inside of its own select: row-level security lets PostgreSQL
-- look an id up only by what it knows to tell nothing, and a coalesce is not among that.

-- name: list_runs(tenant_id, before, model, created_after, created_before, limit, offset)
-- The tenant's history, newest first; `before` is the id that the previous page ended with, one more than the largest id for the first.
select
    id, agent_id, agent_name, task, model, status, prompt, response,
    error as "error [json]", steps as "steps [json]",
    '{"prompt_tokens":' || prompt_tokens || ',"completion_tokens":' || completion_tokens
        || ',"total_tokens":' || (prompt_tokens + completion_tokens) || '}' as "usage [json]",
    created_at, duration_ms
from runs
where tenant_id = :tenant_id and (model = :model or :model is null)
    and id > (
        select coalesce(max(id), 0)
        from (
            select id from runs
            where tenant_id = :tenant_id and created_at <= :created_after
            order by created_at desc, id desc limit 1
        ) as last_before
    )
    and id < (
        select min(id)
        from (
            select cast(:before as bigint) as id
            union all
            select id from (
                select id from runs
                where tenant_id = :tenant_id and created_at >= :created_before
                order by created_at, id limit 1
            ) as first_after
        ) as bounds
    )
order by id desc
limit :limit offset :offset;

-- name: list_runs_with_status(tenant_id, before, status, model, created_after, created_before, limit, offset)
-- The runs of one status, newest first.
select
    id, agent_id, agent_name, task, model, status, prompt, response,
    error as "error [json]", steps as "steps [json]",
    '{"prompt_tokens":' || prompt_tokens || ',"completion_tokens":' || completion_tokens
        || ',"total_tokens":' || (prompt_tokens + completion_tokens) || '}' as "usage [json]",
    created_at, duration_ms
from runs
where tenant_id = :tenant_id and status = :status and (model = :model or :model is null)
    and id > (
        select coalesce(max(id), 0)
        from (
            select id from runs
            where tenant_id = :tenant_id and created_at <= :created_after
            order by created_at desc, id desc limit 1
        ) as last_before
    )
    and id < (
        select min(id)
        from (
            select cast(:before as bigint) as id
            union all
            select id from (
                select id from runs
                where tenant_id = :tenant_id and created_at >= :created_before
                order by created_at, id limit 1
            ) as first_after
        ) as bounds
    )
order by id desc
limit :limit offset :offset;

-- name: list_agent_runs(tenant_id, agent_id, before, status, model, created_after, created_before, limit, offset)
-- The history of one agent, newest first.
select
    id, agent_id, agent_name, task, model, status, prompt, response,
    error as "error [json]", steps as "steps [json]",
    '{"prompt_tokens":' || prompt_tokens || ',"completion_tokens":' || completion_tokens
        || ',"total_tokens":' || (prompt_tokens + completion_tokens) || '}' as "usage [json]",
    created_at, duration_ms
from runs
where tenant_id = :tenant_id and agent_id = :agent_id
    and (status = :status or :status is null) and (model = :model or :model is null)
    and id > (
        select coalesce(max(id), 0)
        from (
            select id from runs
            where tenant_id = :tenant_id and created_at <= :created_after
            order by created_at desc, id desc limit 1
        ) as last_before
    )
    and id < (
        select min(id)
        from (
            select cast(:before as bigint) as id
            union all
            select id from (
                select id from runs
                where tenant_id = :tenant_id and created_at >= :created_before
                order by created_at, id limit 1
            ) as first_after
        ) as bounds
    )
order by id desc
limit :limit offset :offset;

-- name: total_runs(tenant_id, agent_id, status, model)$
-- How many runs there are, read from their counts: of an agent, or of the whole tenant under the agent_id 0.
select cast(coalesce(sum(runs), 0) as bigint)
from run_counts
where tenant_id = :tenant_id and agent_id = :agent_id
    and (status = :status or :status is null) and (model = :model or :model is null);

-- name: count_runs_between(tenant_id, agent_id, status, model, created_after, created_before)$
-- How many runs there are in a span of time; the only total of runs that is counted. agent_id 0 stands for all agents.
select count(*)
from runs
where tenant_id = :tenant_id and (agent_id = :agent_id or :agent_id = 0)
    and (status = :status or :status is null) and (model = :model or :model is null)
    and id > (
        select coalesce(max(id), 0)
        from (
            select id from runs
            where tenant_id = :tenant_id and created_at <= :created_after
            order by created_at desc, id desc limit 1
        ) as last_before
    )
    and id < (
        select coalesce(min(id), 9007199254740992)
        from (
            select id from runs
            where tenant_id = :tenant_id and created_at >= :created_before
            order by created_at, id limit 1
        ) as first_after
    );

-- name: get_run(tenant_id, run_id)^
select
    id, agent_id, agent_name, task, model, status, prompt, response,
    error as "error [json]", steps as "steps [json]",
    '{"prompt_tokens":' || prompt_tokens || ',"completion_tokens":' || completion_tokens
        || ',"total_tokens":' || (prompt_tokens + completion_tokens) || '}' as "usage [json]",
    created_at, duration_ms
from runs
where tenant_id = :tenant_id and id = :run_id;

-- name: get_last_run_before(tenant_id, created_before)$
-- The id of the last run that was created earlier than this time: all before it were, too.
select id from runs where tenant_id = :tenant_id and created_at < :created_before order by created_at desc, id desc limit 1;

-- name: delete_runs(tenant_id, after, last, created_before, limit)
-- Some of the runs behind the id `after`, up to the id `last`; the ids of those that are gone. None is younger, wherever it stands:
-- each row's time is looked at as it comes, and no index of times is to be gone through.
delete from runs
where tenant_id = :tenant_id and id in (
    select id from runs
    where tenant_id = :tenant_id and id > :after and id <= :last and created_at || '' < :created_before
    order by id limit :limit
)
returning id;
