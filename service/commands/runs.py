"""runs: the history, and how much of it is kept."""

import asyncio
import sys
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import click

from service.commands import clear_errors, no_such_tenant, print_table, tenant_id_of
from service.config import database_option, duration_of, option
from service.resources import resource
from service.retention import count, prune, tenants_of
from service.storage.engines import engine_of
from service.storage.queries import load_queries
from service.storage.scope import Unscoped
from service.times import utc_now


@click.group()
def runs() -> None:
    """What happened."""


@runs.command("prune")
@click.option(
    "--older-than",
    required=True,
    metavar="TIME",
    callback=duration_of,
    help="How long runs are kept, as in 90d: a number and one of s, m, h, d and w.",
)
@option("--tenant", metavar="ID", callback=tenant_id_of, help="Only the runs of this tenant.")
@click.option("--dry-run", is_flag=True, help="Delete nothing, and tell how many runs would go.")
@click.option("--vacuum", is_flag=True, help="Then give the space back to the disk, while no server uses the file.")
@database_option
def prune_runs(older_than: timedelta, tenant: str | None, dry_run: bool, vacuum: bool, database: Path | str) -> None:
    """Delete runs that are older than they are kept for, and nothing else. Works beside a running server, which goes on."""
    engine = engine_of(database)
    if vacuum and engine.why_not_compact is not None:
        raise click.UsageError(engine.why_not_compact)
    before, total = utc_now(-older_than), 0

    async def all_of_it() -> list[tuple[str, int]]:
        storage = await engine.open(load_queries(resource("sql"), engine.name), for_long_queries=True)
        try:
            if tenant is not None and not await Unscoped(storage).value("tenant_exists", id=tenant):
                raise no_such_tenant(tenant)
            chosen = await tenants_of(storage) if tenant is None else [tenant]
            found = [(each, await count(storage, each, before)) for each in chosen]
            if dry_run:
                return found
            with click.progressbar(length=sum(runs for _, runs in found), label="Deleting", file=sys.stderr) as bar:

                def gone(runs: int) -> None:
                    nonlocal total
                    total += runs
                    bar.update(runs)

                return [(each, await prune(storage, [each], before, gone)) for each in chosen]
        finally:
            await storage.close()

    with clear_errors():
        engine.check(resource("migrations"))
        with engine.held() if vacuum and not dry_run else nullcontext():
            try:
                done = asyncio.run(all_of_it())
            except BaseException:
                if total:
                    click.echo(f"Deleted {total} runs created before {before}, and not all of them.")
                raise
            print_table(("TENANT", "RUNS"), done)
            total = sum(runs for _, runs in done)
            click.echo(f"{'Would delete' if dry_run else 'Deleted'} {total} runs created before {before}.")
            if vacuum and not dry_run:
                engine.compact()
