-- Answers kept for retries. `expired` is the time of what is forgotten: an answer that old is as good as not there.

-- name: get_kept_answer(tenant_id, idempotency_key, expired)^
select fingerprint, status, headers as "headers [parsed]", body
from kept_answers
where tenant_id = :tenant_id and idempotency_key = :idempotency_key and created_at > :expired;

-- name: forget_kept_answers(tenant_id, expired)!
-- A few at a time, with each answer that is kept: whoever keeps many forgets as many.
delete from kept_answers
where tenant_id = :tenant_id and idempotency_key in (
    select idempotency_key from kept_answers
    where tenant_id = :tenant_id and created_at <= :expired
    order by created_at limit 10
);

-- name: keep_answer(tenant_id, idempotency_key, fingerprint, status, headers, body, now, expired)!
-- Writes no row where the key has an answer that is not expired.
insert into kept_answers (tenant_id, idempotency_key, fingerprint, status, headers, body, created_at)
values (:tenant_id, :idempotency_key, :fingerprint, :status, :headers, :body, :now)
on conflict (tenant_id, idempotency_key) do update
set
    fingerprint = excluded.fingerprint, status = excluded.status, headers = excluded.headers, body = excluded.body,
    created_at = excluded.created_at
where kept_answers.created_at <= :expired;
