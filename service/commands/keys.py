"""keys: what a tenant is known by, and what each key opens."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import click

from service import access
from service.auth import SCOPES, new_key
from service.commands import duration_of, print_table, run_for_tenant, run_on, tenant_id_of
from service.config import Whole, database_option, option
from service.storage.scope import Database, Scope, Unscoped
from service.storage.units import Row, Unit, ask
from service.times import utc_now

# how many keys the list asks for at once
_PAGE = 100


@click.group()
def keys() -> None:
    """API keys."""


tenant_option = option(
    "--tenant", required=True, metavar="ID", callback=tenant_id_of, help="The tenant that the key belongs to."
)
key_id_argument = click.argument("key_id", metavar="KEY_ID", type=Whole(1, 2**53 - 1))


@keys.command("create")
@tenant_option
@option("--label", metavar="TEXT", help="What the key is for, at most 100 characters.")
@click.option("--expires-in", metavar="TIME", callback=duration_of, help="As in 90d; it never ends unless that is said.")
@click.option(
    "--scope", "scopes", multiple=True, type=click.Choice(SCOPES), help="What it opens, once for each scope.  [default: all]"
)
@database_option
def create_key(
    tenant: str, label: str | None, expires_in: timedelta | None, scopes: tuple[str, ...], database: Path | str
) -> None:
    """Create a key and print it, once: only its hash is stored."""
    if label is not None and (not 1 <= len(label) <= 100 or not label.isprintable() or not label.strip()):
        raise click.BadParameter("a label has 1 to 100 printable characters.")
    key = new_key()
    expires_at = None if expires_in is None else utc_now(expires_in)
    row = run_for_tenant(database, tenant, lambda: access.create_key(key, label, scopes or SCOPES, expires_at))
    _show(key, row, tenant)


@keys.command("list")
@tenant_option
@database_option
def list_keys(tenant: str, database: Path | str) -> None:
    """List a tenant's keys by their first characters."""

    def unit() -> Unit[list[Row]]:
        found: list[Row] = []
        while more := (yield ask("list_keys", after=found[-1]["id"] if found else 0, limit=_PAGE, offset=0)):
            found += more
        return found

    rows = [
        (
            row["id"],
            row["prefix"] + "…",
            row["label"] or "-",
            row["scopes"].replace(" ", ","),
            row["created_at"],
            row["expires_at"] or "-",
            row["last_used_at"] or "-",
            row["revoked_at"] or "-",
        )
        for row in run_for_tenant(database, tenant, unit)
    ]
    print_table(("ID", "KEY", "LABEL", "SCOPES", "CREATED", "EXPIRES", "LAST USED", "REVOKED"), rows)


@keys.command("rotate")
@key_id_argument
@click.option(
    "--overlap",
    metavar="TIME",
    default=access.OVERLAP,
    show_default=True,
    callback=duration_of,
    help="How long the old key works on.",
)
@database_option
def rotate_key(key_id: int, overlap: timedelta, database: Path | str) -> None:
    """Create a key in the place of another one and print it, once; the old one works on for a while."""
    key = new_key()
    tenant, row = _of_key(database, key_id, lambda: access.rotate_key(key_id, key, overlap, lambda old, expires_at: None))
    _show(key, row, tenant)


@keys.command("revoke")
@key_id_argument
@database_option
def revoke_key(key_id: int, database: Path | str) -> None:
    """Revoke a key. A server that runs forgets it within a second."""
    tenant, row = _of_key(database, key_id, lambda: access.revoke_key(key_id))
    click.echo(f"Revoked the key {key_id} ({row['prefix']}…) of the tenant {tenant}.")


def _of_key(database: Path | str, key_id: int, unit: Callable[[], Unit[Row]]) -> tuple[str, Row]:
    """Whose key it is, and what a unit of that tenant answers."""

    async def work(storage: Database) -> tuple[str, Row]:
        tenant: str | None = await Unscoped(storage).value("find_key_of_any_tenant", key_id=key_id)
        if tenant is None:
            raise click.BadParameter(f"there is no key with the id {key_id}.")
        return tenant, await Scope(storage, tenant, None, is_operator=True).write(unit())

    return run_on(database, work)


def _show(key: str, row: Row, tenant: str) -> None:
    click.echo(key)
    until = "" if row["expires_at"] is None else f" until {row['expires_at']}"
    click.echo(
        f"Key {row['id']} of the tenant {tenant}, for {', '.join(row['scopes'])}{until}. It is shown this once.", err=True
    )
