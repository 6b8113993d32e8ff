drop view if exists agent_details;
drop table if exists agent_tools;
drop function if exists refuse_the_51st_tool();
drop table if exists agents;
drop table if exists agent_ids;
drop table if exists tools;
