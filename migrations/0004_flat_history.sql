-- A history of a million runs costs per page what one of a hundred costs.
-- depends: 0003_runs

-- `total` is read, not counted: how many runs there are of each kind, kept by the triggers below in the transaction that
-- writes the run. The row of agent_id 0, which no agent has, counts the whole tenant.
create table if not exists run_counts (
    tenant_id text not null references tenants (id),
    agent_id integer not null,
    status text not null,
    model text not null,
    runs integer not null,
    constraint runs_are_counted check (runs >= 0),
    primary key (tenant_id, agent_id, status, model)
) strict, without rowid;

-- what was stored before; run again after a crash it counts anew
delete from run_counts;
insert into run_counts (tenant_id, agent_id, status, model, runs)
select tenant_id, agent_id, status, model, count(*) from runs group by tenant_id, agent_id, status, model;
insert into run_counts (tenant_id, agent_id, status, model, runs)
select tenant_id, 0, status, model, count(*) from runs group by tenant_id, status, model;

create trigger if not exists run_is_counted after insert on runs
begin
    insert into run_counts (tenant_id, agent_id, status, model, runs)
    values (new.tenant_id, new.agent_id, new.status, new.model, 1), (new.tenant_id, 0, new.status, new.model, 1)
    on conflict (tenant_id, agent_id, status, model) do update set runs = runs + 1;
end;

create trigger if not exists run_is_no_longer_counted after delete on runs
begin
    update run_counts set runs = runs - 1
    where tenant_id = old.tenant_id and agent_id in (0, old.agent_id) and status = old.status and model = old.model;
end;

-- created_after and created_before become a range of ids: within a tenant, no run is older than the one stored before it.
-- create_run sees to that; a clock that was set back may have left others, which get the time of the run before them.
update runs
set created_at = latest.created_at
from (select id, max(created_at) over (partition by tenant_id order by id) as created_at from runs) as latest
where latest.id = runs.id and latest.created_at > runs.created_at;

create index if not exists runs_by_time on runs (tenant_id, created_at, id);

-- GET /runs?status=failed finds the few among the many.
create index if not exists runs_by_status on runs (tenant_id, status, id);
