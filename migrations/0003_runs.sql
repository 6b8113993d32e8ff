-- What happened: one row a run, written once and whole, never changed.
-- depends: 0002_tools_and_agents

create table if not exists runs (
    -- ids grow in the order in which runs are stored: newest first is by id, and a page's cursor is the last id it showed.
    id integer not null primary key autoincrement,
    tenant_id text not null,
    agent_id integer not null,
    -- the name at the time of the run, kept when the agent is renamed or deleted.
    agent_name text not null,
    model text not null,
    status text not null,
    prompt_tokens integer not null,
    completion_tokens integer not null,
    created_at text not null,
    duration_ms integer not null,
    task text not null,
    response text,
    -- null or an object of code and message.
    error text,
    -- an array of steps in their order; they are only ever read with their run.
    steps text not null,
    prompt text not null,
    constraint id_fits_a_json_number check (id between 1 and 9007199254740991),
    constraint agent_name_has_1_to_100_characters check (length(agent_name) between 1 and 100),
    constraint agent_name_holds_no_nul check (instr(agent_name, char(0)) = 0),
    constraint agent_name_is_not_blank check (trim(agent_name, char(9,10,11,12,13,28,29,30,31,32,133,160,5760,8192,8193,8194,8195,8196,8197,8198,8199,8200,8201,8202,8232,8233,8239,8287,12288,65279)) <> ''),
    constraint task_has_1_to_20000_characters check (length(task) between 1 and 20000),
    constraint task_holds_no_nul check (instr(task, char(0)) = 0),
    constraint task_is_not_blank check (trim(task, char(9,10,11,12,13,28,29,30,31,32,133,160,5760,8192,8193,8194,8195,8196,8197,8198,8199,8200,8201,8202,8232,8233,8239,8287,12288,65279)) <> ''),
    constraint model_has_1_to_100_characters check (length(model) between 1 and 100),
    constraint status_is_known check (status in ('running', 'completed', 'failed')),
    constraint answer_fits_the_status check (
        (response is not null) = (status = 'completed') and (error is not null) = (status = 'failed')
    ),
    constraint error_is_json check (error is null or json_valid(error)),
    constraint steps_are_a_json_array check (json_valid(steps) and json_type(steps) = 'array'),
    constraint tokens_are_counted check (prompt_tokens >= 0 and completion_tokens >= 0),
    constraint duration_is_not_negative check (duration_ms >= 0),
    constraint created_at_is_utc check (created_at like '____-__-__T__:__:__.______Z'),
    -- the identity, not the agent: a run stays when its agent goes.
    foreign key (tenant_id, agent_id) references agent_ids (tenant_id, id),
    -- GET /runs, newest first.
    unique (tenant_id, id)
) strict;

-- GET /agents/{agent_id}/runs, newest first.
create index if not exists runs_by_agent on runs (tenant_id, agent_id, id);
