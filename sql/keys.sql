-- A tenant's keys, without what they are found by. `scopes` are words in the order of the alphabet.

-- name: list_keys(tenant_id, after, limit, offset)
-- Keys in the order of their ids, those that no longer work among them; `after` is the id that the previous page ended with.
select id, prefix, label, scopes, created_at, expires_at, last_used_at, revoked_at
from api_keys
where tenant_id = :tenant_id and id > :after
order by id
limit :limit offset :offset;

-- name: count_keys(tenant_id)$
select count(*) from api_keys where tenant_id = :tenant_id;

-- name: get_key(tenant_id, key_id)^
select id, prefix, label, scopes, created_at, expires_at, last_used_at, revoked_at
from api_keys
where tenant_id = :tenant_id and id = :key_id;

-- name: create_key(tenant_id, prefix, hash, label, scopes, expires_at, now)^
insert into api_keys (tenant_id, prefix, hash, label, scopes, expires_at, created_at)
values (:tenant_id, :prefix, :hash, :label, :scopes, :expires_at, :now)
returning id, prefix, label, scopes, created_at, expires_at, last_used_at, revoked_at;

-- name: end_key(tenant_id, key_id, expires_at)^
-- It works no longer than until then, and no longer than it would have.
update api_keys
set expires_at = case when expires_at < :expires_at then expires_at else :expires_at end
where tenant_id = :tenant_id and id = :key_id
returning id, prefix, label, scopes, created_at, expires_at, last_used_at, revoked_at;

-- name: is_rotated(tenant_id, key)$
-- Has another key taken its place? The audit log goes only with the tenant. It is gone through for the answer, so that this is
-- no quick look-up by an id, and `key` is not called one (Query.finds_one).
select exists (
    select 1 from audit_log where tenant_id = :tenant_id and resource = 'key' and resource_id = :key and action = 'rotate'
);

-- name: revoke_key(tenant_id, key_id, now)^
-- A key that is revoked already keeps the time of its first revocation.
update api_keys set revoked_at = coalesce(revoked_at, :now)
where tenant_id = :tenant_id and id = :key_id
returning id, prefix, label, scopes, created_at, expires_at, last_used_at, revoked_at;
