"""The commands, a file for what they are about; here is what they share."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from service.resources import resource
from service.storage.engines import engine_of
from service.storage.migrations import MigrationError
from service.storage.queries import load_queries
from service.storage.scope import Database, Scope, Unscoped
from service.storage.units import ForeignKeyViolation, Row, T, UniqueViolation, Unit, ask
from service.times import duration

_TENANT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)


class Failed(click.ClickException):
    """The command is right and can't be done now."""


def tenant_id_of(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not _TENANT_ID.fullmatch(value):
        raise click.BadParameter("a tenant's id is 1 to 64 of the characters A-Z a-z 0-9 _ . - and begins with no sign.")
    return value


def duration_of(context: click.Context, parameter: click.Parameter, value: str | None) -> timedelta | None:
    try:
        return None if value is None else duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def no_such_tenant(tenant: str) -> click.BadParameter:
    return click.BadParameter(f"there is no tenant {tenant!r}; `agent-platform tenants create` makes one.")


def whole_tenant(tenant: str) -> Unit[Row]:
    """The tenant, which must be there; one that is only half there is refused."""
    found: Row | None = yield ask("get_tenant", id=tenant)
    if found is None:
        raise no_such_tenant(tenant)
    if unfinished := (yield ask("get_unfinished", id=tenant)):
        raise Failed(
            f"The {unfinished} of the tenant {tenant} has not ended. If none is under way, it was interrupted: "
            f"`agent-platform tenants delete {tenant}` takes away what is there."
        )
    return found


def run_unit(database: Path | str, unit: Callable[[], Unit[T]]) -> T:
    """Runs one unit of work that belongs to no tenant on a migrated database, beside a running server if there is one."""
    return run_on(database, lambda storage: Unscoped(storage).write(unit()))


def run_for_tenant(database: Path | str, tenant: str, unit: Callable[[], Unit[T]]) -> T:
    """The same for a unit of a tenant, which must be there whole; the audit log will say that the operator did it."""

    async def for_tenant(storage: Database) -> T:
        await Unscoped(storage).write(whole_tenant(tenant))
        return await Scope(storage, tenant, None, is_operator=True).write(unit())

    return run_on(database, for_tenant)


def run_on(database: Path | str, work: Callable[[Database], Awaitable[T]], *, for_long_queries: bool = False) -> T:
    """Opens a migrated database, beside a running server if there is one, lets `work` do what it has to, and closes it."""
    engine = engine_of(database)

    async def once() -> T:
        storage = await engine.open(load_queries(resource("sql"), engine.name), for_long_queries=for_long_queries)
        try:
            return await work(storage)
        finally:
            await storage.close()

    with clear_errors():
        engine.check(resource("migrations"))
        return asyncio.run(once())


@contextmanager
def clear_errors() -> Iterator[None]:
    """What a command can't do, as one sentence."""
    from service.errors import Problem, Unavailable

    try:
        yield
    except BrokenPipeError:
        # nobody reads the output any more
        raise
    except (MigrationError, OSError) as error:
        raise Failed(str(error)) from error
    except Unavailable as error:
        raise Failed("The database does not answer: it may be busy, full or read-only.") from error
    except (UniqueViolation, ForeignKeyViolation) as error:
        raise Failed("What this is about was changed or deleted meanwhile. Nothing was done; try again.") from error
    except Problem as error:
        raise Failed(error.detail) from error


def print_table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    # a tenant's own words may hold line ends, and what a terminal obeys
    lines = [head, *[tuple("".join(c if c.isprintable() else "\ufffd" for c in str(cell)) for cell in row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
