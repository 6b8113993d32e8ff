-- A tenant that leaves takes everything along: `agent-platform tenants delete`.
-- depends: 0006_usage
--
-- Until now nothing took away what had happened, and the tenant's role could not either. Row-level security holds it to the rows of
-- the tenant that the transaction says; tenants and keys are the operator's, who has had the right to delete these from the beginning.

grant delete on run_counts, agent_ids, usage, audit_log to agent_platform_tenant;
