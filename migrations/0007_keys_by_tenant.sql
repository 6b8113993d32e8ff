-- Every key leads with the tenant: that of a key's hash, too. It was the only one that did not.
-- depends: 0006_kept_answers
--
-- SQLite changes no constraint of a table, so the table is made anew: every row, every id, and the id that was given last. The
-- statements are one transaction, and what it leaves can be made anew by them once more.

drop table if exists api_keys_by_tenant;
create table api_keys_by_tenant (
    -- autoincrement: the id of a removed key is never given to another one.
    id integer not null primary key autoincrement,
    tenant_id text not null references tenants (id),
    -- the key itself is never stored: its first characters to recognise it by, and its SHA-256 to find it by. A key has
    -- over 190 random bits, so a slow hash would protect nothing and cost every request.
    prefix text not null,
    hash text not null,
    label text,
    created_at text not null,
    -- revoked, not deleted: the list still shows that it existed.
    revoked_at text,
    constraint id_fits_a_json_number check (id between 1 and 9007199254740991),
    constraint prefix_shows_nine_characters check (prefix glob 'mk_*' and length(prefix) = 9),
    constraint hash_is_sha_256 check (length(hash) = 64 and hash not glob '*[^0-9a-f]*'),
    constraint label_has_1_to_100_characters check (length(label) between 1 and 100),
    constraint created_at_is_utc check (created_at like '____-__-__T__:__:__.______Z'),
    constraint revoked_at_is_utc check (revoked_at like '____-__-__T__:__:__.______Z'),
    unique (tenant_id, id),
    -- two keys with one hash do not happen; a unique hash alone could not be kept over several nodes.
    unique (tenant_id, hash)
) strict;

insert into api_keys_by_tenant (id, tenant_id, prefix, hash, label, created_at, revoked_at)
select id, tenant_id, prefix, hash, label, created_at, revoked_at from api_keys;
-- the id given last may be one that no row has any more
delete from sqlite_sequence where name = 'api_keys_by_tenant';
insert into sqlite_sequence (name, seq) select 'api_keys_by_tenant', seq from sqlite_sequence where name = 'api_keys';

drop table api_keys;
alter table api_keys_by_tenant rename to api_keys;

-- whose is this key?
create index if not exists api_keys_by_hash on api_keys (hash);
