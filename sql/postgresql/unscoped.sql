-- The ids that were given last, so that a copy gives none of them again.

-- name: list_last_ids()
select name, last_id
from (
    select 'agent_ids' as name, last_value as last_id, is_called from agent_ids_id_seq
    union all select 'audit_log', last_value, is_called from audit_log_id_seq
    union all select 'api_keys', last_value, is_called from api_keys_id_seq
    union all select 'runs', last_value, is_called from runs_id_seq
    union all select 'tools', last_value, is_called from tools_id_seq
) as sequences
where is_called
order by name;

-- name: note_last_id(name)!
-- A sequence is there from the beginning.
select :name;

-- name: set_last_id(name, last_id)!
-- It only grows: a sequence knows no transactions, and a server may take ids from it at this moment. It is walked up to a near id,
-- and set to one so far that nobody gets there meanwhile.
with ahead as materialized (
    select :last_id - coalesce(pg_sequence_last_value(cast(:name || '_id_seq' as regclass)), 0) as ids
)
select max(id)
from (
    select nextval(cast(:name || '_id_seq' as regclass)) as id from ahead, generate_series(1, ahead.ids) where ids <= 10000
    union all
    select setval(cast(:name || '_id_seq' as regclass), :last_id) from ahead where ids > 10000
) as given;
