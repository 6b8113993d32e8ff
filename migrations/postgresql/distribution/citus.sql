-- Spreads a migrated database over nodes by tenant, with Citus (12 or newer): all rows of a tenant on one node, and every query of
-- the service on that node alone. To be run once, as the owner of the tables, on the coordinator; what the tables hold moves along.
--
-- What holds then as it does now, for every key and every foreign key leads with the tenant and the tables are colocated:
--   keys, foreign keys and checks; the names that are unique within a tenant; the queries, each of which names its tenant.
--   Ids come from the sequences of the coordinator, to which the service connects. The lock that lets one transaction at a time
--   write for a tenant (pg_advisory_xact_lock) is the coordinator's too: it holds as long as all processes connect to that one.
--
-- What Citus does not do by itself, and has to be settled before this is relied on; no Citus was at hand to try it with:
--   Triggers (at most 50 tools, the counts of runs, and usage) are refused unless citus.enable_unsafe_triggers is on. Ours touch only rows of the
--   same tenant, which stand on the same node; whether those of runs, which are for a statement and look at all of its new rows, are
--   taken has to be seen.
--   Row-level security reads agent_platform.tenant_id, which the service sets with set_config(…): Citus sends on to the nodes only what
--   `set local` says, and only where citus.propagate_set_commands is 'local'. Where it does not arrive, nothing is seen.
--   The roles agent_platform_tenant and agent_platform_operator can't log in; Citus connects to the nodes as the role at work.
--   A key is looked up by its hash, which no tenant leads: that asks every node, once for each key and memory of it (service/auth.py).

set citus.enable_unsafe_triggers to on;

-- those come first to which others refer
select create_distributed_table('tenants', 'id', colocate_with => 'none');
select create_distributed_table('api_keys', 'tenant_id', colocate_with => 'tenants');
select create_distributed_table('tools', 'tenant_id', colocate_with => 'tenants');
select create_distributed_table('agent_ids', 'tenant_id', colocate_with => 'tenants');
select create_distributed_table('agents', 'tenant_id', colocate_with => 'tenants');
select create_distributed_table('agent_tools', 'tenant_id', colocate_with => 'tenants');
select create_distributed_table('runs', 'tenant_id', colocate_with => 'tenants');
select create_distributed_table('run_counts', 'tenant_id', colocate_with => 'tenants');
select create_distributed_table('kept_answers', 'tenant_id', colocate_with => 'tenants');
select create_distributed_table('audit_log', 'tenant_id', colocate_with => 'tenants');
select create_distributed_table('usage', 'tenant_id', colocate_with => 'tenants');
