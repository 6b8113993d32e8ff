-- What SQLite says in its own way: JSON.

-- name: get_agent_to_run(tenant_id, agent_id)^
-- What a run needs of an agent: its tools with what they do.
select
    id, name, role, description,
    (
        select json_group_array(json_object('id', tools.id, 'name', tools.name, 'description', tools.description))
        from agent_tools
        join tools on tools.tenant_id = agent_tools.tenant_id and tools.id = agent_tools.tool_id
        where agent_tools.tenant_id = :tenant_id and agent_tools.agent_id = :agent_id
    ) as "tools [parsed]"
from agents
where tenant_id = :tenant_id and id = :agent_id;

-- name: unknown_tools(tenant_id, tool_ids)
-- Which of the ids are no tool of this tenant, by their position in the list, from 0.
select json_each.key as position, json_each.value as tool_id
from json_each(:tool_ids)
where not exists (select 1 from tools where tenant_id = :tenant_id and id = json_each.value)
order by json_each.key;

-- name: add_agent_tools(tenant_id, agent_id, tool_ids)!
insert into agent_tools (tenant_id, agent_id, tool_id)
select :tenant_id, :agent_id, value from json_each(:tool_ids);
