-- Retries that don't repeat: the answer to each POST that had an Idempotency-Key, written by the transaction that did the
-- work, so that no crash can part them.
-- depends: 0003_runs

create table if not exists kept_answers (
    tenant_id text collate "C" not null references tenants (id),
    -- the client's own; two tenants may use the same one and never meet.
    idempotency_key text collate "C" not null,
    -- SHA-256 of what was asked: the same key with another request is a mistake, and told so.
    fingerprint text collate "C" not null,
    status bigint not null,
    -- a JSON object of the headers that the answer had beside those of every answer.
    headers text collate "C" not null,
    -- as it was sent, byte for byte.
    body text collate "C" not null,
    created_at text collate "C" not null,
    constraint idempotency_key_has_1_to_255_characters check (length(idempotency_key) between 1 and 255),
    constraint fingerprint_is_a_sha_256 check (length(fingerprint) = 64),
    constraint only_what_had_an_effect_is_kept check (status between 200 and 299),
    constraint headers_are_a_json_object check (json_typeof(headers::json) = 'object'),
    constraint created_at_is_utc check (is_utc(created_at)),
    primary key (tenant_id, idempotency_key)
);

-- what is older than a day goes, oldest first.
create index if not exists kept_answers_by_time on kept_answers (tenant_id, created_at);

alter table kept_answers enable row level security;
alter table kept_answers force row level security;
drop policy if exists its_own on kept_answers;
create policy its_own on kept_answers to agent_platform_tenant
    using (tenant_id = current_setting('agent_platform.tenant_id', true));

grant select, insert, update, delete on kept_answers to agent_platform_tenant;
