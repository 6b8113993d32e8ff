create or replace function count_runs() returns trigger
language plpgsql as $$
begin
    insert into run_counts as counts (tenant_id, agent_id, status, model, runs)
    select tenant_id, agent_id, status, model, count(*) from added group by tenant_id, agent_id, status, model
    union all
    select tenant_id, 0, status, model, count(*) from added group by tenant_id, status, model
    order by 1, 2, 3, 4
    on conflict (tenant_id, agent_id, status, model) do update set runs = counts.runs + excluded.runs;
    return null;
end
$$;
revoke delete on runs from agent_platform_tenant;
drop table if exists usage;
