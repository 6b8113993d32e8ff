-- What a run's time is not to be earlier than is looked at when nobody else writes for the tenant, and not when its statement
-- began, which may be before: a function that is volatile sees what has been committed since.
-- depends: 0007_deletion

create or replace function not_before_the_last_run(whose text, at text) returns text
language plpgsql volatile as $$
begin
    return greatest(
        at collate "C",
        (select created_at from runs where tenant_id = whose order by id desc limit 1)
    );
end
$$;
grant execute on function not_before_the_last_run(text, text) to agent_platform_tenant;
