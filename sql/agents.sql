-- A parameter is compared before it is asked whether it is null: PostgreSQL knows its type by what it first meets.
-- A column named "… [json]" goes to the client as it is, one named "… [parsed]" is for the service to look into.
-- `versions` is what If-Match lets through, as in ',1,2,'; null where any version will do. The queries that make or read JSON stand in
-- sqlite/ and postgresql/.

-- name: list_agents(tenant_id, after, name, limit, offset)
-- Agents in the order of their ids; `after` is the id that the previous page ended with, 0 for the first one.
select id, name, role, description, tool_ids as "tool_ids [json]", tools as "tools [json]", created_at, updated_at
from agent_details
where tenant_id = :tenant_id and id > :after and (name = :name or :name is null)
order by id
limit :limit offset :offset;

-- name: count_agents(tenant_id, name)$
select count(*) from agents where tenant_id = :tenant_id and (name = :name or :name is null);

-- name: list_agents_with_tool(tenant_id, tool_name, after, name, limit, offset)
select
    agent.id, agent.name, agent.role, agent.description,
    agent.tool_ids as "tool_ids [json]", agent.tools as "tools [json]", agent.created_at, agent.updated_at
from tools
join agent_tools on agent_tools.tenant_id = tools.tenant_id and agent_tools.tool_id = tools.id
join agent_details as agent on agent.tenant_id = agent_tools.tenant_id and agent.id = agent_tools.agent_id
where tools.tenant_id = :tenant_id and tools.name = :tool_name
    and agent_tools.agent_id > :after and (agent.name = :name or :name is null)
order by agent_tools.agent_id
limit :limit offset :offset;

-- name: count_agents_with_tool(tenant_id, tool_name, name)$
-- The cross joins keep SQLite at this order: left to itself it begins with all the tenant's agents. PostgreSQL takes any.
select count(*)
from tools
cross join agent_tools
cross join agents
where tools.tenant_id = :tenant_id and tools.name = :tool_name
    and agent_tools.tenant_id = tools.tenant_id and agent_tools.tool_id = tools.id
    and agents.tenant_id = agent_tools.tenant_id and agents.id = agent_tools.agent_id
    and (agents.name = :name or :name is null);

-- name: get_agent(tenant_id, agent_id)^
select
    id, name, role, description, tool_ids as "tool_ids [json]", tools as "tools [json]", created_at, updated_at, version
from agent_details
where tenant_id = :tenant_id and id = :agent_id;

-- name: agent_exists(tenant_id, agent_id)$
select exists (select 1 from agents where tenant_id = :tenant_id and id = :agent_id);

-- name: create_agent_id(tenant_id)$
-- The identity that the agent's runs refer to; it stays when the agent goes.
insert into agent_ids (tenant_id) values (:tenant_id) returning id;

-- name: create_agent(tenant_id, agent_id, name, role, description, now)!
insert into agents (id, tenant_id, name, role, description, created_at, updated_at)
values (:agent_id, :tenant_id, :name, :role, :description, :now, :now);

-- name: change_agent(tenant_id, agent_id, versions, name, role, description, now)^
-- Null leaves a column as it is. A clock that was set back does not make the change older than the agent.
update agents
set
    name = coalesce(:name, name),
    role = coalesce(:role, role),
    description = coalesce(:description, description),
    version = version + 1,
    updated_at = case when created_at > :now then created_at else :now end
where tenant_id = :tenant_id and id = :agent_id
    and (:versions like '%,' || version || ',%' or :versions is null)
returning id;

-- name: drop_agent_tools(tenant_id, agent_id)!
delete from agent_tools where tenant_id = :tenant_id and agent_id = :agent_id;

-- name: agent_has_runs(tenant_id, agent_id)$
select exists (select 1 from runs where tenant_id = :tenant_id and agent_id = :agent_id);

-- name: delete_agent(tenant_id, agent_id, versions)^
delete from agents
where tenant_id = :tenant_id and id = :agent_id
    and (:versions like '%,' || version || ',%' or :versions is null)
returning id;
