-- What a tenant defines: tools, agents, and which agent has which tool.
-- depends: 0001_tenants
--
-- The texts' checks say again what openapi.yaml says, so that no other way in can store what the API would refuse.
-- The characters in is_not_blank are those of the pattern of `Text` there: Unicode's White_Space, U+001C to U+001F, U+FEFF.

create table if not exists tools (
    id integer not null primary key autoincrement,
    tenant_id text not null references tenants (id),
    name text not null,
    description text not null,
    created_at text not null,
    updated_at text not null,
    constraint id_fits_a_json_number check (id between 1 and 9007199254740991),
    constraint name_has_1_to_100_characters check (length(name) between 1 and 100),
    constraint name_holds_no_nul check (instr(name, char(0)) = 0),
    constraint name_is_not_blank check (trim(name, char(9,10,11,12,13,28,29,30,31,32,133,160,5760,8192,8193,8194,8195,8196,8197,8198,8199,8200,8201,8202,8232,8233,8239,8287,12288,65279)) <> ''),
    constraint description_has_1_to_2000_characters check (length(description) between 1 and 2000),
    constraint description_holds_no_nul check (instr(description, char(0)) = 0),
    constraint description_is_not_blank check (trim(description, char(9,10,11,12,13,28,29,30,31,32,133,160,5760,8192,8193,8194,8195,8196,8197,8198,8199,8200,8201,8202,8232,8233,8239,8287,12288,65279)) <> ''),
    constraint created_at_is_utc check (created_at like '____-__-__T__:__:__.______Z'),
    constraint updated_at_is_utc check (updated_at like '____-__-__T__:__:__.______Z' and updated_at >= created_at),
    -- what agent_tools refers to, and the order of GET /tools.
    unique (tenant_id, id),
    -- compared byte by byte: names are unique case and all.
    unique (tenant_id, name)
) strict;

-- An agent's identity outlives the agent: its runs stay when it is deleted and still refer to something of this tenant,
-- and its id is never given to another agent.
create table if not exists agent_ids (
    id integer not null primary key autoincrement,
    tenant_id text not null references tenants (id),
    constraint id_fits_a_json_number check (id between 1 and 9007199254740991),
    unique (tenant_id, id)
) strict;

create table if not exists agents (
    id integer not null primary key,
    tenant_id text not null,
    name text not null,
    role text not null,
    description text not null,
    created_at text not null,
    updated_at text not null,
    constraint name_has_1_to_100_characters check (length(name) between 1 and 100),
    constraint name_holds_no_nul check (instr(name, char(0)) = 0),
    constraint name_is_not_blank check (trim(name, char(9,10,11,12,13,28,29,30,31,32,133,160,5760,8192,8193,8194,8195,8196,8197,8198,8199,8200,8201,8202,8232,8233,8239,8287,12288,65279)) <> ''),
    constraint role_has_1_to_100_characters check (length(role) between 1 and 100),
    constraint role_holds_no_nul check (instr(role, char(0)) = 0),
    constraint role_is_not_blank check (trim(role, char(9,10,11,12,13,28,29,30,31,32,133,160,5760,8192,8193,8194,8195,8196,8197,8198,8199,8200,8201,8202,8232,8233,8239,8287,12288,65279)) <> ''),
    constraint description_has_1_to_2000_characters check (length(description) between 1 and 2000),
    constraint description_holds_no_nul check (instr(description, char(0)) = 0),
    constraint description_is_not_blank check (trim(description, char(9,10,11,12,13,28,29,30,31,32,133,160,5760,8192,8193,8194,8195,8196,8197,8198,8199,8200,8201,8202,8232,8233,8239,8287,12288,65279)) <> ''),
    constraint created_at_is_utc check (created_at like '____-__-__T__:__:__.______Z'),
    constraint updated_at_is_utc check (updated_at like '____-__-__T__:__:__.______Z' and updated_at >= created_at),
    foreign key (tenant_id, id) references agent_ids (tenant_id, id),
    unique (tenant_id, id),
    unique (tenant_id, name)
) strict;

create table if not exists agent_tools (
    tenant_id text not null,
    agent_id integer not null,
    tool_id integer not null,
    -- both keys carry the tenant, so that the database itself refuses a link from one tenant to another.
    foreign key (tenant_id, agent_id) references agents (tenant_id, id) on delete cascade,
    foreign key (tenant_id, tool_id) references tools (tenant_id, id) on delete cascade,
    primary key (tenant_id, agent_id, tool_id)
) strict, without rowid;

-- the other direction: the agents that have a tool.
create index if not exists agent_tools_by_tool on agent_tools (tenant_id, tool_id, agent_id);

-- at most 50 tools an agent, as the API has it.
create trigger if not exists agent_has_at_most_50_tools before insert on agent_tools
when (select count(*) from agent_tools where tenant_id = new.tenant_id and agent_id = new.agent_id) >= 50
begin
    select raise(abort, 'agent_has_at_most_50_tools');
end;

-- An agent as the API shows it: its tools come with it, in the order of their ids, as JSON made by the database, so that
-- a page of agents is one query whatever their tools. It holds every tenant's agents, as the table does.
create view if not exists agent_details as
select
    agents.tenant_id, agents.id, agents.name, agents.role, agents.description,
    (
        select json_group_array(tool_id)
        from (
            select tool_id from agent_tools
            where tenant_id = agents.tenant_id and agent_id = agents.id order by tool_id
        )
    ) as tool_ids,
    (
        select json_group_array(json_object('id', id, 'name', name))
        from (
            select tools.id, tools.name
            from agent_tools
            join tools on tools.tenant_id = agent_tools.tenant_id and tools.id = agent_tools.tool_id
            where agent_tools.tenant_id = agents.tenant_id and agent_tools.agent_id = agents.id
            order by agent_tools.tool_id
        )
    ) as tools,
    agents.created_at, agents.updated_at
from agents;
