"""The command line: serve, migrate, tenants, keys."""

import asyncio
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from service import __version__
from service.auth import key_hash, key_prefix, new_key
from service.config import Config, database_option, location_option, option, serve_options
from service.logs import Formatter
from service.resources import resource
from service.storage.engines import engine_of
from service.storage.migrations import MigrationError
from service.storage.queries import load_queries
from service.storage.scope import Unscoped
from service.storage.units import Row, T, UniqueViolation, Unit, ask
from service.times import utc_now

_TENANT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line. A wrong value is one line and exit code 2; what can't be done now, one line and 1."""
    _open_what_is_closed()
    try:
        code = cli.main(arguments, prog_name="agent-platform", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = error.exit_code
    except click.ClickException as error:
        click.echo(f"agent-platform: {' '.join(error.format_message().split())}", err=True)
        code = error.exit_code
    except click.exceptions.Abort:
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def _open_what_is_closed() -> None:
    """Gives a process that was started without one of its three streams an empty one.

    Else the next file or socket would get that number, and libuv ends a process that closes it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # as long as the process


class Failed(click.ClickException):
    """The command is right and can't be done now."""


def _tenant(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not _TENANT_ID.fullmatch(value):
        raise click.BadParameter("a tenant's id is 1 to 64 of the characters A-Z a-z 0-9 _ . - and begins with no sign.")
    return value


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="agent-platform")
def cli() -> None:
    """A multi-tenant backend for AI agents. Each option reads the environment variable that its help names, too."""


@cli.command()
@serve_options
def serve(**options: Any) -> None:
    """Serve the API, and migrate the database first."""
    from service.app import make_app  # the other commands need neither aiohttp nor Connexion
    from service.server import serve as run

    config = Config(**options)
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler])
    # libraries speak at their own length: their debug records hold URLs, bodies and SQL
    for library in ("connexion", "aiosqlite", "asyncio", "redis", "yoyo", "openapi_spec_validator"):
        logging.getLogger(library).setLevel(max(logging.WARNING, logging.getLogger().level))
    with _clear_errors():
        if config.workers > 1:
            _serve_with_workers(config)
        else:
            run(make_app(config), config, click.echo)


def _serve_with_workers(config: Config) -> None:
    """Serves with several processes, which share what is outside of them and nothing else."""
    engine = engine_of(config.database)
    if not engine.is_shared:
        raise click.UsageError("more than one worker wants a database that processes can share: --database postgresql://…")
    if config.limiter == Config.limiter:
        raise click.UsageError("more than one worker wants a limiter that processes can share: --limiter redis://…")
    try:
        from service.workers import serve as run
    except ModuleNotFoundError as error:
        raise click.UsageError(f"{error.name} is not installed: pip install 'agent-platform[postgresql]'.") from None
    engine.migrate(resource("migrations"))
    run(config, click.echo)


@cli.command()
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
    with _clear_errors(), engine.held():
        applied = engine.migrate(resource("migrations"))
    click.echo(f"Applied {', '.join(applied)}." if applied else "Nothing to apply: the database is up to date.")


@cli.command()
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

    with _clear_errors():
        # before it is held, which would make a file that is missing
        one.check(resource("migrations"))
        with one.held(), other.held():
            other.migrate(resource("migrations"))
            try:
                done = asyncio.run(all_of_it())
            except CopyError as error:
                raise Failed(str(error)) from None
    click.echo(f"Moved {done.tenants} tenants with {done.rows} rows to {other}; both have the checksum {done.checksum}.")


@cli.group()
def tenants() -> None:
    """Who may own things."""


@tenants.command("create")
@click.argument("tenant_id", metavar="ID", callback=_tenant)
@database_option
def create_tenant(tenant_id: str, database: Path | str) -> None:
    """Create the tenant ID."""

    def unit() -> Unit[None]:
        try:
            yield ask("create_tenant", id=tenant_id, now=utc_now())
        except UniqueViolation:
            raise Failed(f"The tenant {tenant_id} exists already.") from None

    _run(database, unit)
    click.echo(f"Created the tenant {tenant_id}.")


@tenants.command("list")
@database_option
def list_tenants(database: Path | str) -> None:
    """List the tenants, with how many keys work for each."""

    def unit() -> Unit[list[Row]]:
        rows: list[Row] = yield ask("list_tenants")
        return rows

    _table(
        ("TENANT", "KEYS", "CREATED"),
        [(row["id"], row["api_keys"], row["created_at"]) for row in _run(database, unit)],
    )


@cli.group()
def keys() -> None:
    """API keys."""


tenant_option = option("--tenant", required=True, metavar="ID", callback=_tenant, help="The tenant that the key belongs to.")


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
        yield from _need_tenant(tenant)
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

    row = _run(database, unit)
    click.echo(key)
    click.echo(f"Key {row['id']} of the tenant {tenant}. It is shown this once.", err=True)


@keys.command("list")
@tenant_option
@database_option
def list_keys(tenant: str, database: Path | str) -> None:
    """List a tenant's keys by their first characters."""

    def unit() -> Unit[list[Row]]:
        yield from _need_tenant(tenant)
        rows: list[Row] = yield ask("list_api_keys", tenant=tenant)
        return rows

    rows = [
        (row["id"], row["prefix"] + "…", row["label"] or "-", row["created_at"], row["revoked_at"] or "-")
        for row in _run(database, unit)
    ]
    _table(("ID", "KEY", "LABEL", "CREATED", "REVOKED"), rows)


@keys.command("revoke")
@click.argument("key_id", metavar="KEY_ID", type=click.IntRange(1, 2**53 - 1))
@database_option
def revoke_key(key_id: int, database: Path | str) -> None:
    """Revoke a key. A server that runs forgets it within a second."""

    def unit() -> Unit[Row | None]:
        revoked: Row | None = yield ask("revoke_api_key", key_id=key_id, now=utc_now())
        return revoked

    row = _run(database, unit)
    if row is None:
        raise click.BadParameter(f"there is no key with the id {key_id}.")
    click.echo(f"Revoked the key {key_id} ({row['prefix']}…) of the tenant {row['tenant_id']}.")


def _need_tenant(tenant: str) -> Unit[None]:
    if not (yield ask("tenant_exists", id=tenant)):
        raise click.BadParameter(f"there is no tenant {tenant!r}; `agent-platform tenants create` makes one.")


def _run(database: Path | str, unit: Callable[[], Unit[T]]) -> T:
    """Runs one unit of work on a migrated database, beside a running server if there is one."""

    engine = engine_of(database)

    async def once() -> T:
        storage = await engine.open(load_queries(resource("sql"), engine.name))
        try:
            return await Unscoped(storage).write(unit())
        finally:
            await storage.close()

    with _clear_errors():
        engine.check(resource("migrations"))
        return asyncio.run(once())


@contextmanager
def _clear_errors() -> Iterator[None]:
    """What a command can't do, as one sentence."""
    from service.errors import Unavailable

    try:
        yield
    except (MigrationError, OSError) as error:
        raise Failed(str(error)) from error
    except Unavailable as error:
        raise Failed("The database does not answer: it may be busy, full or read-only.") from error


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    lines = [head, *[tuple(map(str, row)) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
