drop table if exists api_keys;
drop table if exists tenants;
drop function if exists is_utc(text);
drop function if exists is_blank(text);
revoke usage on schema public from agent_platform_tenant, agent_platform_operator;
revoke select on _yoyo_migration from agent_platform_operator;
