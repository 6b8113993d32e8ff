-- What belongs to no tenant yet. Only service/app.py, service/auth.py and the command line run these; a tenant's scope refuses them.

-- name: find_api_key(hash, now)^
-- What it opens, and how many runs its tenant may have; nothing for a tenant that is shut out.
select
    api_keys.tenant_id, api_keys.id as key_id, api_keys.scopes, api_keys.last_used_at,
    tenants.run_limit, tenants.run_window
from api_keys
join tenants on tenants.id = api_keys.tenant_id
where api_keys.hash = :hash and api_keys.revoked_at is null and tenants.disabled_at is null and tenants.deleted_at is null
    and (api_keys.expires_at > :now or api_keys.expires_at is null);

-- name: find_demo_tenant(id)^
-- None for one whose import has not ended, which is of the year 1.
select id as tenant_id, run_limit, run_window
from tenants
where id = :id and disabled_at is null and deleted_at is null and created_at >= '0002';

-- name: note_key_use(tenant, key_id, now)!
update api_keys set last_used_at = :now
where tenant_id = :tenant and id = :key_id and (last_used_at < :now or last_used_at is null);

-- name: create_tenant(id, now)!
insert into tenants (id, created_at) values (:id, :now);

-- name: create_tenant_if_missing(id, now)!
insert into tenants (id, created_at) values (:id, :now) on conflict (id) do nothing;

-- name: copy_tenant(id, created_at, disabled_at, run_limit, run_window)!
-- One that is there already becomes as the given one.
insert into tenants (id, created_at, disabled_at, run_limit, run_window)
values (:id, :created_at, :disabled_at, :run_limit, :run_window)
on conflict (id) do update set
    disabled_at = excluded.disabled_at, run_limit = excluded.run_limit, run_window = excluded.run_window;

-- name: tenant_exists(id)$
select exists (select 1 from tenants where id = :id);

-- name: finish_tenant(id, unfinished, created_at, disabled_at, run_limit, run_window)!
-- An import has ended: until then `unfinished` stood where the time is.
update tenants
set created_at = :created_at, disabled_at = :disabled_at, run_limit = :run_limit, run_window = :run_window
where id = :id and created_at = :unfinished;

-- name: begin_deletion(id, now)!
-- Nobody comes in any more, and what it has in audit_log may go.
update tenants set disabled_at = coalesce(disabled_at, :now), deleted_at = coalesce(deleted_at, :now) where id = :id;

-- name: delete_api_keys(tenant)!
delete from api_keys where tenant_id = :tenant;

-- name: delete_tenant(id)!
delete from tenants where id = :id;

-- name: list_tenants(now)
select
    tenants.id, tenants.created_at, tenants.disabled_at, tenants.run_limit, tenants.run_window,
    (
        select count(*) from api_keys
        where tenant_id = tenants.id and revoked_at is null and (expires_at > :now or expires_at is null)
    ) as api_keys
from tenants
order by id;

-- name: get_tenant(id)^
select id, created_at, disabled_at, run_limit, run_window from tenants where id = :id;

-- name: hold_tenant(id)!
-- Until the transaction ends, nobody else changes it.
update tenants set id = id where id = :id;

-- name: get_unfinished(id)$
-- What is under way with a tenant that is only half there, or was.
select case when deleted_at is not null then 'deletion' when created_at < '0002' then 'import' end
from tenants
where id = :id;

-- name: disable_tenant(id, now)^
-- One that is shut out already keeps the time since when.
update tenants set disabled_at = coalesce(disabled_at, :now) where id = :id
returning id, created_at, disabled_at, run_limit, run_window;

-- name: enable_tenant(id)^
update tenants set disabled_at = null where id = :id
returning id, created_at, disabled_at, run_limit, run_window;

-- name: limit_tenant(id, run_limit, run_window)^
update tenants set run_limit = :run_limit, run_window = :run_window where id = :id
returning id, created_at, disabled_at, run_limit, run_window;

-- name: find_key_of_any_tenant(key_id)$
select tenant_id from api_keys where id = :key_id;

-- name: write_operator_audit(tenant, action, old, new, now)!
-- What is done to the tenant itself.
insert into audit_log (tenant_id, created_at, actor, action, resource, before, after)
values (:tenant, :now, 'operator', :action, 'tenant', :old, :new);

-- name: list_migrations()
select migration_id from _yoyo_migration order by migration_id;
