-- What was used: for each day, agent and model of a tenant, how many runs there were and what they took.
-- depends: 0008_access

-- Kept by the trigger below in the transaction that writes the run, so that no answer goes through the history. Runs that are
-- deleted later stay counted: they were used all the same.
create table if not exists usage (
    tenant_id text not null,
    -- UTC, of the runs' created_at.
    day text not null,
    agent_id integer not null,
    model text not null,
    -- as the last of the runs had it: what is left to call a deleted agent by when its runs are gone, too.
    agent_name text not null,
    runs integer not null,
    failures integer not null,
    prompt_tokens integer not null,
    completion_tokens integer not null,
    duration_ms integer not null,
    constraint day_is_a_day check (day like '____-__-__'),
    constraint runs_are_counted check (runs >= 1 and failures between 0 and runs),
    constraint tokens_are_counted check (prompt_tokens >= 0 and completion_tokens >= 0),
    constraint duration_is_not_negative check (duration_ms >= 0),
    -- the identity, not the agent: what it has used stays when it goes.
    foreign key (tenant_id, agent_id) references agent_ids (tenant_id, id),
    -- GET /usage by day; a span of days.
    primary key (tenant_id, day, agent_id, model)
) strict, without rowid;

-- GET /usage by agent and by model. Neither holds what a run changes, so they cost only the first run of a day.
create index if not exists usage_by_agent on usage (tenant_id, agent_id, day);
create index if not exists usage_by_model on usage (tenant_id, model, day);

-- what was stored before. Run again it leaves what is there, which may be more than the runs that are left.
insert into usage (
    tenant_id, day, agent_id, model, agent_name, runs, failures, prompt_tokens, completion_tokens, duration_ms
)
select
    tenant_id, day, agent_id, model, (select agent_name from runs where id = last_id), runs, failures, prompt_tokens,
    completion_tokens, duration_ms
from (
    select
        tenant_id, substr(created_at, 1, 10) as day, agent_id, model, max(id) as last_id, count(*) as runs,
        sum(status = 'failed') as failures, sum(prompt_tokens) as prompt_tokens, sum(completion_tokens) as completion_tokens,
        sum(duration_ms) as duration_ms
    from runs
    group by tenant_id, substr(created_at, 1, 10), agent_id, model
) as kinds
where true
on conflict (tenant_id, day, agent_id, model) do nothing;

create trigger if not exists run_is_used after insert on runs
begin
    insert into usage (
        tenant_id, day, agent_id, model, agent_name, runs, failures, prompt_tokens, completion_tokens, duration_ms
    )
    values (
        new.tenant_id, substr(new.created_at, 1, 10), new.agent_id, new.model, new.agent_name, 1, new.status = 'failed',
        new.prompt_tokens, new.completion_tokens, new.duration_ms
    )
    on conflict (tenant_id, day, agent_id, model) do update
    set
        agent_name = excluded.agent_name, runs = runs + 1, failures = failures + excluded.failures,
        prompt_tokens = prompt_tokens + excluded.prompt_tokens,
        completion_tokens = completion_tokens + excluded.completion_tokens, duration_ms = duration_ms + excluded.duration_ms;
end;
