-- What PostgreSQL says in its own way: JSON.

-- name: get_agent_to_run(tenant_id, agent_id)^
-- What a run needs of an agent: its tools with what they do.
select
    id, name, role, description,
    (
        select coalesce(json_agg(json_build_object('id', tools.id, 'name', tools.name, 'description', tools.description)), '[]')
        from agent_tools
        join tools on tools.tenant_id = agent_tools.tenant_id and tools.id = agent_tools.tool_id
        where agent_tools.tenant_id = :tenant_id and agent_tools.agent_id = :agent_id
    ) as "tools [parsed]"
from agents
where tenant_id = :tenant_id and id = :agent_id;

-- name: unknown_tools(tenant_id, tool_ids)
-- Which of the ids are no tool of this tenant, by their position in the list, from 0. They are numbers before they are looked up:
-- a cast may tell what it is given, so that under row-level security no index would be asked for it.
with given as materialized (
    select position - 1 as position, cast(value as bigint) as tool_id
    from json_array_elements_text(cast(:tool_ids as json)) with ordinality as listed (value, position)
)
select position, tool_id
from given
where not exists (select 1 from tools where tenant_id = :tenant_id and id = given.tool_id)
order by position;

-- name: add_agent_tools(tenant_id, agent_id, tool_ids)!
insert into agent_tools (tenant_id, agent_id, tool_id)
select :tenant_id, :agent_id, cast(value as bigint) from json_array_elements_text(cast(:tool_ids as json));
