-- Which ids of a range a tenant has: `agent-platform tenants import` keeps the ids of its file where nobody else has one of them.

-- name: list_tools_ids(tenant_id, after, last, limit)
select id from tools where tenant_id = :tenant_id and id > :after and id <= :last order by id limit :limit;

-- name: list_agent_ids_ids(tenant_id, after, last, limit)
select id from agent_ids where tenant_id = :tenant_id and id > :after and id <= :last order by id limit :limit;

-- name: list_runs_ids(tenant_id, after, last, limit)
select id from runs where tenant_id = :tenant_id and id > :after and id <= :last order by id limit :limit;

-- name: list_audit_log_ids(tenant_id, after, last, limit)
select id from audit_log where tenant_id = :tenant_id and id > :after and id <= :last order by id limit :limit;
