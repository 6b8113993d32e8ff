-- What belongs to no tenant yet. Only service/app.py, service/auth.py and the command line run these; a tenant's scope refuses them.

-- name: find_api_key(hash)^
select id as key_id, tenant_id from api_keys where hash = :hash and revoked_at is null;

-- name: create_tenant(id, now)!
insert into tenants (id, created_at) values (:id, :now);

-- name: create_tenant_if_missing(id, now)!
insert into tenants (id, created_at) values (:id, :now) on conflict (id) do nothing;

-- name: tenant_exists(id)$
select exists (select 1 from tenants where id = :id);

-- name: get_tenant(id)^
select id, created_at from tenants where id = :id;

-- name: finish_tenant(id, unfinished, created_at)!
-- An import has ended: until then `unfinished` stood where the time is.
update tenants set created_at = :created_at where id = :id and created_at = :unfinished;

-- name: delete_api_keys(tenant)!
delete from api_keys where tenant_id = :tenant;

-- name: delete_tenant(id)!
delete from tenants where id = :id;

-- name: list_tenants()
select tenants.id, tenants.created_at, count(api_keys.id) as api_keys
from tenants
left join api_keys on api_keys.tenant_id = tenants.id and api_keys.revoked_at is null
group by tenants.id
order by tenants.id;

-- name: create_api_key(tenant, prefix, hash, label, now)^
insert into api_keys (tenant_id, prefix, hash, label, created_at)
values (:tenant, :prefix, :hash, :label, :now)
returning id, tenant_id, prefix, label, created_at;

-- name: list_api_keys(tenant)
select id, prefix, label, created_at, revoked_at from api_keys where tenant_id = :tenant order by id;

-- name: revoke_api_key(key_id, now)^
-- A key that is revoked already keeps the time of its first revocation.
update api_keys set revoked_at = coalesce(revoked_at, :now) where id = :key_id
returning id, tenant_id, prefix, revoked_at;

-- name: list_migrations()
select migration_id from _yoyo_migration order by migration_id;
