"""tenants: who may own things."""

from pathlib import Path

import click

from service.commands import Failed, print_table, run_unit, tenant_id_of
from service.config import database_option
from service.storage.importing import UNFINISHED
from service.storage.units import Row, UniqueViolation, Unit, ask
from service.times import utc_now


@click.group()
def tenants() -> None:
    """Who may own things."""


@tenants.command("create")
@click.argument("tenant_id", metavar="ID", callback=tenant_id_of)
@database_option
def create_tenant(tenant_id: str, database: Path | str) -> None:
    """Create the tenant ID."""

    def unit() -> Unit[None]:
        try:
            yield ask("create_tenant", id=tenant_id, now=utc_now())
        except UniqueViolation:
            raise Failed(f"The tenant {tenant_id} exists already.") from None

    run_unit(database, unit)
    click.echo(f"Created the tenant {tenant_id}.")


@tenants.command("list")
@database_option
def list_tenants(database: Path | str) -> None:
    """List the tenants, with how many keys work for each."""

    def unit() -> Unit[list[Row]]:
        rows: list[Row] = yield ask("list_tenants")
        return rows

    def made(row: Row) -> str:
        return "- (its import has not ended)" if row["created_at"] == UNFINISHED else row["created_at"]

    rows = [(row["id"], row["api_keys"], made(row)) for row in run_unit(database, unit)]
    print_table(("TENANT", "KEYS", "CREATED"), rows)
