revoke delete on runs, run_counts, agent_ids from agent_platform_tenant;
