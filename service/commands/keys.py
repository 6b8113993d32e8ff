"""keys: what a tenant is known by."""

from pathlib import Path

import click

from service.auth import key_hash, key_prefix, new_key
from service.commands import need_tenant, print_table, run_unit, tenant_id_of
from service.config import database_option, option
from service.storage.units import Row, Unit, ask
from service.times import utc_now


@click.group()
def keys() -> None:
    """API keys."""


tenant_option = option(
    "--tenant", required=True, metavar="ID", callback=tenant_id_of, help="The tenant that the key belongs to."
)


@keys.command("create")
@tenant_option
@option("--label", metavar="TEXT", help="What the key is for, at most 100 characters.")
@database_option
def create_key(tenant: str, label: str | None, database: Path | str) -> None:
    """Create a key and print it, once: only its hash is stored."""
    if label is not None and (not 1 <= len(label) <= 100 or not label.isprintable()):
        raise click.BadParameter("a label has 1 to 100 printable characters.")
    key = new_key()

    def unit() -> Unit[Row]:
        yield from need_tenant(tenant)
        hashed = key_hash(key)
        created: Row = yield ask(
            "create_api_key",
            tenant=tenant,
            prefix=key_prefix(key),
            hash=hashed,
            label=label,
            now=utc_now(),
        )
        return created

    row = run_unit(database, unit)
    click.echo(key)
    click.echo(f"Key {row['id']} of the tenant {tenant}. It is shown this once.", err=True)


@keys.command("list")
@tenant_option
@database_option
def list_keys(tenant: str, database: Path | str) -> None:
    """List a tenant's keys by their first characters."""

    def unit() -> Unit[list[Row]]:
        yield from need_tenant(tenant)
        rows: list[Row] = yield ask("list_api_keys", tenant=tenant)
        return rows

    rows = [
        (row["id"], row["prefix"] + "…", row["label"] or "-", row["created_at"], row["revoked_at"] or "-")
        for row in run_unit(database, unit)
    ]
    print_table(("ID", "KEY", "LABEL", "CREATED", "REVOKED"), rows)


@keys.command("revoke")
@click.argument("key_id", metavar="KEY_ID", type=click.IntRange(1, 2**53 - 1))
@database_option
def revoke_key(key_id: int, database: Path | str) -> None:
    """Revoke a key. A server that runs forgets it within a second."""

    def unit() -> Unit[Row | None]:
        revoked: Row | None = yield ask("revoke_api_key", key_id=key_id, now=utc_now())
        return revoked

    row = run_unit(database, unit)
    if row is None:
        raise click.BadParameter(f"there is no key with the id {key_id}.")
    click.echo(f"Revoked the key {key_id} ({row['prefix']}…) of the tenant {row['tenant_id']}.")
