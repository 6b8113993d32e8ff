drop table if exists api_keys_by_hash_alone;
create table api_keys_by_hash_alone (
    id integer not null primary key autoincrement,
    tenant_id text not null references tenants (id),
    prefix text not null,
    hash text not null,
    label text,
    created_at text not null,
    revoked_at text,
    constraint id_fits_a_json_number check (id between 1 and 9007199254740991),
    constraint prefix_shows_nine_characters check (prefix glob 'mk_*' and length(prefix) = 9),
    constraint hash_is_sha_256 check (length(hash) = 64 and hash not glob '*[^0-9a-f]*'),
    constraint label_has_1_to_100_characters check (length(label) between 1 and 100),
    constraint created_at_is_utc check (created_at like '____-__-__T__:__:__.______Z'),
    constraint revoked_at_is_utc check (revoked_at like '____-__-__T__:__:__.______Z'),
    unique (tenant_id, id),
    unique (hash)
) strict;

insert into api_keys_by_hash_alone (id, tenant_id, prefix, hash, label, created_at, revoked_at)
select id, tenant_id, prefix, hash, label, created_at, revoked_at from api_keys;
delete from sqlite_sequence where name = 'api_keys_by_hash_alone';
insert into sqlite_sequence (name, seq) select 'api_keys_by_hash_alone', seq from sqlite_sequence where name = 'api_keys';

drop table api_keys;
alter table api_keys_by_hash_alone rename to api_keys;
