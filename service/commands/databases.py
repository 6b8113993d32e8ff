"""migrate and copy: what is done to a whole database."""

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import click

from service.commands import Failed, clear_errors
from service.config import database_option, location_option
from service.resources import resource
from service.storage.engines import engine_of
from service.storage.queries import load_queries


@click.command()
@database_option
@click.option(
    "--print-distribution",
    is_flag=True,
    help="Touch no database, but print the statements that spread one over nodes by tenant, for PostgreSQL with Citus.",
)
def migrate(database: Path | str, print_distribution: bool) -> None:
    """Make the database, or bring it to this version."""
    if print_distribution:
        text = (resource("migrations") / "postgresql" / "distribution" / "citus.sql").read_text(encoding="utf-8")
        click.echo(text, nl=False)
        return
    engine = engine_of(database)
    with clear_errors(), engine.held():
        applied = engine.migrate(resource("migrations"))
    click.echo(f"Applied {', '.join(applied)}." if applied else "Nothing to apply: the database is up to date.")


@click.command()
@location_option("--from", "source", help="The database to move, which nobody writes meanwhile.")
@location_option("--to", "target", help="The database to move it to, empty; it is migrated first.")
@click.option("--resume", is_flag=True, help="Go on with a move that was interrupted.")
def copy(source: Path | str, target: Path | str, resume: bool) -> None:
    """Move everything from one database to another, ids and times kept, and compare the two."""
    from service.storage.copying import Copied, CopyError, total_rows
    from service.storage.copying import copy as move

    one, other = engine_of(source), engine_of(target)

    async def all_of_it() -> Copied:
        async with AsyncExitStack() as opened:
            databases = []
            for engine in (one, other):
                queries = load_queries(resource("sql"), engine.name)
                databases.append(await engine.open(queries, for_long_queries=True))
                opened.push_async_callback(databases[-1].close)
            # each row is moved once and compared once
            total = 2 * await total_rows(databases[0])
            with click.progressbar(length=total, label="Moving and comparing", file=sys.stderr) as bar:
                return await move(*databases, resume=resume, moved=bar.update)

    with clear_errors():
        # before it is held, which would make a file that is missing
        one.check(resource("migrations"))
        if one.is_same(other):
            raise Failed("--from and --to are the same database.")
        with one.held(), other.held():
            other.migrate(resource("migrations"))
            try:
                done = asyncio.run(all_of_it())
            except CopyError as error:
                raise Failed(str(error)) from None
    click.echo(f"Moved {done.tenants} tenants with {done.rows} rows to {other}; both have the checksum {done.checksum}.")
