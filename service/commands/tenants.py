"""tenants: who may own things, and how much they may run."""

from pathlib import Path

import click

from service.audit import noted_of_tenant
from service.commands import Failed, print_table, run_unit, tenant_id_of, whole_tenant
from service.config import Whole, database_option
from service.storage.importing import UNFINISHED
from service.storage.units import Row, UniqueViolation, Unit, ask
from service.times import utc_now


@click.group()
def tenants() -> None:
    """Who may own things."""


id_argument = click.argument("tenant_id", metavar="ID", callback=tenant_id_of)


@tenants.command("create")
@id_argument
@database_option
def create_tenant(tenant_id: str, database: Path | str) -> None:
    """Create the tenant ID."""

    def unit() -> Unit[None]:
        try:
            yield ask("create_tenant", id=tenant_id, now=utc_now())
        except UniqueViolation:
            raise Failed(f"The tenant {tenant_id} exists already.") from None
        yield noted_of_tenant("create", None, (yield ask("get_tenant", id=tenant_id)))

    run_unit(database, unit)
    click.echo(f"Created the tenant {tenant_id}.")


@tenants.command("list")
@database_option
def list_tenants(database: Path | str) -> None:
    """List the tenants, with how many keys work for each."""

    def unit() -> Unit[list[Row]]:
        rows: list[Row] = yield ask("list_tenants", now=utc_now())
        return rows

    print_table(
        ("TENANT", "KEYS", "LIMIT", "CREATED", "DISABLED"),
        [
            (row["id"], row["api_keys"], _limit(row), _made(row), row["disabled_at"] or "-")
            for row in run_unit(database, unit)
        ],
    )


@tenants.command("disable")
@id_argument
@database_option
def disable_tenant(tenant_id: str, database: Path | str) -> None:
    """Shut the tenant ID out: its keys open nothing until it is enabled. A server that runs knows within a second."""
    run_unit(database, lambda: _changed(tenant_id, "disable", now=utc_now()))
    click.echo(f"Disabled the tenant {tenant_id}.")


@tenants.command("enable")
@id_argument
@database_option
def enable_tenant(tenant_id: str, database: Path | str) -> None:
    """Let the tenant ID in again."""
    run_unit(database, lambda: _changed(tenant_id, "enable"))
    click.echo(f"Enabled the tenant {tenant_id}.")


@tenants.command("limit")
@id_argument
@click.option("--runs", type=Whole(1, 1_000_000), help="Runs in each window.")
@click.option("--window", type=Whole(1, 86_400), default=60, show_default=True, help="Seconds.")
@click.option("--default", "usual", is_flag=True, help="What the server is told for all tenants.")
@database_option
def limit_tenant(tenant_id: str, runs: int | None, window: int, usual: bool, database: Path | str) -> None:
    """Give the tenant ID a limit of its own. A server that runs knows within a second."""
    if usual == (runs is not None):
        raise click.UsageError("say either how many --runs in a --window, or --default.")
    limit = {"run_limit": runs, "run_window": None if usual else window}
    row = run_unit(database, lambda: _changed(tenant_id, "limit", **limit))
    click.echo(f"The limit of the tenant {tenant_id}: {_limit(row)}.")


def _changed(tenant_id: str, action: str, **values: str | int | None) -> Unit[Row]:
    """The tenant as it is after one of three changes."""
    # two changes at once: each is to note what the other has left
    yield ask("hold_tenant", id=tenant_id)
    before = yield from whole_tenant(tenant_id)
    after: Row = yield ask(f"{action}_tenant", id=tenant_id, **values)
    if after != before:
        yield noted_of_tenant(action, before, after)
    return after


def _made(row: Row) -> str:
    return "- (its import has not ended)" if row["created_at"] == UNFINISHED else row["created_at"]


def _limit(row: Row) -> str:
    return "as the server says" if row["run_limit"] is None else f"{row['run_limit']} runs in {row['run_window']} s"
