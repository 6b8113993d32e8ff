-- `versions` is what If-Match lets through, as in ',1,2,'; null where any version will do.

-- name: list_tools(tenant_id, after, name, limit, offset)
-- Tools in the order of their ids; `after` is the id that the previous page ended with, 0 for the first one.
select id, name, description, created_at, updated_at
from tools
where tenant_id = :tenant_id and id > :after and (name = :name or :name is null)
order by id
limit :limit offset :offset;

-- name: count_tools(tenant_id, name)$
select count(*) from tools where tenant_id = :tenant_id and (name = :name or :name is null);

-- name: list_tools_of_agent(tenant_id, agent_name, after, name, limit, offset)
select tools.id, tools.name, tools.description, tools.created_at, tools.updated_at
from agents
join agent_tools on agent_tools.tenant_id = agents.tenant_id and agent_tools.agent_id = agents.id
join tools on tools.tenant_id = agent_tools.tenant_id and tools.id = agent_tools.tool_id
where agents.tenant_id = :tenant_id and agents.name = :agent_name
    and agent_tools.tool_id > :after and (tools.name = :name or :name is null)
order by agent_tools.tool_id
limit :limit offset :offset;

-- name: count_tools_of_agent(tenant_id, agent_name, name)$
select count(*)
from agents
join agent_tools on agent_tools.tenant_id = agents.tenant_id and agent_tools.agent_id = agents.id
join tools on tools.tenant_id = agent_tools.tenant_id and tools.id = agent_tools.tool_id
where agents.tenant_id = :tenant_id and agents.name = :agent_name and (tools.name = :name or :name is null);

-- name: get_tool(tenant_id, tool_id)^
select id, name, description, created_at, updated_at, version
from tools
where tenant_id = :tenant_id and id = :tool_id;

-- name: create_tool(tenant_id, name, description, now)^
insert into tools (tenant_id, name, description, created_at, updated_at)
values (:tenant_id, :name, :description, :now, :now)
returning id, name, description, created_at, updated_at, version;

-- name: change_tool(tenant_id, tool_id, versions, name, description, now)^
-- Null leaves a column as it is. A clock that was set back does not make the change older than the tool.
update tools
set
    name = coalesce(:name, name),
    description = coalesce(:description, description),
    version = version + 1,
    updated_at = case when created_at > :now then created_at else :now end
where tenant_id = :tenant_id and id = :tool_id
    and (:versions like '%,' || version || ',%' or :versions is null)
returning id, name, description, created_at, updated_at, version;

-- name: tool_is_renamed(tenant_id, tool_id, name)!
-- Its agents show the name, so they have another version; to be run before the tool has its new name.
update agents
set version = version + 1
where tenant_id = :tenant_id
    and exists (select 1 from tools where tenant_id = :tenant_id and id = :tool_id and name <> :name)
    and id in (select agent_id from agent_tools where tenant_id = :tenant_id and tool_id = :tool_id);

-- name: tool_is_taken(tenant_id, tool_id, now)!
-- An agent that loses a tool has changed.
update agents
set version = version + 1, updated_at = case when created_at > :now then created_at else :now end
where tenant_id = :tenant_id
    and id in (select agent_id from agent_tools where tenant_id = :tenant_id and tool_id = :tool_id);

-- name: tool_exists(tenant_id, tool_id)$
select exists (select 1 from tools where tenant_id = :tenant_id and id = :tool_id);

-- name: tool_is_used(tenant_id, tool_id)$
select exists (select 1 from agent_tools where tenant_id = :tenant_id and tool_id = :tool_id);

-- name: delete_tool(tenant_id, tool_id, versions)^
delete from tools
where tenant_id = :tenant_id and id = :tool_id
    and (:versions like '%,' || version || ',%' or :versions is null)
returning id;
