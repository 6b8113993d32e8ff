-- Who changed what, newest first. `actor`, `actor_key_id` and `request_id` are the scope's: no handler says who asks.

-- name: write_audit(tenant_id, actor, actor_key_id, request_id, action, resource, resource_id, old, new, now)!
insert into audit_log (tenant_id, created_at, actor, key_id, action, resource, resource_id, request_id, before, after)
values (:tenant_id, :now, :actor, :actor_key_id, :action, :resource, :resource_id, :request_id, :old, :new);

-- name: list_audit(tenant_id, before, action, resource, resource_id, key_id, created_after, created_before, limit, offset)
-- `before` is the id that the previous page ended with.
select
    id, created_at, actor, key_id, action, resource, resource_id, request_id, before as "before [json]", after as "after [json]"
from audit_log
where tenant_id = :tenant_id and id < :before
    and (action = :action or :action is null) and (resource = :resource or :resource is null)
    and (resource_id = :resource_id or :resource_id is null) and (key_id = :key_id or :key_id is null)
    and (created_at > :created_after or :created_after is null) and (created_at < :created_before or :created_before is null)
order by id desc
limit :limit offset :offset;

-- name: count_audit(tenant_id, action, resource, resource_id, key_id, created_after, created_before)$
select count(*)
from audit_log
where tenant_id = :tenant_id
    and (action = :action or :action is null) and (resource = :resource or :resource is null)
    and (resource_id = :resource_id or :resource_id is null) and (key_id = :key_id or :key_id is null)
    and (created_at > :created_after or :created_after is null) and (created_at < :created_before or :created_before is null);
