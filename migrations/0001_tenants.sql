-- Who may call: tenants and their API keys.
--
-- Every statement bears being run again: yoyo applies a migration and records it in two transactions, and a crash
-- between them applies it once more.

create table if not exists tenants (
    -- the name an operator gives; it is shown by GET /whoami and stands in no other tenant's answer.
    id text not null primary key,
    created_at text not null,
    constraint id_is_a_plain_name check (
        length(id) between 1 and 64 and id not glob '*[^A-Za-z0-9_.-]*' and id glob '[A-Za-z0-9]*'
    ),
    constraint created_at_is_utc check (created_at like '____-__-__T__:__:__.______Z')
) strict, without rowid;

create table if not exists api_keys (
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
    unique (hash)
) strict;
