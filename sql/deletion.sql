-- `agent-platform tenants delete` takes a few rows at a time, table by table, so that a server has its turn in between.

-- name: empty_runs(tenant_id, limit)!
delete from runs
where tenant_id = :tenant_id and id in (select id from runs where tenant_id = :tenant_id order by id limit :limit);

-- name: empty_run_counts(tenant_id, limit)!
-- All counts of a few agents.
delete from run_counts
where tenant_id = :tenant_id and agent_id in (
    select agent_id from run_counts where tenant_id = :tenant_id order by agent_id limit :limit
);

-- name: empty_kept_answers(tenant_id, limit)!
delete from kept_answers
where tenant_id = :tenant_id and idempotency_key in (
    select idempotency_key from kept_answers where tenant_id = :tenant_id order by idempotency_key limit :limit
);

-- name: empty_agents(tenant_id, limit)!
-- Their tools are taken from them by the foreign key.
delete from agents
where tenant_id = :tenant_id and id in (select id from agents where tenant_id = :tenant_id order by id limit :limit);

-- name: empty_agent_ids(tenant_id, limit)!
delete from agent_ids
where tenant_id = :tenant_id and id in (select id from agent_ids where tenant_id = :tenant_id order by id limit :limit);

-- name: empty_tools(tenant_id, limit)!
delete from tools
where tenant_id = :tenant_id and id in (select id from tools where tenant_id = :tenant_id order by id limit :limit);

-- name: empty_usage(tenant_id, limit)!
-- All days and models of a few agents.
delete from usage
where tenant_id = :tenant_id and agent_id in (
    select agent_id from usage where tenant_id = :tenant_id order by agent_id limit :limit
);

-- name: empty_audit_log(tenant_id, limit)!
-- The database lets it go only where the tenant itself is about to.
delete from audit_log
where tenant_id = :tenant_id and id in (select id from audit_log where tenant_id = :tenant_id order by id limit :limit);
