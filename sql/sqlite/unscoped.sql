-- The ids that were given last, so that a copy gives none of them again.

-- name: list_last_ids()
select name, seq as last_id from sqlite_sequence where name in ('api_keys', 'tools', 'agent_ids', 'runs', 'audit_log') order by name;

-- name: note_last_id(name)!
-- SQLite notes a table only when it has given its first id.
insert into sqlite_sequence (name, seq)
select :name, 0 where not exists (select 1 from sqlite_sequence where name = :name);

-- name: set_last_id(name, last_id)!
update sqlite_sequence set seq = :last_id where name = :name and seq < :last_id;

-- name: get_summary()^
-- What a whole file holds, for `agent-platform restore` and `doctor`. On PostgreSQL nobody sees the runs of all tenants.
select
    (select count(*) from tenants) as tenants,
    (select coalesce(sum(runs), 0) from run_counts where agent_id = 0) as runs,
    -- within a tenant, no run is older than the one stored before it
    (
        select max((select created_at from runs where tenant_id = tenants.id order by id desc limit 1)) from tenants
    ) as newest_run;
