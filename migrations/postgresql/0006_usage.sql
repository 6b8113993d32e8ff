-- What was used: for each day, agent and model of a tenant, how many runs there were and what they took; and runs that go.
-- depends: 0005_access

-- Kept by count_runs() below in the transaction that writes the run, so that no answer goes through the history. Runs that are
-- deleted later stay counted: they were used all the same.
create table if not exists usage (
    tenant_id text collate "C" not null,
    -- UTC, of the runs' created_at.
    day text collate "C" not null,
    agent_id bigint not null,
    model text collate "C" not null,
    -- as the last of the runs had it: what is left to call a deleted agent by when its runs are gone, too.
    agent_name text collate "C" not null,
    runs bigint not null,
    failures bigint not null,
    prompt_tokens bigint not null,
    completion_tokens bigint not null,
    duration_ms bigint not null,
    constraint day_is_a_day check (day ~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}$'),
    constraint runs_are_counted check (runs >= 1 and failures between 0 and runs),
    constraint tokens_are_counted check (prompt_tokens >= 0 and completion_tokens >= 0),
    constraint duration_is_not_negative check (duration_ms >= 0),
    -- the identity, not the agent: what it has used stays when it goes.
    foreign key (tenant_id, agent_id) references agent_ids (tenant_id, id),
    -- GET /usage by day; a span of days.
    primary key (tenant_id, day, agent_id, model)
);

-- The last name of an agent. It holds nothing that a run changes, so it costs only the first run of a day. GET /usage by agent and
-- by model goes by the primary key, too: PostgreSQL prefers to sort what a span of days has.
create index if not exists usage_by_agent on usage (tenant_id, agent_id, day);

alter table usage enable row level security;
alter table usage force row level security;
drop policy if exists its_own on usage;
create policy its_own on usage to agent_platform_tenant
    using (tenant_id = current_setting('agent_platform.tenant_id', true));

grant select, insert, update on usage to agent_platform_tenant;
-- runs that are older than they are kept for go; each tenant's within its own view, as all else.
grant delete on runs to agent_platform_tenant;

-- What was stored before. Run again it leaves what is there, which may be more than the runs that are left. Row-level security
-- binds the owner, too, who sees no run: it lets go of him for as long as the migration's transaction holds both tables.
alter table runs no force row level security;
alter table usage no force row level security;
insert into usage (
    tenant_id, day, agent_id, model, agent_name, runs, failures, prompt_tokens, completion_tokens, duration_ms
)
select
    tenant_id, day, agent_id, model,
    (select agent_name from runs where runs.tenant_id = kinds.tenant_id and id = last_id), runs, failures, prompt_tokens,
    completion_tokens, duration_ms
from (
    select
        tenant_id, left(created_at, 10) as day, agent_id, model, max(id) as last_id, count(*) as runs,
        count(*) filter (where status = 'failed') as failures, sum(prompt_tokens) as prompt_tokens,
        sum(completion_tokens) as completion_tokens, sum(duration_ms) as duration_ms
    from runs
    group by tenant_id, left(created_at, 10), agent_id, model
) as kinds
on conflict (tenant_id, day, agent_id, model) do nothing;
alter table runs force row level security;
alter table usage force row level security;

-- As in 0003, and what was used with it. Nearly every statement stores one run, and has a way of its own, without the grouping and
-- the sorting: so both tables together cost it little more than the one did.
create or replace function count_runs() returns trigger
language plpgsql as $$
declare
    run record;
begin
    select
        tenant_id, agent_id, agent_name, model, status, created_at, prompt_tokens, completion_tokens, duration_ms
    into run
    from added limit 1;
    if not exists (select from added offset 1) then
        if run.tenant_id is null then
            -- a statement that stored none
            return null;
        end if;
        insert into run_counts as counts (tenant_id, agent_id, status, model, runs)
        values (run.tenant_id, 0, run.status, run.model, 1), (run.tenant_id, run.agent_id, run.status, run.model, 1)
        on conflict (tenant_id, agent_id, status, model) do update set runs = counts.runs + 1;
        insert into usage as used (
            tenant_id, day, agent_id, model, agent_name, runs, failures, prompt_tokens, completion_tokens, duration_ms
        )
        values (
            run.tenant_id, left(run.created_at, 10), run.agent_id, run.model, run.agent_name, 1,
            (run.status = 'failed')::int, run.prompt_tokens, run.completion_tokens, run.duration_ms
        )
        on conflict (tenant_id, day, agent_id, model) do update
        set
            agent_name = excluded.agent_name, runs = used.runs + 1, failures = used.failures + excluded.failures,
            prompt_tokens = used.prompt_tokens + excluded.prompt_tokens,
            completion_tokens = used.completion_tokens + excluded.completion_tokens,
            duration_ms = used.duration_ms + excluded.duration_ms;
        return null;
    end if;
    insert into run_counts as counts (tenant_id, agent_id, status, model, runs)
    select tenant_id, agent_id, status, model, count(*) from added group by tenant_id, agent_id, status, model
    union all
    select tenant_id, 0, status, model, count(*) from added group by tenant_id, status, model
    order by 1, 2, 3, 4
    on conflict (tenant_id, agent_id, status, model) do update set runs = counts.runs + excluded.runs;
    insert into usage as used (
        tenant_id, day, agent_id, model, agent_name, runs, failures, prompt_tokens, completion_tokens, duration_ms
    )
    select
        tenant_id, left(created_at, 10), agent_id, model, (array_agg(agent_name order by id desc))[1], count(*),
        count(*) filter (where status = 'failed'), sum(prompt_tokens), sum(completion_tokens), sum(duration_ms)
    from added
    group by tenant_id, left(created_at, 10), agent_id, model
    order by 1, 2, 3, 4
    on conflict (tenant_id, day, agent_id, model) do update
    set
        agent_name = excluded.agent_name, runs = used.runs + excluded.runs, failures = used.failures + excluded.failures,
        prompt_tokens = used.prompt_tokens + excluded.prompt_tokens,
        completion_tokens = used.completion_tokens + excluded.completion_tokens,
        duration_ms = used.duration_ms + excluded.duration_ms;
    return null;
end
$$;
